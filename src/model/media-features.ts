/** From media to features: decoded, prepared, and encoded together with others of their size. */
import { ModalignError } from '../errors.ts'
import { cropToBox } from '../media/crop.ts'
import { imageTensor } from '../media/preprocess.ts'
import type { NamedTensors } from '../tensors.ts'
import type { MediaPart } from '../text/conversation.ts'
import type { Tokenizer } from '../text/tokenizer.ts'
import type { Branch } from './branches.ts'
import type { DecodedImage, Encoder, EncoderUnit, MediaSize, Modality, Projector, TokenGrid } from './contracts.ts'
import type { MediaReader, ReadOptions } from './media-reader.ts'
import { gridFeatures, gridKey, gridTokens, labelPlaces, projectedGrid, separatorPlaces } from './token-grid.ts'

/** The features of one medium. */
export interface MediumFeatures {
  readonly modality: Modality
  /** float32 [tokens, width]; empty where `units` are. */
  readonly data: Float32Array
  /** In place of features that a trained encoder is to make. */
  readonly units?: readonly EncoderUnit[]
  /** How many of the language model's tokens they become, separators included. */
  readonly tokensOut: number
  /** Which of those tokens are separators, in order. Absent: none. */
  readonly separators?: readonly number[]
  /** Which of those tokens are text, and their ids, in order. Absent: none. */
  readonly texts?: readonly TextPlace[]
}

/** A token of text among those of a medium. */
export interface TextPlace {
  readonly place: number
  readonly id: number
}

/** What an encoder takes of one medium. */
export interface PreparedInputs {
  /** Of a picture with `pixels` they are made when they are asked for, each time. */
  readonly inputs: NamedTensors
  /** What a decoding process made of a picture: a quarter of the size of its tensor. */
  readonly pixels?: DecodedImage
  /** Of the decoded medium: what the encoder's grid hangs on. */
  readonly size: MediaSize
  /** How many features it will have. */
  readonly tokens: number
  /** Media of one encoder whose features lie alike, and which it can encode together, have the same. */
  readonly layout: string
}

/** A medium on its way to the encoder and the projector behind it. */
export interface PreparedMedium extends PreparedInputs, ProjectedPlaces {
  readonly modality: Modality
}

/** What a medium becomes among the language model's tokens. */
export type ProjectedPlaces = Pick<MediumFeatures, 'tokensOut' | 'separators' | 'texts'>

/**
 * What features that lie so become.
 *
 * @param tokenizer the language model's, for text among them
 * @throws {ModalignError} `PROJECTOR_LABELS` for a projector that joins the frames between which text is to stand
 */
export function projectedPlaces(projector: Projector, grid: TokenGrid, tokenizer: Pick<Tokenizer, 'encodeSegments'>): ProjectedPlaces {
  const projected = projectedGrid(projector, grid)
  const separators = separatorPlaces(projected)
  const labels = labelPlaces(projected)
  const tokensOut = gridTokens(projected)
  if (labels.length < labelPlaces(grid).length || (labels.length > 0 && separators.length > 0)) {
    throw new ModalignError({
      code: 'PROJECTOR_LABELS',
      field: projector.definition.name,
      got: separators.length > 0 ? 'separators between frames with timestamps' : 'tokens that belong to no frame',
      expected: 'a projector that keeps frames apart, for timestamps between them',
    })
  }
  if (labels.length === 0) return { tokensOut, ...(separators.length > 0 && { separators }) }
  const texts: TextPlace[] = []
  for (const { behind, text } of labels)
    for (const id of tokenizer.encodeSegments([{ text }], true).ids) texts.push({ place: behind + texts.length, id })
  return { tokensOut: tokensOut + texts.length, texts }
}

/** Ids of a conversation with the text that stands among its media's tokens. */
export function withTexts(
  ids: Int32Array,
  spans: readonly { readonly start: number }[],
  media: readonly Pick<MediumFeatures, 'texts'>[],
): Int32Array {
  if (media.every(({ texts }) => texts === undefined)) return ids
  const result = ids.slice()
  for (const [index, { start }] of spans.entries()) for (const { place, id } of media[index]?.texts ?? []) result[start + place] = id
  return result
}

/** @throws what decoding and preprocessing throw */
export async function prepareMedium(
  { encoder, projector }: Branch,
  reader: MediaReader,
  part: MediaPart,
  options: ReadOptions,
  tokenizer: Pick<Tokenizer, 'encodeSegments'>,
): Promise<PreparedMedium> {
  const prepared = await prepareInputs(encoder, reader, part, options)
  const { pixels, size, tokens, layout } = prepared
  const places = projectedPlaces(projector, encoder.grid(size), tokenizer)
  return {
    get inputs() {
      return prepared.inputs
    },
    ...(pixels !== undefined && { pixels }),
    size,
    tokens,
    layout,
    modality: part.type,
    ...places,
  }
}

/** @throws what decoding and preprocessing throw */
export async function prepareInputs(encoder: Encoder, reader: MediaReader, part: MediaPart, options: ReadOptions): Promise<PreparedInputs> {
  const medium = await decoded(encoder, reader, part, options)
  const grid = encoder.grid(medium.size)
  return Object.assign(medium, { tokens: gridFeatures(grid), layout: gridKey(grid) })
}

async function decoded(
  encoder: Encoder,
  reader: MediaReader,
  { type, source, region }: MediaPart,
  options: ReadOptions,
): Promise<Pick<PreparedInputs, 'size' | 'inputs' | 'pixels'>> {
  switch (type) {
    case 'image': {
      const { preparation } = encoder
      // Only the part that a box names is looked at, as only the part of a sound that a span names is heard.
      const box = region?.type === 'box' ? region : undefined
      if (preparation !== undefined && reader.preparedImage !== undefined && box === undefined) {
        const { preprocessing } = preparation
        const { pixels, width, height } = await reader.preparedImage(source, preprocessing, options)
        return {
          size: { width, height },
          pixels,
          get inputs() {
            return preparation.inputs(imageTensor(pixels, preprocessing))
          },
        }
      }
      const whole = await reader.image(source, options)
      const image = box === undefined ? whole : cropToBox(whole, box)
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
      const from = region?.type === 'span' ? region.startSeconds : 0
      const size = {
        frames: video.frames.length,
        ...(first && { width: first.width, height: first.height }),
        ...(video.endSeconds !== undefined && { seconds: video.endSeconds - from }),
        timesSeconds: video.timesSeconds.map((seconds) => seconds - from),
      }
      return { size, inputs: await encoder.preprocess(video) }
    }
    default:
      return type satisfies never
  }
}

/** Encodes media of any modality; those of one modality whose features lie alike go through the encoder together. @throws ENCODER_OUTPUT_SIZE, and what encoding throws */
export async function encodeMedia(
  branchOf: (modality: Modality) => Branch,
  media: readonly PreparedMedium[],
  signal?: AbortSignal,
): Promise<readonly MediumFeatures[]> {
  const groups = new Map<string, number[]>()
  for (const [index, { modality, layout }] of media.entries()) {
    const key = `${modality} ${layout}`
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
      const medium = alike[place]
      if (data === undefined || medium === undefined) continue
      const { modality, tokensOut, separators, texts } = medium
      // A copy of its own, so that the batch's can go.
      found[index] = {
        modality,
        data: data.slice(),
        tokensOut,
        ...(separators !== undefined && { separators }),
        ...(texts !== undefined && { texts }),
      }
    }
  }
  return found
}

/** Features [tokens, width] of each medium, parts of one array; all have one layout. @throws ENCODER_OUTPUT_SIZE, and what encoding throws */
export async function encodeInputs(
  encoder: Encoder,
  media: readonly PreparedInputs[],
  signal?: AbortSignal,
): Promise<readonly Float32Array[]> {
  const options = signal === undefined ? {} : { signal }
  const pictures = media.flatMap(({ pixels }) => pixels ?? [])
  const { preparation } = encoder
  const { tokens, width, data } =
    preparation?.encodePictures !== undefined && pictures.length === media.length
      ? await preparation.encodePictures(pictures, options)
      : await encoder.encode(
          media.map(({ inputs }) => inputs),
          options,
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
  return media.map((_, place) => data.subarray(place * each, (place + 1) * each))
}

function noReader(type: Modality): ModalignError {
  return new ModalignError({
    code: 'MEDIA_READER',
    got: type,
    expected: 'a medium that this reader decodes',
    hint: 'compose the model with another `reader`',
  })
}
