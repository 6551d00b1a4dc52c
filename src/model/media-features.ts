/** From media to features: decoded, prepared, and encoded together with others of their size. */
import { ModalignError } from '../errors.ts'
import type { NamedTensors } from '../tensors.ts'
import type { MediaPart } from '../text/conversation.ts'
import type { Branch } from './branches.ts'
import type { MediaSize, Modality } from './contracts.ts'
import type { MediaReader, ReadOptions } from './media-reader.ts'
import { gridTokens, projectedTokens } from './token-grid.ts'

/** The features of one medium. */
export interface MediumFeatures {
  readonly modality: Modality
  /** float32 [tokens, width]. */
  readonly data: Float32Array
  /** How many of the language model's tokens they become. */
  readonly tokensOut: number
}

/** A medium on its way to the encoder. */
export interface PreparedMedium {
  readonly modality: Modality
  readonly inputs: NamedTensors
  /** Of the decoded medium: what the encoder's grid hangs on. */
  readonly size: MediaSize
  /** How many features it will have. */
  readonly tokens: number
  readonly tokensOut: number
}

/** @throws what decoding and preprocessing throw */
export async function prepareMedium(branch: Branch, reader: MediaReader, part: MediaPart, options: ReadOptions): Promise<PreparedMedium> {
  const { encoder, projector } = branch
  const { size, inputs } = await decoded(branch, reader, part, options)
  const grid = encoder.grid(size)
  return { modality: part.type, inputs, size, tokens: gridTokens(grid), tokensOut: projectedTokens(projector, grid) }
}

async function decoded(
  { encoder }: Branch,
  reader: MediaReader,
  { type, source, region }: MediaPart,
  options: ReadOptions,
): Promise<{ readonly size: MediaSize; readonly inputs: NamedTensors }> {
  switch (type) {
    case 'image': {
      const image = await reader.image(source, options)
      return { size: { width: image.width, height: image.height }, inputs: await encoder.preprocess(image) }
    }
    case 'audio': {
      const { sampleRateHz } = encoder
      if (reader.audio === undefined) throw noReader(type)
      const audio = await reader.audio(source, {
        ...options,
        ...(sampleRateHz !== undefined && { sampleRateHz }),
        ...(region?.type === 'span' && { span: region }),
      })
      return { size: { seconds: audio.samples.length / audio.sampleRateHz }, inputs: await encoder.preprocess(audio) }
    }
    case 'video': {
      if (reader.video === undefined) throw noReader(type)
      const { sampling } = encoder
      const video = await reader.video(source, {
        ...options,
        ...(sampling !== undefined && { sampling }),
        ...(region?.type === 'span' && { span: region }),
      })
      const [first] = video.frames
      const size = { frames: video.frames.length, ...(first && { width: first.width, height: first.height }) }
      return { size, inputs: await encoder.preprocess(video) }
    }
    default:
      return type satisfies never
  }
}

/** Encodes media of any modality; those of one modality and one number of tokens go through the encoder together. @throws ENCODER_OUTPUT_SIZE, and what encoding throws */
export async function encodeMedia(
  branchOf: (modality: Modality) => Branch,
  media: readonly PreparedMedium[],
  signal?: AbortSignal,
): Promise<readonly MediumFeatures[]> {
  const groups = new Map<string, number[]>()
  for (const [index, { modality, tokens }] of media.entries()) {
    const key = `${modality} ${tokens}`
    groups.set(key, [...(groups.get(key) ?? []), index])
  }
  const found: MediumFeatures[] = []
  for (const indices of groups.values()) {
    const alike = indices.flatMap((index) => media[index] ?? [])
    const [first] = alike
    if (first === undefined) continue
    const { encoder } = branchOf(first.modality)
    const { tokens, width, data } = await encoder.encode(
      alike.map(({ inputs }) => inputs),
      signal === undefined ? {} : { signal },
    )
    if (tokens !== first.tokens)
      throw new ModalignError({
        code: 'ENCODER_OUTPUT_SIZE',
        field: encoder.label,
        got: `${tokens} tokens`,
        expected: `${first.tokens}, as its grid says`,
      })
    const each = tokens * width
    for (const [place, index] of indices.entries()) {
      // A copy of its own, so that the batch's buffer can go.
      const own = data.slice(place * each, (place + 1) * each)
      found[index] = { modality: first.modality, data: own, tokensOut: alike[place]?.tokensOut ?? 0 }
    }
  }
  return found
}

function noReader(type: Modality): ModalignError {
  return new ModalignError({
    code: 'MEDIA_READER',
    got: type,
    expected: 'a medium that this reader decodes',
    hint: 'compose the model with another `reader`',
  })
}
