/** The contracts that encoders, projectors, language models and datasets meet. Types only: no file here does anything. */
import type { z } from 'zod'
import type { Parameter, ParameterScope, Trainables } from '../graph/parameters.ts'
import type { Tensor } from '../graph/tensor.ts'
import type { JsonObject } from '../io/json.ts'
import type { AdapterSettings } from '../llm/adapters/settings.ts'
import type { WeightLookup } from '../llm/decoder.ts'
import type { FrameSampling } from '../media/frame-sampling.ts'
import type { ImagePreprocessing } from '../media/preprocess.ts'
import type { Device } from '../runtime/session.ts'
import type { NamedTensors, TensorValue } from '../tensors.ts'

export type { JsonObject, JsonValue } from '../io/json.ts'

export type Modality = 'image' | 'audio' | 'video'

/**
 * Where the tokens of one medium lie: tiles, frames, rows; what separates them. One tile is one segment. Order: segment, frame, row, column. Separators are tokens of the
 * language model, not features: an encoder gives none, and every model learns one embedding for them.
 */
export interface TokenGrid {
  readonly segments: readonly TokenSegment[]
}
export interface TokenSegment {
  readonly frames: number
  readonly rows: number
  readonly columns: number
  /** Seconds at which each frame lies, where the medium has time. */
  readonly time?: readonly number[]
  readonly separator?: 'row' | 'segment'
  /** What is written before each frame (`''`: nothing), and with one more behind the last: text of the language model's, no features. */
  readonly labels?: readonly string[]
}

/** 8-bit RGB pixels, row-major, `data.length === 3 * width * height`. */
export interface DecodedImage {
  readonly width: number
  readonly height: number
  readonly data: Uint8Array
}
/** Mono samples in [-1, 1]. */
export interface DecodedAudio {
  readonly sampleRateHz: number
  readonly samples: Float32Array
}
export interface DecodedVideo {
  readonly frames: readonly DecodedImage[]
  readonly timesSeconds: readonly number[]
  /** When the last frame ends. */
  readonly endSeconds?: number
}
export interface DecodedMedia {
  readonly image: DecodedImage
  readonly audio: DecodedAudio
  readonly video: DecodedVideo
}

export interface MediaSize {
  readonly width?: number
  readonly height?: number
  readonly frames?: number
  readonly seconds?: number
  /** Video: when each frame is shown, from the beginning of what was read. */
  readonly timesSeconds?: readonly number[]
}

export interface EncoderRecipe {
  readonly family: string
  /** Absolute path of the model file; absent: the one that the family brings along. */
  readonly model?: string
  readonly options: JsonObject
}

/** An encoder as a graph, so that it can be part of a training step. It sees units: pictures, or windows of a sound. */
export interface EncoderGraph {
  /** The graph's inputs. The first axis of each counts the units. */
  readonly inputs: readonly Tensor[]
  /** The units of a medium that `preprocess` has prepared. */
  units(inputs: NamedTensors): readonly EncoderUnit[]
  /** The values of `inputs`, by their names, for units of one size. */
  feeds(units: readonly EncoderUnit[]): NamedTensors
  /** `inputs` -> features [units, tokens, width], prefix tokens dropped. `change` looks weights up otherwise, as adapters do. */
  build(inputs: readonly Tensor[], change?: (lookup: WeightLookup) => WeightLookup): Tensor
}
export interface EncoderUnit {
  /** [1, ...] */
  readonly value: TensorValue
  /** How many of its features are the medium's: the first ones. */
  readonly tokens: number
}

/** What of an encoder is trained: see `adaptEncoder`. */
export interface TrainedEncoder {
  /** The encoder as it was published. */
  readonly base: Encoder
  readonly settings: AdapterSettings
  /** Graph inputs that training updates, by names such as `image-encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight`. */
  readonly declared: readonly Parameter[]
  /** Their present values. */
  readonly parameters: Trainables
  /** Takes values of all parameters; the next `encode` uses them. @throws ADAPTER_PARAMETERS naming the first difference */
  setParameters(values: Trainables): void
  /** The encoder's, with the parameters in their places. */
  readonly graph: Omit<EncoderGraph, 'build'> & { build(inputs: readonly Tensor[]): Tensor }
}

/** `preprocess` of an image encoder in two halves, the first of them plain data: decoding processes do it, and the pixels of whole pictures never cross. */
export interface ImagePreparation {
  readonly preprocessing: ImagePreprocessing
  /** What the encoder takes, of the tensor that the preprocessing gave. */
  inputs(tensor: TensorValue): NamedTensors
  /** `inputs` of each and `encode`, without a tensor for each picture: of what `transformImage` gave. */
  encodePictures?(pictures: readonly DecodedImage[], options?: { readonly signal?: AbortSignal }): Promise<Features>
}

/** An encoder: pixels or samples in, features `[count, tokens, width]` out. Frozen, unless `trained` says what is not. */
export interface Encoder<M extends Modality = Modality> {
  readonly modality: M
  /** What the features depend on: weights, preprocessing, layer. Two encoders with one fingerprint give the same features. */
  readonly fingerprint: string
  /** How a person recognises it: a family and a file. */
  readonly label: string
  /** How to make it again: a catalogue's name and options as plain data; paths in it are absolute. Absent where it was made from bytes or by hand. */
  readonly recipe?: EncoderRecipe
  /** Channels of one feature. */
  readonly width: number
  /** Whether `grid` depends on the size of the input, or has separators. Then media of several lengths share a batch, padded and with a mask. Default: false for images, true for audio and video. */
  readonly gridVaries?: boolean
  /** Audio: the rate that it hears at. Whoever decodes for it resamples to this rate. Default: the rate of each file. */
  readonly sampleRateHz?: number
  /** Video: which frames it looks at. Whoever decodes for it takes those. Default: the decoder's. */
  readonly sampling?: FrameSampling
  /** Prefix tokens (CLS, registers) are declared by the encoder and dropped before the features leave it. */
  grid(input: MediaSize): TokenGrid
  preprocess(input: DecodedMedia[M]): Promise<NamedTensors>
  /** Images. Absent where preprocessing is more than plain data can say. */
  readonly preparation?: ImagePreparation
  /** Features of several inputs of one number of tokens at once: float32 `[inputs.length, tokens, width]`. */
  encode(inputs: readonly NamedTensors[], options?: { readonly signal?: AbortSignal }): Promise<Features>
  /** Absent where the encoder is a session over a file. */
  readonly graph?: EncoderGraph
  /** Absent: nothing. */
  readonly trained?: TrainedEncoder
  /** The device that runs it, where it is known. */
  readonly device?: Device
  dispose(): Promise<void>
}
/** float32, row-major, `data.length === count * tokens * width`. */
export interface Features {
  readonly count: number
  readonly tokens: number
  readonly width: number
  readonly data: Float32Array
}

/** Several encoders give several feature tensors `[media, tokens, width]`; `mask`, float32 `[media, tokens]`, is 1 at tokens and 0 at padding, and absent where there is none; `positions` and `time` place tokens; `instruction` is there for projectors that read the question. */
export interface ProjectorInput {
  readonly features: readonly Tensor[]
  readonly mask?: Tensor
  readonly positions?: Tensor
  readonly time?: Tensor
  readonly instruction?: Tensor
}

export interface ProjectorContext<O> {
  /** Width of the language model's token embeddings. */
  readonly outputWidth: number
  /** Root mean square of the language model's token embeddings: the size at which it reads best. 1 where it is not known. */
  readonly embeddingRms: number
  /** How the features that come in lie; undefined where media of several sizes share a batch: then `mask` tells their tokens from padding. */
  readonly grid: TokenGrid | undefined
  readonly options: O
}

/** How features become token embeddings. Its gradient is derived, never written. */
export interface ProjectorDefinition<O = unknown> {
  readonly name: string
  readonly options: z.ZodType<O>
  /** How many tokens come out, and how they lie. */
  tokens(grid: TokenGrid, options: O): TokenGrid
  /** The features that come in are filled up with zeros to a multiple of so many tokens. Default 1. */
  multipleOf?(options: O): number
  /** features `[media, tokens, width]` -> `[media, tokensOut, outputWidth]`. */
  build(input: ProjectorInput, scope: ParameterScope, context: ProjectorContext<O>): Tensor
}
/** A definition with its options filled in: what `compose` takes and what a saved projector names. */
export interface Projector<O = unknown> {
  readonly definition: ProjectorDefinition<O>
  readonly options: O
}

export type Role = 'system' | 'user' | 'assistant' | 'tool'
/** A path (relative to the dataset's root), or bytes. */
export type MediaSource = string | Uint8Array
/** A box in source pixels or a span in seconds. */
export type Region =
  | { readonly type: 'box'; readonly x: number; readonly y: number; readonly width: number; readonly height: number }
  | { readonly type: 'span'; readonly startSeconds: number; readonly endSeconds: number }
export type Part =
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: Modality; readonly source: MediaSource; readonly region?: Region }
export interface Turn {
  readonly role: Role
  readonly content: readonly Part[]
  /** 0: not supervised. Absent: assistant turns are supervised, others are not. */
  readonly weight?: number
}
/** Where a sample came from, so that every error can name it. `fields`: what the format did not use, kept as it was. */
export interface Origin {
  readonly file: string
  readonly record: number
  readonly dataset?: string
  readonly task?: string
  readonly domain?: string
  readonly licence?: string
  readonly fields: JsonObject
}
export interface Sample {
  readonly id: string
  readonly turns: readonly Turn[]
  /** Preference data: the turns that were rejected. */
  readonly rejected?: readonly Turn[]
  readonly origin?: Origin
}
export interface DatasetSource {
  readonly name: string
  /** The folder that media paths are relative to and may not leave. Absent: sources are bytes. */
  readonly root?: string
  readonly length?: number
  /** Yields samples in file order. Bad records throw, or are reported through `onBad` and left out. */
  samples(options?: SampleOptions): AsyncIterable<Sample>
}
export interface SampleOptions {
  readonly signal?: AbortSignal
  /** Called for each bad record; without it the first bad record throws. */
  readonly onBad?: (error: import('../errors.ts').ModalignError) => void
}
