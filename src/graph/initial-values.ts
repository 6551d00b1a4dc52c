import { unreachable } from '../errors.ts'
import { normals, uniforms } from '../random.ts'
import { elementCount } from '../tensors.ts'
import type { Parameter, Trainables, TrainableValue } from './parameters.ts'

/** A parameter's first values: they depend on the seed, its name and its initializer alone. */
export function initialValue({ name, shape, initializer }: Parameter, seed: number): TrainableValue {
  const length = elementCount(shape)
  const key = { seed, stream: `init/${name}` }
  switch (initializer.kind) {
    case 'uniform':
      return { dims: shape, data: uniforms(length, key, { low: -initializer.bound, high: initializer.bound }) }
    case 'normal':
      return { dims: shape, data: normals(length, key, { deviation: initializer.std }) }
    case 'feature-mean':
      return { dims: shape, data: new Float32Array(length) }
    case 'constant':
      return { dims: shape, data: new Float32Array(length).fill(initializer.value) }
    default:
      return unreachable('an initializer without a rule')
  }
}

export function initialValues(parameters: readonly Parameter[], seed: number): Trainables {
  return Object.fromEntries(parameters.map((parameter) => [parameter.name, initialValue(parameter, seed)]))
}

/**
 * Values that depend on the data: each channel's mean over all tokens of the features given.
 *
 * @param features float32 [tokens, width] each.
 */
export function featureStatistics(parameters: readonly Parameter[], features: Iterable<Float32Array>, width: number): Trainables {
  const sum = new Float64Array(width)
  let count = 0
  for (const one of features) {
    for (let i = 0; i < one.length; i++) sum[i % width] = (sum[i % width] ?? 0) + (one[i] ?? 0)
    count += one.length / width
  }
  const mean = Float32Array.from(sum, (total) => total / Math.max(count, 1))
  return Object.fromEntries(
    parameters
      .filter(({ initializer }) => initializer.kind === 'feature-mean')
      .map(({ name, shape }) => [name, { dims: shape, data: mean.slice() }] as const),
  )
}
