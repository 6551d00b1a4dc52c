/** Defining projectors: one file, one call. */
import type { z } from 'zod'
import { ModalignError } from '../errors.ts'
import type { Tensor } from '../graph/tensor.ts'
import type { Projector, ProjectorContext, ProjectorDefinition, ProjectorInput, TokenGrid } from './contracts.ts'

/** A projector's definition that is also the function which fills in its options. */
export interface ProjectorFamily<O, I> extends ProjectorDefinition<O> {
  (options?: I): Projector<O>
}

/**
 * Makes a projector family from its definition. Its gradient is derived.
 *
 * @throws PROJECTOR_OPTIONS when the family is called with options that its schema refuses.
 * @example
 * const scaled = defineProjector({
 *   name: 'scaled',
 *   options: z.strictObject({ factor: z.number().default(2) }),
 *   tokens: (grid) => grid,
 *   build: ({ features: [x] }, scope, { outputWidth, options }) => linear(mul(x, options.factor), scope.child('0'), outputWidth),
 * })
 * scaled({ factor: 3 })
 */
export function defineProjector<S extends z.ZodType>(
  definition: Omit<ProjectorDefinition<z.output<S>>, 'options' | 'name'> & { readonly name: string; readonly options: S },
): ProjectorFamily<z.output<S>, z.input<S>> {
  const { name, options: schema, tokens, multipleOf, build } = definition
  const complete: ProjectorDefinition<z.output<S>> = {
    name,
    options: schema as z.ZodType<z.output<S>>,
    tokens,
    ...(multipleOf && { multipleOf }),
    build,
  }
  const family = (options?: z.input<S>): Projector<z.output<S>> => {
    const parsed = schema.safeParse(options ?? {})
    if (!parsed.success) {
      const [issue] = parsed.error.issues
      throw new ModalignError({
        code: 'PROJECTOR_OPTIONS',
        file: name,
        field: `/${issue?.path.join('/') ?? ''}`,
        got: JSON.stringify(options) ?? 'nothing',
        expected: issue?.message,
      })
    }
    return { definition: complete, options: parsed.data }
  }
  Object.defineProperty(family, 'name', { value: name })
  return Object.assign(family, { options: complete.options, tokens, build, ...(multipleOf && { multipleOf }) })
}

/** The grid of every medium of a batch, for projectors that look at where tokens lie. @throws PROJECTOR_GRID if media of several sizes share a batch. */
export function oneGrid({ grid }: Pick<ProjectorContext<unknown>, 'grid'>, name: string): TokenGrid {
  if (grid !== undefined) return grid
  throw new ModalignError({
    code: 'PROJECTOR_GRID',
    file: name,
    got: 'an encoder whose number of tokens varies',
    expected: 'one grid for every medium',
    hint: 'choose a projector that works token by token, such as mlp or stackedMlp',
  })
}

/** The features of the one encoder that most projectors take. @throws PROJECTOR_FEATURES if there are none or several. */
export function onlyFeatures({ features }: ProjectorInput, name: string): Tensor {
  const [x, ...others] = features
  if (x === undefined || others.length > 0) {
    throw new ModalignError({
      code: 'PROJECTOR_FEATURES',
      file: name,
      got: `features of ${features.length} encoders`,
      expected: 'features of one encoder',
    })
  }
  return x
}
