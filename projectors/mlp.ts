import { z } from 'zod'
import { linear } from '../src/graph/composites/linear.ts'
import { gelu } from '../src/graph/operators/gelu.ts'
import { defineProjector, onlyFeatures } from '../src/model/projector.ts'

/** Linear layers with GELU between them, token by token.   LLaVA-1.5's `mlp{depth}x_gelu` (Liu et al. 2024). Parameters `0.weight`, `0.bias`, `2.weight`, ... */
export const mlp = defineProjector({
  name: 'mlp',
  options: z.strictObject({ depth: z.int().min(1).default(2) }),
  tokens: (grid) => grid,
  build(input, scope, { outputWidth, options }) {
    let x = onlyFeatures(input, 'mlp')
    for (let layer = 0; layer < options.depth; layer++) {
      if (layer > 0) x = gelu(x)
      x = linear(x, scope.child(`${2 * layer}`), outputWidth)
    }
    return x
  },
})
