import { z } from 'zod'
import { rmsNormalization } from '../src/graph/composites/rms-normalization.ts'
import { linear } from '../src/graph/composites/linear.ts'
import { gelu } from '../src/graph/operators/gelu.ts'
import { layerNormalization } from '../src/graph/operators/layer-normalization.ts'
import { matmul } from '../src/graph/operators/matmul.ts'
import { mul } from '../src/graph/operators/mul.ts'
import { reshape } from '../src/graph/operators/reshape.ts'
import { sub } from '../src/graph/operators/sub.ts'
import { featureMean, featureScale, filled } from '../src/graph/parameters.ts'
import { constant, dimAt, fixedDim } from '../src/graph/tensor.ts'
import { defineProjector, onlyFeatures } from '../src/model/projector.ts'
import { poolingMatrix } from './pooling-matrix.ts'

/**
 * One MLP over a whole picture: its grid is pooled to `rows` x `columns`, channels are standardised by the training data's mean and deviation, all of it is normalised as
 * one vector and mapped to `tokens` tokens. Cheap where a picture needs few words. Pooling is adaptive averaging (torch.nn.functional.adaptive_avg_pool2d).
 * Parameters `features.mean`, `features.scale`, `norm.weight`, `norm.bias`, `0.weight`, `0.bias`, `2.weight`, ...
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
  build(input, scope, { outputWidth, grid, options }) {
    const features = onlyFeatures(input, 'pooledMlp')
    const pooling = poolingMatrix(grid, options)
    const width = (pooling.dims[0] ?? 0) * fixedDim(features.shape, -1, 'features')
    const media = dimAt(features.shape, 0)
    const channels = fixedDim(features.shape, -1, 'features')
    const statistics = scope.child('features')
    // Pooling first: it commutes with a scale and shift of channels, and leaves fewer numbers to touch.
    const pooled = matmul(constant(pooling), features)
    const centred = sub(pooled, statistics.parameter('mean', [channels], featureMean))
    const standardised = mul(centred, statistics.parameter('scale', [channels], featureScale))
    const norm = scope.child('norm')
    let x = layerNormalization(
      reshape(standardised, [media, width]),
      norm.parameter('weight', [width], filled(1)),
      norm.parameter('bias', [width], filled(0)),
    )
    for (let layer = 0; layer < options.depth; layer++) {
      if (layer > 0) x = gelu(x)
      const last = layer === options.depth - 1
      x = linear(x, scope.child(`${2 * layer}`), last ? options.tokens * outputWidth : (options.hiddenWidth ?? outputWidth))
    }
    const out = scope.child('out')
    return rmsNormalization(reshape(x, [media, options.tokens, outputWidth]), out.parameter('weight', [outputWidth], filled(0.06)))
  },
})
