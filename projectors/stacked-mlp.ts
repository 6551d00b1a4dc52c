import { z } from 'zod'
import { unreachable } from '../src/errors.ts'
import { linear } from '../src/graph/composites/linear.ts'
import { type Dim, divideDims } from '../src/graph/dim.ts'
import { gelu } from '../src/graph/operators/gelu.ts'
import { relu } from '../src/graph/operators/relu.ts'
import { reshape } from '../src/graph/operators/reshape.ts'
import { dimAt, fixedDim } from '../src/graph/tensor.ts'
import { defineProjector, onlyFeatures } from '../src/model/projector.ts'
import { gridFeatures } from '../src/model/token-grid.ts'

/**
 * For sounds, whose frames are many: every `stack` neighbours are joined into one wide token, and an MLP maps that.   SLAM-LLM's `linear` projector (Ma et al. 2024) and
 * Ultravox stack so. The last token is filled up with zeros. Parameters `0.weight`, `0.bias`, `2.weight`, ...
 */
export const stackedMlp = defineProjector({
  name: 'stackedMlp',
  options: z.strictObject({
    /** Neighbours that become one token. */
    stack: z.int().min(1).default(8),
    depth: z.int().min(1).default(2),
    /** Width between the layers; default the language model's. SLAM-LLM: 2048. */
    hiddenWidth: z.int().min(1).optional(),
    activation: z.enum(['gelu', 'relu']).default('gelu'),
  }),
  tokens: (grid, { stack }) => ({ segments: [{ frames: Math.ceil(gridFeatures(grid) / stack), rows: 1, columns: 1 }] }),
  multipleOf: ({ stack }) => stack,
  build(input, scope, { outputWidth, options }) {
    const features = onlyFeatures(input, 'stackedMlp')
    const { stack, depth, hiddenWidth = outputWidth } = options
    const width = fixedDim(features.shape, -1, 'features')
    let x = reshape(features, [dimAt(features.shape, 0), groups(dimAt(features.shape, 1), stack), stack * width])
    for (let layer = 0; layer < depth; layer++) {
      if (layer > 0) x = options.activation === 'gelu' ? gelu(x) : relu(x)
      x = linear(x, scope.child(`${2 * layer}`), layer === depth - 1 ? outputWidth : hiddenWidth)
    }
    return x
  },
})

/** `multipleOf` makes it come out even. */
function groups(tokens: Dim, stack: number): Dim {
  return divideDims(tokens, stack) ?? unreachable(`${tokens} features are no multiple of ${stack}`)
}
