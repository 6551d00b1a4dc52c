/** WavLM (Chen et al. 2022), as Transformers' WavLMModel has it: HuBERT with attention that knows how far apart two tokens are. */
import { z } from 'zod'
import type { Dim } from '../src/graph/dim.ts'
import { abs } from '../src/graph/operators/abs.ts'
import { add } from '../src/graph/operators/add.ts'
import { cast } from '../src/graph/operators/cast.ts'
import { gather } from '../src/graph/operators/gather.ts'
import { greater } from '../src/graph/operators/greater.ts'
import { minimum } from '../src/graph/operators/minimum.ts'
import { mul } from '../src/graph/operators/mul.ts'
import { range } from '../src/graph/operators/range.ts'
import { reduceSum } from '../src/graph/operators/reduce-sum.ts'
import { reshape } from '../src/graph/operators/reshape.ts'
import { sigmoid } from '../src/graph/operators/sigmoid.ts'
import { split } from '../src/graph/operators/split.ts'
import { sub } from '../src/graph/operators/sub.ts'
import { transpose } from '../src/graph/operators/transpose.ts'
import { unsqueeze } from '../src/graph/operators/unsqueeze.ts'
import { dimAt, integers, scalar, type Tensor } from '../src/graph/tensor.ts'
import { defineSoundFamily } from './blocks/sound-family.ts'
import {
  type AttentionBias,
  checkWaveformConfig,
  publishedWaveform,
  waveformFields,
  waveformPreprocessing,
  waveformTokens,
  waveformTower,
} from './blocks/waveform-tower.ts'

const wavlmConfig = z
  .object({
    model_type: z.literal('wavlm'),
    ...waveformFields,
    num_buckets: z.int().min(4).max(65_536).multipleOf(4).default(320),
    max_bucket_distance: z.int().min(2).max(65_536).default(800),
  })
  .superRefine(checkWaveformConfig)
type WavlmConfig = z.infer<typeof wavlmConfig>

/**
 * Gated relative positions (section 3.1 of the paper): the bias of the first layer's table, [heads, tokens, tokens], times a factor that each token and head makes of
 * itself, a (b c - 1) + 2 with a, b sigmoids of sums of four outputs each of a linear layer over the head's channels, c a number for each head.
 */
function gatedPositions(config: WavlmConfig): AttentionBias {
  const { num_attention_heads: heads, hidden_size: width } = config
  return (x, weights, layer) => {
    const [windows, tokens] = [dimAt(x.shape, 0), dimAt(x.shape, 1)]
    const table = weights.tensor('wavlm.encoder.layers.0.attention.rel_attn_embed.weight', [config.num_buckets, heads])
    const bias = transpose(gather(table, buckets(tokens, config)), [2, 0, 1])
    const name = `wavlm.encoder.layers.${layer}.attention`
    const byHead = transpose(reshape(x, [windows, tokens, heads, width / heads]), [0, 2, 1, 3])
    const eight = weights.linear(byHead, `${name}.gru_rel_pos_linear`, 8, { bias: true })
    const two = sigmoid(reduceSum(reshape(eight, [windows, heads, tokens, 2, 4]), [-1]))
    const [a, b] = split(two, [1, 1], -1)
    if (a === undefined || b === undefined) throw new Error('internal: two halves')
    const factor = add(mul(a, sub(mul(b, weights.tensor(`${name}.gru_rel_pos_const`, [1, heads, 1, 1])), 1)), 2)
    return mul(unsqueeze(bias, [0]), factor)
  }
}

/** Which row of the table stands for how far a key lies from a query: int64 [tokens, tokens]. */
function buckets(tokens: Dim, { num_buckets: count, max_bucket_distance: farthest }: WavlmConfig): Tensor {
  const half = count / 2
  const exact = half / 2
  // In float32, as PyTorch computes it; what lies further than the farthest is in the last bucket, too.
  const byDistance = Array.from({ length: farthest + 1 }, (_, distance) => {
    if (distance < exact) return distance
    const share = Math.fround(Math.fround(Math.log(Math.fround(distance / exact))) / Math.fround(Math.log(farthest / exact)))
    return Math.min(half - 1, Math.trunc(Math.fround(exact + Math.fround(share * (half - exact)))))
  })
  const places = range(tokens)
  const apart = sub(unsqueeze(places, [0]), unsqueeze(places, [1]))
  const distance = minimum(abs(apart), scalar(farthest, 'int64'))
  return add(gather(integers(byDistance), distance), mul(cast(greater(apart, scalar(0, 'int64')), 'int64'), scalar(half, 'int64')))
}

/**
 * WavLM: one token for 20 ms of raw samples, in windows of 30 s at most (`windowSeconds`). Takes what {@link wav2vec2} takes.
 *
 * @throws {ModalignError} `ENCODER_CONFIG`, `ENCODER_LAYER`, `ENCODER_OPTIONS`, `ENCODER_MISSING`, and as {@link onnxAudio}
 *
 * @example
 * const encoder = await wavlm('models/wavlm-base-plus')
 */
export const wavlm = defineSoundFamily<WavlmConfig>({
  name: 'wavlm',
  label: 'WavLM',
  preprocessing: waveformPreprocessing(false),
  dropPadding: false,
  onnx: publishedWaveform,
  folder: {
    config: wavlmConfig,
    tower: (config, layer) => waveformTower(config, layer, { prefix: 'wavlm.', bias: gatedPositions(config) }),
    tokens: waveformTokens,
  },
})
