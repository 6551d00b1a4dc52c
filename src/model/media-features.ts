/** From media to features: decoded, prepared, and encoded together with others of their size. */
import { ModalignError } from '../errors.ts'
import type { NamedTensors } from '../tensors.ts'
import type { MediaPart } from '../text/conversation.ts'
import type { Branch } from './branches.ts'
import type { Encoder, MediaSize, Modality } from './contracts.ts'
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

/** What an encoder takes of one medium. */
export interface PreparedInputs {
  readonly inputs: NamedTensors
  /** Of the decoded medium: what the encoder's grid hangs on. */
  readonly size: MediaSize
  /** How many features it will have. */
  readonly tokens: number
}

/** A medium on its way to the encoder and the projector behind it. */
export interface PreparedMedium extends PreparedInputs {
  readonly modality: Modality
  readonly tokensOut: number
}

/** @throws what decoding and preprocessing throw */
export async function prepareMedium(
  { encoder, projector }: Branch,
  reader: MediaReader,
  part: MediaPart,
  options: ReadOptions,
): Promise<PreparedMedium> {
  const prepared = await prepareInputs(encoder, reader, part, options)
  return { ...prepared, modality: part.type, tokensOut: projectedTokens(projector, encoder.grid(prepared.size)) }
}

/** @throws what decoding and preprocessing throw */
export async function prepareInputs(encoder: Encoder, reader: MediaReader, part: MediaPart, options: ReadOptions): Promise<PreparedInputs> {
  const { size, inputs } = await decoded(encoder, reader, part, options)
  return { inputs, size, tokens: gridTokens(encoder.grid(size)) }
}

async function decoded(
  encoder: Encoder,
  reader: MediaReader,
  { type, source, region }: MediaPart,
  options: ReadOptions,
): Promise<{ readonly size: MediaSize; readonly inputs: NamedTensors }> {
  switch (type) {
    case 'image': {
      const { preparation } = encoder
      if (preparation !== undefined && reader.preparedImage !== undefined) {
        const { tensor, width, height } = await reader.preparedImage(source, preparation.preprocessing, options)
        return { size: { width, height }, inputs: preparation.inputs(tensor) }
      }
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
    const encoded = await encodeInputs(branchOf(first.modality).encoder, alike, signal)
    for (const [place, index] of indices.entries()) {
      const data = encoded[place]
      if (data !== undefined) found[index] = { modality: first.modality, data, tokensOut: alike[place]?.tokensOut ?? 0 }
    }
  }
  return found
}

/** Features [tokens, width] of each medium; all have one number of tokens. @throws ENCODER_OUTPUT_SIZE, and what encoding throws */
export async function encodeInputs(
  encoder: Encoder,
  media: readonly PreparedInputs[],
  signal?: AbortSignal,
): Promise<readonly Float32Array[]> {
  const { tokens, width, data } = await encoder.encode(
    media.map(({ inputs }) => inputs),
    signal === undefined ? {} : { signal },
  )
  const other = media.find((one) => one.tokens !== tokens)
  if (other !== undefined)
    throw new ModalignError({
      code: 'ENCODER_OUTPUT_SIZE',
      field: encoder.label,
      got: `${tokens} tokens`,
      expected: `${other.tokens}, as its grid says`,
    })
  const each = tokens * width
  // Copies of their own, so that the batch's buffer can go.
  return media.map((_, place) => data.slice(place * each, (place + 1) * each))
}

function noReader(type: Modality): ModalignError {
  return new ModalignError({
    code: 'MEDIA_READER',
    got: type,
    expected: 'a medium that this reader decodes',
    hint: 'compose the model with another `reader`',
  })
}
