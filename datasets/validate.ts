/** A whole dataset checked before a run: every problem counted, the first ones told in full. */
import { opendir, stat } from 'node:fs/promises'
import { dirname, join, posix } from 'node:path'
import { type ErrorData, ModalignError } from '../src/errors.ts'
import { errnoOf, fileError } from '../src/io/file-error.ts'
import type { DatasetSource, Modality, Sample } from '../src/model/contracts.ts'
import { mediaPathFault } from './media-path.ts'

export interface ValidateOptions {
  /** Folder that media paths are relative to; default: the source's own `root`. */
  readonly root?: string
  /** Look at every media file (one `stat` each): default true. */
  readonly checkFiles?: boolean
  /** How many problems to tell in full; default 100. All are counted. */
  readonly limit?: number
  /** How many files to look at at once; default 32. */
  readonly concurrency?: number
  readonly signal?: AbortSignal
}

export interface ProblemGroup {
  readonly code: string
  readonly count: number
  readonly first: ErrorData
}
export interface DirectoryGroup {
  /** Relative to the root; `.` for the root itself. */
  readonly directory: string
  readonly code: string
  /** Distinct files. */
  readonly count: number
}

export interface DatasetReport {
  readonly name: string
  /** Records that were read, bad ones included. */
  readonly records: number
  /** Records without any problem. */
  readonly good: number
  readonly textOnly: number
  readonly turns: number
  /** References to media, repetitions included. */
  readonly media: Readonly<Record<Modality, number>>
  /** Distinct media files that were looked at. */
  readonly files: number
  /** False if reading had to stop early: then records after the last problem are unknown. */
  readonly complete: boolean
  readonly problemCount: number
  /** The first `limit` problems, in file order. */
  readonly problems: readonly ErrorData[]
  /** Most frequent first. */
  readonly byCode: readonly ProblemGroup[]
  /** Problems of media files by folder, most frequent first. */
  readonly byDirectory: readonly DirectoryGroup[]
  /** What is legal and yet worth knowing: `DATASET_DUPLICATE_ID`, `DATASET_UNUSED_FIELD` (one group a field). */
  readonly warnings: readonly ProblemGroup[]
}

/**
 * Reads a whole dataset and reports what is wrong with it. Only an aborted signal and defects of ours throw; every problem of the data is in the report.
 *
 * @example
 * const report = await validateDataset(llava('llava.json', { root: 'images' }))
 * for (const { code, count } of report.byCode) console.log(code, count)
 */
export async function validateDataset(
  source: DatasetSource & { readonly root?: string },
  { root = source.root, checkFiles = true, limit = 100, concurrency = 32, signal }: ValidateOptions = {},
): Promise<DatasetReport> {
  if (checkFiles && root === undefined) {
    throw new ModalignError({
      code: 'DATASET_ROOT',
      got: `no root for ${source.name}`,
      expected: 'the folder that media paths are relative to',
    })
  }
  const tally = new Tally(limit)
  const files = checkFiles && root !== undefined ? new MediaFiles(root) : undefined
  // Bad records and samples wait here together, so that problems keep the order of the file.
  let waiting: (ModalignError | Sample)[] = []
  const settle = async (): Promise<void> => {
    const items = waiting
    waiting = []
    await files?.look(
      items.flatMap((item) => (item instanceof ModalignError ? [] : mediaOf(item).map(({ source }) => source))),
      concurrency,
    )
    for (const item of items) {
      if (item instanceof ModalignError) tally.problem(item.details)
      else tally.sample(item, files)
    }
  }
  let complete = true
  try {
    for await (const sample of source.samples({ onBad: (error) => waiting.push(error), ...(signal && { signal }) })) {
      waiting.push(sample)
      if (waiting.length >= 8 * concurrency) await settle()
      signal?.throwIfAborted()
    }
  } catch (error) {
    if (!(error instanceof ModalignError)) throw error
    complete = false
    waiting.push(error)
  }
  await settle()
  return tally.report(source.name, complete, files?.count ?? 0)
}

interface MediaReference {
  readonly type: Modality
  readonly source: string
}

function mediaOf(sample: Sample): readonly MediaReference[] {
  return [...sample.turns, ...(sample.rejected ?? [])].flatMap(({ content }) =>
    content.flatMap((part) => (part.type !== 'text' && typeof part.source === 'string' ? [{ type: part.type, source: part.source }] : [])),
  )
}

type FileFault = Pick<ErrorData, 'code' | 'got' | 'expected' | 'hint'>

/** What is known about the media files below a root. */
class MediaFiles {
  private readonly root: string
  /** undefined: nothing wrong. */
  private readonly known = new Map<string, FileFault | 'empty' | undefined>()
  private readonly listings = new Map<string, Promise<ReadonlyMap<string, string>>>()

  constructor(root: string) {
    this.root = root
  }

  get count(): number {
    return this.known.size
  }

  fault({ type, source }: MediaReference): FileFault | undefined {
    const found = this.known.get(source)
    if (found !== 'empty') return found
    return {
      code: `${type.toUpperCase()}_EMPTY`,
      got: `${source} of 0 bytes`,
      expected: `a file with ${type === 'image' ? 'an image' : type} in it`,
    }
  }

  async look(paths: readonly string[], concurrency: number): Promise<void> {
    const fresh = [...new Set(paths)].filter((path) => !this.known.has(path))
    let next = 0
    const worker = async (): Promise<void> => {
      for (let path = fresh[next++]; path !== undefined; path = fresh[next++]) this.known.set(path, await this.check(path))
    }
    await Promise.all(Array.from({ length: Math.min(concurrency, fresh.length) }, worker))
  }

  private async check(path: string): Promise<FileFault | 'empty' | undefined> {
    const refused = mediaPathFault(path)
    if (refused !== undefined) return refused
    const whole = join(this.root, path)
    try {
      const found = await stat(whole)
      if (found.isFile()) return found.size === 0 ? 'empty' : undefined
      return {
        code: 'FILE_NOT_REGULAR',
        got: `${path}, ${found.isDirectory() ? 'a folder' : 'a pipe, socket or device'}`,
        expected: 'a regular file',
      }
    } catch (error) {
      const meaning = fileError(error, whole)
      if (!(meaning instanceof ModalignError)) throw error
      const { code, got } = meaning.details
      const similar = errnoOf(error) === 'ENOENT' ? await this.similar(path) : undefined
      const hint = similar === undefined ? meaning.details.hint : `did you mean ${similar}`
      return { code, got: `${path}: ${got}`, expected: `a file below ${this.root}`, ...(hint !== undefined && { hint }) }
    }
  }

  /** The same path but for case or Unicode normalisation: what differs between file systems. */
  private async similar(path: string): Promise<string | undefined> {
    let found = ''
    for (const segment of path.split('/')) {
      const name = (await this.listing(found)).get(fold(segment))
      if (name === undefined) return undefined
      found = posix.join(found, name)
    }
    return found === path ? undefined : found
  }

  private listing(directory: string): Promise<ReadonlyMap<string, string>> {
    const known = this.listings.get(directory)
    if (known !== undefined) return known
    const listing = listFolded(join(this.root, directory))
    this.listings.set(directory, listing)
    return listing
  }
}

const fold = (name: string): string => name.normalize('NFC').toLowerCase()

/** Folders beyond this many names are not searched for similar ones. */
const longestListing = 200_000

async function listFolded(directory: string): Promise<ReadonlyMap<string, string>> {
  const names = new Map<string, string>()
  try {
    for await (const { name } of await opendir(directory)) {
      if (names.size === longestListing) return new Map()
      names.set(fold(name), name)
    }
  } catch (error) {
    // The list only serves a hint: a folder that cannot be listed gives none, and the file's own problem is reported all the same.
    if (errnoOf(error) === undefined) throw error
  }
  return names
}

interface Group {
  count: number
  readonly first: ErrorData
}

class Tally {
  private readonly limit: number
  private readonly problems: ErrorData[] = []
  private readonly codes = new Map<string, Group>()
  private readonly warned = new Map<string, Group>()
  private readonly directories = new Map<string, { readonly directory: string; readonly code: string; readonly files: Set<string> }>()
  private readonly ids = new Set<string>()
  /** Records with a problem that have not come as samples. */
  private readonly unread = new Set<number>()
  private problemCount = 0
  private samples = 0
  private good = 0
  private textOnly = 0
  private turns = 0
  private readonly media: Record<Modality, number> = { image: 0, audio: 0, video: 0 }

  constructor(limit: number) {
    this.limit = limit
  }

  problem(problem: ErrorData): void {
    this.problemCount++
    if (this.problems.length < this.limit) this.problems.push(problem)
    count(this.codes, problem.code, problem)
    if (problem.record !== undefined) this.unread.add(problem.record)
  }

  sample(sample: Sample, files: MediaFiles | undefined): void {
    const references = mediaOf(sample)
    const { file, record, fields } = sample.origin ?? { fields: {} }
    const place = { ...(file !== undefined && { file }), ...(record !== undefined && { record }) }
    this.samples++
    this.turns += sample.turns.length
    if (references.length === 0) this.textOnly++
    let faulty = record !== undefined && this.unread.has(record)
    for (const reference of references) {
      this.media[reference.type]++
      const fault = files?.fault(reference)
      if (fault === undefined) continue
      faulty = true
      this.problem(new ModalignError({ ...fault, ...place }).details)
      const directory = dirname(reference.source)
      const key = `${fault.code}\n${directory}`
      const group = this.directories.get(key) ?? { directory, code: fault.code, files: new Set<string>() }
      group.files.add(reference.source)
      this.directories.set(key, group)
    }
    if (!faulty) this.good++
    if (record !== undefined) this.unread.delete(record)
    if (this.ids.has(sample.id))
      count(this.warned, 'DATASET_DUPLICATE_ID', { code: 'DATASET_DUPLICATE_ID', ...place, got: sample.id, expected: 'an id of its own' })
    this.ids.add(sample.id)
    for (const field of Object.keys(fields)) {
      const hint = 'kept in origin.fields, not used'
      count(this.warned, `field ${field}`, { code: 'DATASET_UNUSED_FIELD', ...place, field: `/${field}`, hint })
    }
  }

  report(name: string, complete: boolean, files: number): DatasetReport {
    const groups = (of: ReadonlyMap<string, Group>): ProblemGroup[] =>
      [...of.values()].map(({ count, first }) => ({ code: first.code, count, first })).sort((a, b) => b.count - a.count)
    return {
      name,
      records: this.samples + this.unread.size,
      good: this.good,
      textOnly: this.textOnly,
      turns: this.turns,
      media: { ...this.media },
      files,
      complete,
      problemCount: this.problemCount,
      problems: this.problems,
      byCode: groups(this.codes),
      byDirectory: [...this.directories.values()]
        .map(({ directory, code, files }) => ({ directory, code, count: files.size }))
        .sort((a, b) => b.count - a.count || (a.directory < b.directory ? -1 : 1)),
      warnings: groups(this.warned),
    }
  }
}

function count(groups: Map<string, Group>, key: string, first: ErrorData): void {
  const group = groups.get(key)
  if (group === undefined) groups.set(key, { count: 1, first })
  else group.count++
}
