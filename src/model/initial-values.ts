import { unreachable } from '../errors.ts'
import type { Parameter } from '../graph/parameters.ts'
import { normals, uniforms } from '../random.ts'
import { elementCount } from '../tensors.ts'
import type { Trainables, TrainableValue } from './trainables.ts'

/** A parameter's first values: they depend on the seed, its name and its initializer alone. */
export function initialValue({ name, shape, initializer }: Parameter, seed: number): TrainableValue {
  const length = elementCount(shape)
  const key = { seed, stream: `init/${name}` }
  switch (initializer.kind) {
    case 'uniform':
      return { dims: shape, data: uniforms(length, key, { low: -initializer.bound, high: initializer.bound }) }
    case 'normal':
      return { dims: shape, data: normals(length, key, { deviation: initializer.std }) }
    case 'constant':
      return { dims: shape, data: new Float32Array(length).fill(initializer.value) }
    default:
      return unreachable('an initializer without a rule')
  }
}

export function initialValues(parameters: readonly Parameter[], seed: number): Trainables {
  return Object.fromEntries(parameters.map((parameter) => [parameter.name, initialValue(parameter, seed)]))
}
