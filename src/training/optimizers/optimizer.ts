/** What every optimizer is: a pair of functions over plain arrays. All state is in the arguments, so a checkpoint is these arrays and one number. */
import { ModalignError } from '../../errors.ts'
import type { Trainables, TrainableValue } from '../../graph/parameters.ts'

/** One array a trainable, of its length. */
export type NamedArrays = Readonly<Record<string, Float32Array>>

export interface OptimizerState {
  /** Updates done so far. */
  readonly step: number
  /** Slot name (as in PyTorch's state: `exp_avg`, ...) -> trainable name -> values. */
  readonly slots: Readonly<Record<string, NamedArrays>>
}

export interface Optimizer {
  readonly name: string
  /** The state before the first update. */
  init(trainables: Trainables): OptimizerState
  /**
   * One update. The trainables' and slots' arrays are changed in place; the state returned shares them and counts one step more.
   *
   * @throws ModalignError `OPTIMIZER_STATE` if a gradient or slot is missing or of another length; then nothing has been changed.
   */
  update(trainables: Trainables, gradients: NamedArrays, state: OptimizerState, learningRate: number): OptimizerState
}

/** A zeroed slot. */
export function zeros(trainables: Trainables): NamedArrays {
  return Object.fromEntries(Object.entries(trainables).map(([name, { data }]) => [name, new Float32Array(data.length)]))
}

/** The array of `name`, sure to have the trainable's length. */
export function sameLength(arrays: NamedArrays | undefined, what: string, name: string, { data }: TrainableValue): Float32Array {
  const array = arrays !== undefined && Object.hasOwn(arrays, name) ? arrays[name] : undefined
  if (array?.length === data.length) return array
  const got = array === undefined ? `no ${what} for ${name}` : `${array.length} values of ${what} for ${name}`
  throw new ModalignError({
    code: 'OPTIMIZER_STATE',
    got,
    expected: `${data.length} values`,
    hint: 'the checkpoint belongs to other trainables',
  })
}

/**
 * Whether weight decay applies to a trainable: to matrices and beyond, not to biases, norms and other vectors.
 *
 * @example
 * decaysByRank('0.bias', [576]) // false
 */
export function decaysByRank(_name: string, dims: readonly number[]): boolean {
  return dims.length > 1
}
