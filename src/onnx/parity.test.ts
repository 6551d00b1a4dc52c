/** Against the reference implementation: files that Python's `onnx` wrote, and what it reads in them (test/fixtures/onnx/make.py). */
import { readFile } from 'node:fs/promises'
import { expect, test } from 'vitest'
import { z } from 'zod'
import { float32Tensor } from '../tensors.ts'
import { attributeValue, makeGraph, makeModel, makeNode, makeTensor, makeValueInfo, tensorValue } from './build.ts'
import { decodeModel, encodeModel } from './codec.ts'
import { fromFloat16Bits, toFloat16Bits } from './float16.ts'
import { precheckModel } from './precheck.ts'

const fixture = (name: string) => readFile(new URL(`../../test/fixtures/onnx/${name}`, import.meta.url))
const readings = z.object({
  tensors: z.array(z.object({ name: z.string(), dtype: z.string(), dims: z.array(z.number()), bytes: z.string() })),
  attributes: z.record(z.string(), z.unknown()),
  nodes: z.array(
    z.object({ op_type: z.string(), domain: z.string(), name: z.string(), input: z.array(z.string()), output: z.array(z.string()) }),
  ),
})
const hex = (data: ArrayBufferView) => Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString('hex')

test('every element type and attribute kind reads as Python reads it', async () => {
  const model = decodeModel(await fixture('values.onnx'))
  const expected = readings.parse(JSON.parse(String(await fixture('values.json'))))
  const tensors = model.graph?.initializer.map((tensor) => {
    const { dtype, dims, data } = tensorValue(tensor)
    return { name: tensor.name, dtype, dims, bytes: hex(data) }
  })
  expect(tensors).toEqual(expected.tensors)
  expect(tensors).toHaveLength(2 * 13 + 2)
  const [, everyKind] = model.graph?.node ?? []
  const attributes = everyKind?.attribute.map((attribute) => {
    const value = attributeValue(attribute)
    if ('int' in value) return [attribute.name, String(value.int)]
    if ('ints' in value) return [attribute.name, value.ints.map(String)]
    if ('tensor' in value) return [attribute.name, hex(value.tensor.data)]
    return [attribute.name, Object.values(value)[0]]
  })
  expect(Object.fromEntries(attributes ?? [])).toEqual(expected.attributes)
  expect(model.graph?.node.map(({ opType, domain, name, input, output }) => ({ op_type: opType, domain, name, input, output }))).toEqual(
    expected.nodes,
  )
})

test.each(['values.onnx', 'small.onnx'])('%s passes the check and is written back byte for byte', async (name) => {
  const bytes = new Uint8Array(await fixture(name))
  expect(encodeModel(precheckModel(bytes))).toEqual(bytes)
})

test('the builders write what Python onnx.helper writes', async () => {
  const built = makeModel({
    graph: makeGraph({
      nodes: [
        makeNode({
          opType: 'Gemm',
          name: 'first',
          inputs: ['x', 'w', ''],
          outputs: ['h'],
          attributes: { alpha: { float: 0.5 }, transB: { int: 1 } },
        }),
        makeNode({ opType: 'QuickGelu', domain: 'com.microsoft', inputs: ['h'], outputs: ['y'], attributes: { alpha: { float: 1.702 } } }),
      ],
      inputs: [makeValueInfo('x', 'float32', ['n', 2])],
      outputs: [makeValueInfo('y', 'float32', ['n', 3])],
      initializers: [makeTensor('w', float32Tensor(Float32Array.of(0, 1, 2, 3, 4, 5), [3, 2]))],
    }),
    opsets: { '': 21, 'com.microsoft': 1 },
  })
  expect(Buffer.from(encodeModel(built)).toString('hex')).toBe((await fixture('small.onnx')).toString('hex'))
})

test('float32 rounds to float16 as NumPy rounds it', async () => {
  const pairs = z.array(z.tuple([z.string(), z.string()])).parse(JSON.parse(String(await fixture('float16.json'))))
  for (const [pattern, half] of pairs) {
    const value = Buffer.from(pattern, 'hex').readFloatBE()
    const wanted = Number.parseInt(half, 16)
    const got = toFloat16Bits(value)
    if (Number.isNaN(value)) expect(fromFloat16Bits(got), pattern).toBeNaN()
    else expect(got.toString(16), `${pattern} ${value}`).toBe(wanted.toString(16))
  }
  for (let half = 0; half < 0x10000; half++) {
    const value = fromFloat16Bits(half)
    if (!Number.isNaN(value)) expect(toFloat16Bits(value)).toBe(half)
  }
})
