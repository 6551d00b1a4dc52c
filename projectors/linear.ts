import { z } from 'zod'
import { linear as linearLayer } from '../src/graph/composites/linear.ts'
import { defineProjector, onlyFeatures } from '../src/model/projector.ts'

/** One linear layer, token by token: Y = X W^T + b.   LLaVA (Liu et al. 2023). Parameters `weight`, `bias`. */
export const linear = defineProjector({
  name: 'linear',
  options: z.strictObject({}),
  tokens: (grid) => grid,
  build: (input, scope, { outputWidth }) => linearLayer(onlyFeatures(input, 'linear'), scope, outputWidth),
})
