/** Values of what is trained: checked against what was declared, and as weights of a graph. */
import { ModalignError } from '../../errors.ts'
import type { Parameter, Trainables, TrainableValue } from '../../graph/parameters.ts'
import { type Tensor, weight } from '../../graph/tensor.ts'
import { elementCount } from '../../tensors.ts'

/** Values of everything that is trained, to be written into one model: beyond this many bytes they do not fit. */
const largestPresentBytes = 1.9e9

/** The values of exactly these parameters. @throws ADAPTER_PARAMETERS naming the first difference */
export function checkedValues(parameters: readonly Parameter[], values: Trainables): Trainables {
  const refuse = (field: string, got: string, expected: string): ModalignError =>
    new ModalignError({ code: 'ADAPTER_PARAMETERS', field, got, expected })
  for (const { name, shape } of parameters) {
    const dims = Object.hasOwn(values, name) ? values[name]?.dims : undefined
    if (String(dims) !== String(shape)) throw refuse(name, dims === undefined ? 'nothing' : `[${dims.join(', ')}]`, `[${shape.join(', ')}]`)
  }
  const known = new Set(parameters.map(({ name }) => name))
  const unknown = Object.keys(values).find((name) => !known.has(name))
  if (unknown !== undefined) throw refuse(unknown, 'a value', 'a parameter of these adapters')
  return Object.fromEntries(parameters.map(({ name }) => [name, valueIn(values, name)]))
}

/** Each parameter with its present value as a weight in memory. @throws ADAPTER_TOO_LARGE */
export function presentWeights(parameters: readonly Parameter[], values: Trainables): (parameter: Parameter) => Tensor {
  const bytes = 4 * parameters.reduce((sum, { shape }) => sum + elementCount(shape), 0)
  if (bytes > largestPresentBytes)
    throw new ModalignError({
      code: 'ADAPTER_TOO_LARGE',
      got: `${bytes} bytes of trained values`,
      expected: `at most ${largestPresentBytes} to run with`,
      hint: 'mergeAdapters writes those of a language model into a checkpoint, which has no such limit',
    })
  const tensors = new Map<string, Tensor>()
  return ({ name, shape }) => {
    const { dims, data } = valueIn(values, name)
    const tensor = tensors.get(name) ?? weight(name, 'float32', shape, { kind: 'memory', value: { dtype: 'float32', dims, data } })
    tensors.set(name, tensor)
    return tensor
  }
}

/** The value of a parameter that is there. */
export function valueIn(values: Trainables, name: string): TrainableValue {
  const value = Object.hasOwn(values, name) ? values[name] : undefined
  if (value === undefined) throw new Error(`internal: no value of ${name}`)
  return value
}
