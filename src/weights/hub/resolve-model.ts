/** From a name to a path: what lies there, what the Hugging Face cache has, what the Hub has. */
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { ModalignError } from '../../errors.ts'
import { writeFileAtomic } from '../../io/atomic.ts'
import { freeBytes } from '../../io/free-space.ts'
import { nodeFs } from '../../io/fs-ops.ts'
import { linkFile, resumableFile } from '../../io/resumable-file.ts'
import { cachedModel, repoFolder } from './cached-model.ts'
import { type HubLibrary, type HubServer, type HubTimes, hubLibrary, hubServer, isPassing } from './hub-server.ts'
import { hubSettings } from './hub-settings.ts'
import { neededFiles, type OwnFiles } from './model-files.ts'
import { commitPattern, type HubSettings, type ModelName, modelNameText, parseModelName } from './model-name.ts'

/** How far a download is. */
export interface DownloadProgress {
  /** The file that is arriving. */
  readonly file: string
  /** Of all files together; what earlier runs left counts as received. */
  readonly receivedBytes: number
  readonly totalBytes: number
}

export interface DownloadOptions {
  /** Whether a model that is not on this machine may be downloaded from the Hugging Face Hub. Default false: nothing is sent anywhere. */
  readonly download?: boolean
  readonly onDownload?: (progress: DownloadProgress) => void
  readonly signal?: AbortSignal
}

export interface ResolveOptions extends DownloadOptions, HubTimes {
  /** Of what the model consists, where it is not config.json, safetensors and the tokenizer's files: `open_clip_config.json` and `open_clip_model.safetensors`, say. */
  readonly files?: OwnFiles
  /** Where the settings come from. Default: this process's. */
  readonly environment?: NodeJS.ProcessEnv
  readonly library?: HubLibrary
}

/**
 * The path of a model that is named by a path, or as `ORGANISATION/MODEL[/FILE][@REVISION]`. In this order: the path, if something lies there; the Hugging Face cache
 * (`HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`); with `download: true` the Hub (`HF_ENDPOINT`, `HF_TOKEN`; never with `HF_HUB_OFFLINE`), into that cache. Every file is checked
 * against the Hub's checksum before it has its name; interrupted downloads go on where they stopped. A text that can only be a path comes back as it is.
 *
 * @throws ModalignError `HUB_NOT_CACHED`, `HUB_OFFLINE`, `HUB_ENDPOINT`, `HUB_UNKNOWN`, `HUB_ACCESS`, `HUB_UNAVAILABLE`, `HUB_FILE`, `HUB_LISTING`, `DEPENDENCY_MISSING`, `HTTP_*`, `URL_*`, `DISK_*`
 * @example
 * const folder = await resolveModel('HuggingFaceTB/SmolLM2-135M-Instruct@main', { download: true })
 */
export async function resolveModel(where: string, options: ResolveOptions = {}): Promise<string> {
  const { environment, download = false, library = hubLibrary, signal, idleMs, files } = options
  const name = existsSync(where) ? undefined : parseModelName(where)
  if (name === undefined) return where
  const settings = hubSettings(environment)
  const cached = await cachedModel(settings.cacheFolder, name, files)
  if (cached.path !== undefined) return cached.path
  if (!download || settings.offline) throw notHere(name, settings, cached.missing, download)
  const server = hubServer(await library(), settings, name, { idleMs, signal })
  return await fetchModel(name, settings, server, options)
}

function notHere(name: ModelName, { cacheFolder }: HubSettings, missing: readonly string[], download: boolean): ModalignError {
  return new ModalignError({
    code: download ? 'HUB_OFFLINE' : 'HUB_NOT_CACHED',
    file: modelNameText(name),
    got:
      missing.length === 0
        ? 'nothing at this path, and no copy in the Hugging Face cache'
        : `a copy without ${missing.slice(0, 3).join(', ')}`,
    expected: `a folder or file, or a model in ${cacheFolder}`,
    hint: download
      ? 'HF_HUB_OFFLINE forbids the download: unset it, or copy the model there'
      : 'to download it from the Hugging Face Hub: --download, in code download: true',
  })
}

async function fetchModel(name: ModelName, settings: HubSettings, server: HubServer, options: ResolveOptions): Promise<string> {
  const { signal, retryMs, onDownload } = options
  const again = { signal, retryMs }
  const commit = await patiently(() => server.commit(), again)
  const files = neededFiles(name, await patiently(() => server.files(commit), again), options.files)
  const folder = repoFolder(settings.cacheFolder, name.repo)
  const totalBytes = files.reduce((sum, { bytes }) => sum + bytes, 0)
  const absent = files.filter(({ etag }) => !existsSync(join(folder, 'blobs', etag)))
  await nodeFs.mkdir(join(folder, 'blobs'))
  await checkSpace(
    folder,
    absent.reduce((sum, { bytes }) => sum + bytes, 0),
  )
  let complete = totalBytes - absent.reduce((sum, { bytes }) => sum + bytes, 0)
  for (const file of absent) {
    await resumableFile(join(folder, 'blobs', file.etag), {
      bytes: file.bytes,
      digest: file.digest,
      read: (from) => server.read(commit, file, from),
      onBytes: (present) => onDownload?.({ file: file.path, receivedBytes: complete + present, totalBytes }),
      isPassing,
      ...again,
    })
    complete += file.bytes
  }
  // The snapshot has names only when every byte is there, and config.json, without which it is no model, comes last.
  const snapshot = join(folder, 'snapshots', commit)
  const ordered = [...files].sort((a, b) => Number(a.path === 'config.json') - Number(b.path === 'config.json'))
  for (const { path, etag } of ordered) await linkFile(join(folder, 'blobs', etag), join(snapshot, path))
  if (!commitPattern.test(name.revision)) {
    const ref = join(folder, 'refs', name.revision)
    await nodeFs.mkdir(dirname(ref))
    await writeFileAtomic(ref, commit)
  }
  return name.file === undefined ? snapshot : join(snapshot, name.file)
}

async function checkSpace(folder: string, bytes: number): Promise<void> {
  const free = await freeBytes(folder)
  if (bytes <= free) return
  throw new ModalignError({
    code: 'DISK_FULL',
    file: folder,
    got: `${free} bytes free`,
    expected: `${bytes} for the model`,
    hint: 'HF_HUB_CACHE names another folder',
  })
}

/** Asks again where the failure may pass: five times, with growing pauses. */
async function patiently<T>(
  ask: () => Promise<T>,
  { retryMs = 500, signal }: { readonly retryMs: number | undefined; readonly signal: AbortSignal | undefined },
): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await ask()
    } catch (error) {
      if (!isPassing(error) || attempt === 5) throw error
      await sleep(retryMs * 2 ** attempt, undefined, signal === undefined ? {} : { signal })
    }
  }
}
