import { z } from 'zod'
import { linear } from '../src/graph/composites/linear.ts'
import { rmsNormalization } from '../src/graph/composites/rms-normalization.ts'
import { gelu } from '../src/graph/operators/gelu.ts'
import { layerNormalization } from '../src/graph/operators/layer-normalization.ts'
import { matmul } from '../src/graph/operators/matmul.ts'
import { reshape } from '../src/graph/operators/reshape.ts'
import { sub } from '../src/graph/operators/sub.ts'
import { featureMean, filled } from '../src/graph/parameters.ts'
import { constant, dimAt, fixedDim } from '../src/graph/tensor.ts'
import { defineProjector, oneGrid, onlyFeatures } from '../src/model/projector.ts'
import { poolingMatrix } from './pooling-matrix.ts'

/**
 * One MLP over a whole picture: its grid is pooled to `rows` x `columns`, the training data's mean is taken off, all of it is normalised as one vector and mapped to `tokens`
 * tokens of the size of the language model's own embeddings. Cheap where a picture needs few words. Pooling is adaptive averaging
 * (torch.nn.functional.adaptive_avg_pool2d). Parameters `features.mean`, `norm.weight`, `norm.bias`, `0.weight`, `0.bias`, `2.weight`, ..., `out.weight`.
 */
export const pooledMlp = defineProjector({
  name: 'pooledMlp',
  options: z.strictObject({
    /** To what the grid is pooled. Default 1 x 1: the mean of all features. */
    rows: z.int().min(1).default(1),
    columns: z.int().min(1).default(1),
    /** How many tokens a picture becomes. */
    tokens: z.int().min(1).default(1),
    depth: z.int().min(1).default(2),
    /** Width between the layers; default the language model's. */
    hiddenWidth: z.int().min(1).optional(),
  }),
  tokens: (_, { tokens }) => ({ segments: [{ frames: 1, rows: 1, columns: tokens }] }),
  build(input, scope, { outputWidth, embeddingRms, grid, options }) {
    const features = onlyFeatures(input, 'pooledMlp')
    const pooling = poolingMatrix(oneGrid({ grid }, 'pooledMlp'), options)
    const joined = (pooling.dims[0] ?? 0) * fixedDim(features.shape, -1, 'features')
    const media = dimAt(features.shape, 0)
    const channels = fixedDim(features.shape, -1, 'features')
    const statistics = scope.child('features')
    // Pooling first: it commutes with a scale and shift of channels, and leaves fewer numbers to touch.
    const pooled = matmul(constant(pooling), features)
    const centred = sub(pooled, statistics.parameter('mean', [channels], featureMean))
    const norm = scope.child('norm')
    let x = layerNormalization(
      reshape(centred, [media, joined]),
      norm.parameter('weight', [joined], filled(1)),
      norm.parameter('bias', [joined], filled(0)),
    )
    for (let layer = 0; layer < options.depth; layer++) {
      if (layer > 0) x = gelu(x)
      const last = layer === options.depth - 1
      const width = last ? options.tokens * outputWidth : (options.hiddenWidth ?? outputWidth)
      // The last layer begins near zero: what the first draw says about directions that the training data never shows would stay in the answer about new pictures.
      x = linear(x, scope.child(`${2 * layer}`), width, { gain: last ? 0.01 : 1 })
    }
    const out = scope.child('out')
    return rmsNormalization(reshape(x, [media, options.tokens, outputWidth]), out.parameter('weight', [outputWidth], filled(embeddingRms)))
  },
})
