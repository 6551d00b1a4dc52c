/** The projectors that come with the package. Your own needs no entry here: `defineProjector` makes one, and it is passed where a projector is taken. */
import { linear } from './linear.ts'
import { mlp } from './mlp.ts'
import { pooledMlp } from './pooled-mlp.ts'
import { stackedMlp } from './stacked-mlp.ts'

export { linear } from './linear.ts'
export { mlp } from './mlp.ts'
export { pooledMlp } from './pooled-mlp.ts'
export { stackedMlp } from './stacked-mlp.ts'

/** By the name under which a saved model remembers its projector. */
export const projectors = { linear, mlp, pooledMlp, stackedMlp } as const
