/** Rotary positions: which angles a config asks for, and the tables of them.   Su et al. 2021; scaling as Transformers' modeling_rope_utils has it. */
import { z } from 'zod'
import { rotaryEmbedding } from '../graph/composites/rotary-embedding.ts'
import { add } from '../graph/operators/add.ts'
import { cast } from '../graph/operators/cast.ts'
import { concat } from '../graph/operators/concat.ts'
import { greaterOrEqual } from '../graph/operators/greater-or-equal.ts'
import { reduceMax } from '../graph/operators/reduce-max.ts'
import { split } from '../graph/operators/split.ts'
import { unsqueeze } from '../graph/operators/unsqueeze.ts'
import { where } from '../graph/operators/where.ts'
import { constant, fixedDim, integers, type Tensor } from '../graph/tensor.ts'
import type { DecodeContext } from './decoder.ts'

export interface RotaryTables {
  /** float32 [positions, rotated channels / 2]; twice the positions where there are angles for long sequences. */
  readonly cos: Tensor
  readonly sin: Tensor
  /** Sequences of more tokens than `after` take their angles from row `offset` on. */
  readonly long?: { readonly after: number; readonly offset: number }
}

const factor = z.number().min(1)
const channelFactors = z.array(z.number().positive()).readonly()
const positionCount = z.int().positive()
const shared = {
  rope_theta: z.number().positive().optional(),
  partial_rotary_factor: z.number().positive().max(1).optional(),
}

/** What config.json says of the angles: under `rope_parameters` as Transformers 5 writes it, under `rope_scaling` as earlier ones did. */
export const ropeScaling = z.preprocess(
  renamed,
  z.discriminatedUnion('rope_type', [
    z.object({ ...shared, rope_type: z.literal('default') }),
    z.object({ ...shared, rope_type: z.literal('linear'), factor }),
    /** Larger bases for sequences beyond max_position_embeddings, which is where our sequences end: up to there it is the default. */
    z.object({ ...shared, rope_type: z.literal('dynamic'), factor }),
    z.object({
      ...shared,
      rope_type: z.literal('llama3'),
      factor,
      low_freq_factor: z.number().positive(),
      high_freq_factor: z.number().positive(),
      original_max_position_embeddings: positionCount,
    }),
    z.object({
      ...shared,
      rope_type: z.literal('yarn'),
      factor,
      original_max_position_embeddings: positionCount.optional(),
      attention_factor: z.number().positive().nullish(),
      beta_fast: z.number().positive().nullish(),
      beta_slow: z.number().positive().nullish(),
      mscale: z.number().nullish(),
      mscale_all_dim: z.number().nullish(),
      truncate: z.boolean().optional(),
    }),
    z.object({
      ...shared,
      rope_type: z.literal('longrope'),
      factor: factor.nullish(),
      short_factor: channelFactors,
      long_factor: channelFactors,
      original_max_position_embeddings: positionCount.optional(),
      attention_factor: z.number().positive().nullish(),
    }),
  ]),
)
export type RopeScaling = z.infer<typeof ropeScaling>

/** Older configs: `type` for `rope_type`, and nothing where nothing is scaled. Phi-3's first files call longrope `su`. */
function renamed(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value
  const type = 'rope_type' in value ? value.rope_type : 'type' in value ? value.type : 'default'
  return { ...value, rope_type: type === 'su' ? 'longrope' : type }
}

export interface RopeRequest {
  /** `rope_theta` of the config itself, or the family's default. */
  readonly theta: number
  readonly headDim: number
  readonly maxPositions: number
  /** Of the head's channels; default 1. */
  readonly partial?: number | undefined
  readonly scaling?: RopeScaling | null | undefined
  /** `original_max_position_embeddings` of the config itself (Phi-3), where the scaling has none. */
  readonly originalPositions?: number | undefined
}

/** The angles that a config asks for. */
export function rotaryFor({ theta, headDim, maxPositions, partial, scaling, originalPositions }: RopeRequest): RotaryTables {
  const base = scaling?.rope_theta ?? theta
  const channels = Math.trunc(headDim * (scaling?.partial_rotary_factor ?? partial ?? 1))
  const frequencies = plainFrequencies(channels, base)
  switch (scaling?.rope_type) {
    case 'linear':
      return tables(
        maxPositions,
        frequencies.map((f) => f / scaling.factor),
      )
    case 'llama3':
      return tables(maxPositions, llama3Frequencies(frequencies, scaling))
    case 'yarn': {
      const original = scaling.original_max_position_embeddings ?? maxPositions
      return tables(maxPositions, yarnFrequencies(channels, base, original, scaling), yarnAmplitude(scaling))
    }
    case 'longrope': {
      const original = scaling.original_max_position_embeddings ?? originalPositions ?? maxPositions
      const stretch = scaling.factor ?? maxPositions / original
      const amplitude = scaling.attention_factor ?? (stretch <= 1 ? 1 : Math.sqrt(1 + Math.log(stretch) / Math.log(original)))
      const scaled = (factors: readonly number[]): Float32Array =>
        Float32Array.from(factors, (f, channel) => 1 / Math.fround(Math.fround(f) * frequencyDivisor(channel, channels, base)))
      const short = tableValues(maxPositions, scaled(scaling.short_factor), amplitude)
      if (original >= maxPositions) return constants(maxPositions, channels / 2, short)
      const long = tableValues(maxPositions, scaled(scaling.long_factor), amplitude)
      const both = { cos: joined(short.cos, long.cos), sin: joined(short.sin, long.sin) }
      return { ...constants(2 * maxPositions, channels / 2, both), long: { after: original, offset: maxPositions } }
    }
    default:
      return tables(maxPositions, frequencies)
  }
}

/** angle(p, i) = p theta^(-2i/headDim). */
export function rotaryTables(positions: number, headDim: number, theta: number): RotaryTables {
  return rotaryFor({ theta, headDim, maxPositions: positions })
}

/** Whether fused attention can turn whole heads by these tables itself. */
export function turnsWholeHeads({ cos, long }: RotaryTables, headDim: number): boolean {
  return long === undefined && 2 * fixedDim(cos.shape, 1, 'rotary table') === headDim
}

/**
 * Turns the first channels of every head, as many as the tables have; the others stay.  x [batch, heads, tokens, headDim].
 *
 * The reference chooses the angles for long sequences by the longest sequence of a call; here every row of a cached batch chooses by its own length.
 */
export function rotate(
  x: Tensor,
  { cos, sin, long }: RotaryTables,
  { positions, cache }: Pick<DecodeContext, 'positions' | 'cache'>,
): Tensor {
  const places =
    long === undefined
      ? positions
      : add(positions, where(isLong(long.after, positions, cache), integers([long.offset], []), integers([0], [])))
  const headDim = fixedDim(x.shape, -1, 'rotary head')
  const turned = 2 * fixedDim(cos.shape, 1, 'rotary table')
  if (turned === headDim) return rotaryEmbedding(x, places, cos, sin)
  const [first, rest] = split(x, [turned, headDim - turned], -1)
  if (first === undefined || rest === undefined) throw new Error('internal: two parts')
  return concat([rotaryEmbedding(first, places, cos, sin), rest], -1)
}

function isLong(after: number, positions: Tensor, cache: DecodeContext['cache']): Tensor {
  const last = cache === undefined ? reduceMax(positions, [0, 1], { keepdims: true }) : unsqueeze(cast(cache.lastPlaces, 'int64'), [1])
  return greaterOrEqual(last, after)
}

// float32 at every step at which the reference has it: at high positions the rounding is visible.

function frequencyDivisor(channel: number, channels: number, theta: number): number {
  return Math.fround(theta ** Math.fround((2 * channel) / channels))
}

function plainFrequencies(channels: number, theta: number): Float32Array {
  return Float32Array.from({ length: channels / 2 }, (_, channel) => 1 / frequencyDivisor(channel, channels, theta))
}

type Llama3 = Extract<RopeScaling, { rope_type: 'llama3' }>
type Yarn = Extract<RopeScaling, { rope_type: 'yarn' }>

/** Long waves are stretched, short ones stay, and those between are mixed.   Grattafiori et al. 2024. */
function llama3Frequencies(frequencies: Float32Array, scaling: Llama3): Float32Array {
  const { factor: stretch, low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: original } = scaling
  return frequencies.map((frequency) => {
    const waves = (original * frequency) / (2 * Math.PI)
    if (waves > high) return frequency
    if (waves < low) return frequency / stretch
    const smooth = (waves - low) / (high - low)
    return ((1 - smooth) * frequency) / stretch + smooth * frequency
  })
}

/** Peng et al. 2023, section 3.2: interpolation for waves longer than the original context, none for short ones, a ramp between. */
function yarnFrequencies(channels: number, theta: number, original: number, scaling: Yarn): Float32Array {
  const channelOf = (rotations: number): number => (channels * Math.log(original / (rotations * 2 * Math.PI))) / (2 * Math.log(theta))
  const [first, last] = [channelOf(scaling.beta_fast ?? 32), channelOf(scaling.beta_slow ?? 1)]
  const truncated = scaling.truncate ?? true
  const from = Math.max(truncated ? Math.floor(first) : first, 0)
  const until = Math.min(truncated ? Math.ceil(last) : last, channels - 1)
  const span = until === from ? 0.001 : until - from
  return plainFrequencies(channels, theta).map((frequency, channel) => {
    const ramp = Math.min(Math.max((channel - from) / span, 0), 1)
    return (frequency / scaling.factor) * ramp + frequency * (1 - ramp)
  })
}

function yarnAmplitude({ factor: stretch, attention_factor: given, mscale, mscale_all_dim: all }: Yarn): number {
  const amplitude = (scale: number): number => (stretch <= 1 ? 1 : 0.1 * scale * Math.log(stretch) + 1)
  return given ?? (mscale && all ? amplitude(mscale) / amplitude(all) : amplitude(1))
}

interface TableValues {
  readonly cos: Float32Array
  readonly sin: Float32Array
}

function tables(positions: number, frequencies: Float32Array, amplitude = 1): RotaryTables {
  return constants(positions, frequencies.length, tableValues(positions, frequencies, amplitude))
}

function tableValues(positions: number, frequencies: Float32Array, amplitude: number): TableValues {
  const half = frequencies.length
  const cos = new Float32Array(positions * half)
  const sin = new Float32Array(positions * half)
  for (const [channel, frequency] of frequencies.entries()) {
    for (let position = 0; position < positions; position++) {
      const angle = Math.fround(position * frequency)
      cos[position * half + channel] = Math.fround(Math.cos(angle)) * amplitude
      sin[position * half + channel] = Math.fround(Math.sin(angle)) * amplitude
    }
  }
  return { cos, sin }
}

function constants(rows: number, half: number, { cos, sin }: TableValues): RotaryTables {
  const dims = [rows, half]
  return { cos: constant({ dtype: 'float32', dims, data: cos }), sin: constant({ dtype: 'float32', dims, data: sin }) }
}

function joined(a: Float32Array, b: Float32Array): Float32Array {
  const both = new Float32Array(a.length + b.length)
  both.set(a)
  both.set(b, a.length)
  return both
}
