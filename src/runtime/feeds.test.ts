import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { ModalignError } from '../errors.ts'
import { type DataType, elementCount, float32Tensor } from '../tensors.ts'
import { checkComplete, checkValues, dataArrays } from './feeds.ts'
import { planOutputs } from './host.ts'
import type { TensorDescription } from './session.ts'

const inputs: readonly TensorDescription[] = [
  { name: 'x', dtype: 'float32', dims: ['batch', 3] },
  { name: 'mask', dtype: 'bool', dims: ['batch', 'tokens'] },
  { name: 'a/b~c', dtype: 'int64', dims: ['', ''] },
]
const float = (dims: readonly number[]) => float32Tensor(new Float32Array(elementCount(dims)), dims)
const bool = (dims: readonly number[]) => ({ dtype: 'bool', dims, data: new Uint8Array(elementCount(dims)) }) as const
const refusal = (values: unknown) => {
  try {
    checkValues(values as never, inputs)
  } catch (error) {
    return (error as ModalignError).details
  }
  return undefined
}

describe('feeds', () => {
  test.each([
    ['an unknown name', { y: float([1, 3]) }, 'RUNTIME_FEED_UNKNOWN', '/y'],
    ['another type', { x: bool([1, 3]) }, 'RUNTIME_FEED_DTYPE', '/x'],
    ['another rank', { x: float([3]) }, 'RUNTIME_FEED_SHAPE', '/x'],
    ['another size', { x: float([1, 4]) }, 'RUNTIME_FEED_SHAPE', '/x'],
    ['two sizes for one name', { x: float([2, 3]), mask: bool([4, 5]) }, 'RUNTIME_FEED_SHAPE', '/mask'],
    ['a negative size', { x: { dtype: 'float32', dims: [-1, 3], data: new Float32Array(3) } }, 'RUNTIME_FEED_SHAPE', '/x'],
    ['a broken size', { x: { dtype: 'float32', dims: [0.5, 3], data: new Float32Array(3) } }, 'RUNTIME_FEED_SHAPE', '/x'],
    [
      'a size above int32',
      { 'a/b~c': { dtype: 'int64', dims: [2 ** 31, 0], data: new BigInt64Array(0) } },
      'RUNTIME_FEED_SHAPE',
      '/a~1b~0c',
    ],
    ['too few elements', { x: { dtype: 'float32', dims: [1, 3], data: new Float32Array(2) } }, 'RUNTIME_FEED_DATA', '/x'],
    ['another array', { x: { dtype: 'float32', dims: [1, 3], data: new Float64Array(3) } }, 'RUNTIME_FEED_DATA', '/x'],
    ['a plain array', { x: { dtype: 'float32', dims: [1, 3], data: [1, 2, 3] } }, 'RUNTIME_FEED_DATA', '/x'],
    ['no tensor', { x: null }, 'RUNTIME_FEED_DATA', '/x'],
    ['no object', null, 'RUNTIME_FEED_DATA', undefined],
    ['a name of Object.prototype', { toString: float([1, 3]) }, 'RUNTIME_FEED_UNKNOWN', '/toString'],
  ])('%s is refused', (_, values, code, field) => {
    expect(refusal(values)).toMatchObject({ code })
    expect(refusal(values)?.field).toBe(field)
  })

  test('what fits passes: NaN, no elements, unnamed sizes, a Buffer as bytes', () => {
    expect(refusal({ x: float32Tensor(Float32Array.of(Number.NaN, 1, 2), [1, 3]) })).toBeUndefined()
    expect(refusal({ x: float([0, 3]), mask: bool([0, 7]) })).toBeUndefined()
    expect(refusal({ 'a/b~c': { dtype: 'int64', dims: [2, 1], data: new BigInt64Array(2) } })).toBeUndefined()
    expect(refusal({ mask: { dtype: 'bool', dims: [1, 2], data: Buffer.from([1, 0]) } })).toBeUndefined()
  })

  test('a missing input is named with its shape', () => {
    expect(() => checkComplete({ x: float([1, 3]) }, inputs)).toThrow(
      "RUNTIME_FEED_MISSING: /mask: expected input 'mask': bool[batch, tokens]",
    )
  })

  test('any tensor passes the description it was made from, and fails with one element more', () => {
    const dtypes = Object.keys(dataArrays) as DataType[]
    fc.assert(
      fc.property(
        fc.constantFrom(...dtypes),
        fc.array(fc.nat(4), { maxLength: 5 }),
        fc.array(fc.boolean(), { minLength: 5 }),
        (dtype, dims, named) => {
          const description = { name: 'v', dtype, dims: dims.map((size, axis) => (named[axis] ? `d${axis}` : size)) }
          const count = elementCount(dims)
          checkValues({ v: { dtype, dims, data: new dataArrays[dtype](count) } as never }, [description])
          expect(() => checkValues({ v: { dtype, dims, data: new dataArrays[dtype](count + 1) } as never }, [description])).toThrow(
            'RUNTIME_FEED_DATA',
          )
        },
      ),
    )
  })
})

describe('outputs', () => {
  const outputs: readonly TensorDescription[] = [
    { name: 'logits', dtype: 'float32', dims: ['batch', 9] },
    { name: 'next', dtype: 'float32', dims: ['batch', 3] },
    { name: 'count', dtype: 'int64', dims: [] },
  ]
  const plan = (options: Parameters<typeof planOutputs>[0]) => planOutputs(options, inputs, outputs)

  test('all that are not carried are fetched, each once', () => {
    expect(plan({}).fetch).toEqual(['logits', 'next', 'count'])
    expect(plan({ carry: { next: 'x' } })).toMatchObject({ fetch: ['logits', 'count'], wanted: new Set(['logits', 'count', 'next']) })
    expect(plan({ fetch: ['count', 'count'] }).fetch).toEqual(['count'])
  })

  test.each([
    ['two outputs for one input', { carry: { next: 'x', logits: 'x' } }, 'RUNTIME_CARRY: /carry/logits'],
    ['another type', { carry: { count: 'x' } }, 'RUNTIME_CARRY: /carry/count'],
    ['an unknown output', { carry: { past: 'x' } }, 'RUNTIME_CARRY: /carry/past'],
    ['an unknown input', { carry: { next: 'past' } }, 'RUNTIME_CARRY: /carry/next'],
    ['an unknown fetch', { fetch: ['logits', 'y'] }, 'RUNTIME_FETCH: /fetch/1'],
    ['a fetch of what is carried', { fetch: ['next'], carry: { next: 'x' } }, 'RUNTIME_FETCH: /fetch/0'],
    ['nothing at all', { fetch: [] }, 'RUNTIME_FETCH: /fetch'],
  ])('%s is refused', (_, options, message) => {
    expect(() => plan(options)).toThrow(message)
  })
})
