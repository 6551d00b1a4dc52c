/** Checks what goes into a run before ONNX Runtime sees it. Values are not looked at: NaN passes. */
import { ModalignError } from '../errors.ts'
import type { PixelTensor } from '../pixel-planes.ts'
import { type DataType, elementCount, type NamedTensors, type TensorValue } from '../tensors.ts'
import type { TensorDescription } from './session.ts'

/** Sizes of one dimension may not exceed what an int32 index of the kernels can address. */
const largestSize = 2 ** 31 - 1

/** The array that holds the elements of each type. */
export const dataArrays = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
  int64: BigInt64Array,
  int32: Int32Array,
  int16: Int16Array,
  int8: Int8Array,
  uint64: BigUint64Array,
  uint32: Uint32Array,
  uint16: Uint16Array,
  uint8: Uint8Array,
  bool: Uint8Array,
} as const satisfies Record<DataType, unknown>

/**
 * Names, types, ranks, sizes and lengths of the values against the inputs. A name of a size stands for one number throughout a run, as ONNX
 * defines it; names that are expressions are checked in the same way.
 */
export function checkValues(values: NamedTensors, inputs: readonly TensorDescription[]): void {
  const descriptions = new Map(inputs.map((input) => [input.name, input]))
  const sizes = new Map<string, { readonly size: number; readonly input: string }>()
  if (typeof values !== 'object' || values === null)
    throw new ModalignError({ code: 'RUNTIME_FEED_DATA', got: typeof values, expected: 'an object of tensors by input name' })
  for (const [name, value] of Object.entries(values)) {
    const description = descriptions.get(name)
    if (description === undefined)
      throw new ModalignError({
        code: 'RUNTIME_FEED_UNKNOWN',
        field: pointer(name),
        got: `input '${name}'`,
        expected: oneOf(descriptions.keys()),
      })
    checkValue(value, description)
    for (const [axis, expected] of description.dims.entries()) {
      const size = value.dims[axis] ?? 0
      if (typeof expected === 'number') {
        if (size !== expected) throw shapeError(value, description, `size ${size} in dimension ${axis}`, `${expected}`)
      } else if (expected !== '') {
        const before = sizes.get(expected)
        if (before === undefined) sizes.set(expected, { size, input: name })
        else if (before.size !== size)
          throw shapeError(value, description, `size ${size} for '${expected}'`, `${before.size}, as in input '${before.input}'`)
      }
    }
  }
}

/** What a tensor is made of makes it whole; the tensor itself is checked when it is made. */
export function checkPixels(given: Readonly<Record<string, PixelTensor>>): void {
  for (const [name, { dims, pixels, values }] of Object.entries(given)) {
    const [count, channels, height, width] = dims
    const refuse = (got: string, expected: string): ModalignError =>
      new ModalignError({ code: 'RUNTIME_FEED_DATA', field: pointer(name), got, expected })
    if (channels !== 3 || pixels.length !== count)
      throw refuse(`${pixels.length} pictures`, `as many as ${shapeText(dims)} says, of 3 channels`)
    const wrong = pixels.find(({ length }) => length !== 3 * height * width)
    if (wrong !== undefined) throw refuse(`a picture of ${wrong.length} bytes`, `${3 * height * width} for ${shapeText(dims)}`)
    if (values.length !== 3 * 256) throw refuse(`${values.length} values`, '256 for each channel')
  }
}

/** Every input has a value. */
export function checkComplete(values: NamedTensors, inputs: readonly TensorDescription[]): void {
  for (const { name, dtype, dims } of inputs) {
    if (!Object.hasOwn(values, name))
      throw new ModalignError({
        code: 'RUNTIME_FEED_MISSING',
        field: pointer(name),
        expected: `input '${name}': ${dtype}${shapeText(dims)}`,
      })
  }
}

function checkValue(value: TensorValue, description: TensorDescription): void {
  const { name, dtype, dims } = description
  if (typeof value !== 'object' || value === null || !Array.isArray(value.dims) || !ArrayBuffer.isView(value.data))
    throw new ModalignError({ code: 'RUNTIME_FEED_DATA', field: pointer(name), expected: 'a tensor: { dtype, dims, data }' })
  if (value.dtype !== dtype)
    throw new ModalignError({ code: 'RUNTIME_FEED_DTYPE', field: pointer(name), got: `${value.dtype}`, expected: dtype })
  if (!value.dims.every((size) => Number.isInteger(size) && size >= 0 && size <= largestSize))
    throw shapeError(value, description, shapeText(value.dims), 'sizes that are integers from 0')
  if (value.dims.length !== dims.length)
    throw shapeError(value, description, `rank ${value.dims.length} ${shapeText(value.dims)}`, `rank ${dims.length} ${shapeText(dims)}`)
  if (!(value.data instanceof dataArrays[dtype]))
    throw new ModalignError({
      code: 'RUNTIME_FEED_DATA',
      field: pointer(name),
      got: value.data.constructor.name,
      expected: `${dataArrays[dtype].name} for ${dtype}`,
    })
  const count = elementCount(value.dims)
  if (value.data.length !== count)
    throw new ModalignError({
      code: 'RUNTIME_FEED_DATA',
      field: pointer(name),
      got: `${value.data.length} elements`,
      expected: `${count} for ${shapeText(value.dims)}`,
    })
}

function shapeError(value: TensorValue, description: TensorDescription, got: string, expected: string): ModalignError {
  return new ModalignError({
    code: 'RUNTIME_FEED_SHAPE',
    field: pointer(description.name),
    got,
    expected,
    hint: `the value is ${shapeText(value.dims)}, the input ${shapeText(description.dims)}`,
  })
}

/** JSON Pointer to one name. */
export function pointer(name: string): string {
  return `/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`
}

function shapeText(dims: readonly (number | string)[]): string {
  return `[${dims.map((size) => (size === '' ? '?' : size)).join(', ')}]`
}

/** For messages: the names, or how many there are. */
export function oneOf(names: Iterable<string>): string {
  const list = [...names]
  return list.length <= 8 ? `one of ${list.join(', ')}` : `one of ${list.length} names: ${list.slice(0, 8).join(', ')}, ...`
}
