/** The optimizers by name. An optimizer is one file and one line here. */
import { z } from 'zod'
import { adamw } from './adamw.ts'
import type { Optimizer } from './optimizer.ts'

/** An optimizer as plain data: what a run file says and what crosses to a worker. */
export const optimizerSchema = z.discriminatedUnion('name', [
  z.strictObject({
    name: z.literal('adamw'),
    /** Default [0.9, 0.999]. */
    betas: z.tuple([z.number().min(0).lt(1), z.number().min(0).lt(1)]).optional(),
    /** Default 1e-8. */
    epsilon: z.number().positive().optional(),
    /** Default 0.01. */
    weightDecay: z.number().min(0).optional(),
  }),
])
export type OptimizerSpec = z.infer<typeof optimizerSchema>

/**
 * @example
 * const optimizer = optimizerOf({ name: 'adamw', weightDecay: 0 })
 */
export function optimizerOf({ name, ...options }: OptimizerSpec): Optimizer {
  return optimizers[name](withoutUndefined(options))
}

const optimizers = { adamw } as const

function withoutUndefined<T extends object>(options: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]: Exclude<T[K], undefined>
  }
}
