/** Which rotary angles a config asks for.   Su et al. 2021; scaling as Transformers' modeling_rope_utils has it. */
import { z } from 'zod'

/** Angles of rotary positions: pair i of channels turns by `position x frequencies[i]`. */
export interface Rotary {
  /** Radians a position. Twice as many channels of each head are turned. */
  readonly frequencies: Float32Array
  /** What cosines and sines are multiplied by. */
  readonly amplitude: number
  readonly maxPositions: number
  /** Sequences of more tokens than `after` have other angles, from their first token on. */
  readonly long?: { readonly after: number; readonly frequencies: Float32Array }
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
export function rotaryFor({ theta, headDim, maxPositions, partial, scaling, originalPositions }: RopeRequest): Rotary {
  const base = scaling?.rope_theta ?? theta
  const channels = Math.trunc(headDim * (scaling?.partial_rotary_factor ?? partial ?? 1))
  const frequencies = plainFrequencies(channels, base)
  switch (scaling?.rope_type) {
    case 'linear':
      return { frequencies: frequencies.map((f) => f / scaling.factor), amplitude: 1, maxPositions }
    case 'llama3':
      return { frequencies: llama3Frequencies(frequencies, scaling), amplitude: 1, maxPositions }
    case 'yarn': {
      const original = scaling.original_max_position_embeddings ?? maxPositions
      return { frequencies: yarnFrequencies(channels, base, original, scaling), amplitude: yarnAmplitude(scaling), maxPositions }
    }
    case 'longrope': {
      const after = scaling.original_max_position_embeddings ?? originalPositions ?? maxPositions
      const stretch = scaling.factor ?? maxPositions / after
      const amplitude = scaling.attention_factor ?? (stretch <= 1 ? 1 : Math.sqrt(1 + Math.log(stretch) / Math.log(after)))
      const scaled = (factors: readonly number[]): Float32Array =>
        Float32Array.from(factors, (f, channel) => 1 / Math.fround(Math.fround(f) * frequencyDivisor(channel, channels, base)))
      const long = after < maxPositions ? { long: { after, frequencies: scaled(scaling.long_factor) } } : {}
      return { frequencies: scaled(scaling.short_factor), amplitude, maxPositions, ...long }
    }
    default:
      return { frequencies, amplitude: 1, maxPositions }
  }
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
