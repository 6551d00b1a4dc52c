/** Trainable parameters: declared where they are used, named as checkpoints name them, fed as graph inputs. */
import { ModalignError } from '../errors.ts'
import { input, type Tensor } from './tensor.ts'

/** From what distribution a parameter's first values are drawn. */
export type Initializer =
  | { readonly kind: 'uniform'; readonly bound: number }
  | { readonly kind: 'normal'; readonly std: number }
  | { readonly kind: 'constant'; readonly value: number }
  | { readonly kind: 'feature-mean' }

/** U(-bound, bound). */
export const uniform = (bound: number): Initializer => ({ kind: 'uniform', bound })
/** N(0, std^2). */
export const normal = (std: number): Initializer => ({ kind: 'normal', std })
/** One value everywhere. */
export const filled = (value: number): Initializer => ({ kind: 'constant', value })

/** The mean of the training data's features, channel by channel: 0 until tuning has seen them. */
export const featureMean: Initializer = { kind: 'feature-mean' }

export interface Parameter {
  /** Full name, for example `image.0.weight`. */
  readonly name: string
  readonly shape: readonly number[]
  readonly initializer: Initializer
  /** The graph input that stands for it. */
  readonly tensor: Tensor
}

/** A trainable tensor: fp32 master values, row-major. */
export interface TrainableValue {
  readonly dims: readonly number[]
  readonly data: Float32Array
}
/** By parameter name. */
export type Trainables = Readonly<Record<string, TrainableValue>>

/**
 * A place in the tree of parameters. Children share their root's list, in order of declaration.
 *
 * @example
 * const scope = new ParameterScope('image')
 * const weight = scope.child('0').parameter('weight', [8, 4], uniform(0.5)) // graph input 'image.0.weight'
 * scope.parameters.map(({ name }) => name) // ['image.0.weight']
 */
export class ParameterScope {
  readonly path: string
  readonly #declared: Map<string, Parameter>

  constructor(path = '', declared: Map<string, Parameter> = new Map()) {
    this.path = path
    this.#declared = declared
  }

  child(name: string): ParameterScope {
    return new ParameterScope(this.#join(name), this.#declared)
  }

  /** @throws GRAPH_PARAMETER_TWICE if the name is taken: two layers would share one parameter by accident. */
  parameter(name: string, shape: readonly number[], initializer: Initializer): Tensor {
    const full = this.#join(name)
    if (this.#declared.has(full))
      throw new ModalignError({
        code: 'GRAPH_PARAMETER_TWICE',
        field: full,
        expected: 'a name not used before',
        hint: 'use scope.child(...)',
      })
    const tensor = input(full, 'float32', shape)
    this.#declared.set(full, { name: full, shape, initializer, tensor })
    return tensor
  }

  get parameters(): readonly Parameter[] {
    return [...this.#declared.values()]
  }

  #join(name: string): string {
    return this.path === '' ? name : `${this.path}.${name}`
  }
}
