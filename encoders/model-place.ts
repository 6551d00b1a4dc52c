/** Where an encoder's model lies: a path, or a name on the Hugging Face Hub, as with language models. */
import { type DownloadOptions, type ResolveOptions, resolveModel } from '../src/weights/hub/resolve-model.ts'

/** What every encoder with a `model` takes: it may be `ORGANISATION/MODEL[/FILE][@REVISION]`, looked for in the Hugging Face cache. */
export interface ModelDownload {
  /** Whether a model that is not on this machine may be downloaded from the Hub. Default false: nothing is sent anywhere. */
  readonly download?: boolean | undefined
  readonly onDownload?: DownloadOptions['onDownload'] | undefined
}

/**
 * The options with a path for a model, and without those of downloads.
 *
 * @param files of what the model consists on the Hub, where they have names of their own
 * @throws {ModalignError} `HUB_...` for a name that the cache has not, and what {@link resolveModel} throws
 */
export async function atPath<T extends ModelDownload & { readonly model?: string | Uint8Array | undefined }>(
  options: T,
  files?: ResolveOptions['files'],
): Promise<Omit<T, keyof ModelDownload>> {
  const { download, onDownload, ...rest } = options
  const { model } = rest
  if (typeof model !== 'string' || model === '') return rest
  const path = await resolveModel(model, {
    download: download === true,
    ...(onDownload !== undefined && { onDownload }),
    ...(files !== undefined && { files: { config: files.config, weights: files.weights } }),
  })
  return { ...rest, model: path }
}
