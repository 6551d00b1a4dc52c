import { create } from '@bufbuild/protobuf'
import fc from 'fast-check'
import { InferenceSession, Tensor } from 'onnxruntime-node'
import { describe, expect, test } from 'vitest'
import { bytesPerElement, type DataType, elementCount, float32Tensor, int64Tensor } from '../tensors.ts'
import {
  type AttributeInput,
  attribute,
  attributeValue,
  makeExternalTensor,
  makeGraph,
  makeModel,
  makeNode,
  makeTensor,
  makeValueInfo,
  tensorValue,
  valueDescription,
} from './build.ts'
import { decodeModel, encodeModel, withFields } from './codec.ts'
import { onnxDataTypes, tensorFromBytes } from './dtypes.ts'
import { NodeProtoSchema, TensorProto_DataType, TensorProtoSchema } from './onnx_pb.ts'

const dtypes = Object.keys(bytesPerElement).filter((name): name is DataType => name in bytesPerElement)

function smallModel() {
  return makeModel({
    graph: makeGraph({
      nodes: [makeNode({ opType: 'Gemm', inputs: ['x', 'w'], outputs: ['y'], attributes: { transB: { int: 1 }, alpha: { float: 0.5 } } })],
      inputs: [makeValueInfo('x', 'float32', ['n', 2])],
      outputs: [makeValueInfo('y', 'float32', ['n', 3])],
      initializers: [makeTensor('w', float32Tensor(Float32Array.of(1, 2, 3, 4, 5, 6), [3, 2]))],
    }),
  })
}

test('ONNX Runtime runs a built model', async () => {
  const session = await InferenceSession.create(encodeModel(smallModel()))
  const { y } = await session.run({ x: new Tensor('float32', [1, 10, 2, 20], [2, 2]) })
  expect([...(y?.data ?? [])]).toEqual([10.5, 21.5, 32.5, 21, 43, 65])
  await session.release()
})

describe('tensors', () => {
  test('every element type survives raw_data, encoding and decoding, at any alignment', () => {
    const tensors = fc
      .record({
        dtype: fc.constantFrom(...dtypes),
        dims: fc.array(fc.nat(4), { maxLength: 4 }),
        name: fc.string({ maxLength: 9 }),
        seed: fc.nat(255),
      })
      .map(({ dtype, dims, name, seed }) => {
        const bytes = Uint8Array.from({ length: elementCount(dims) * bytesPerElement[dtype] }, (_, i) => (i * 37 + seed) % 251)
        return { name, value: tensorFromBytes(dtype, dims, bytes) }
      })
    fc.assert(
      fc.property(fc.array(tensors, { maxLength: 5 }), (list) => {
        const graph = makeGraph({
          nodes: [],
          inputs: [],
          outputs: [],
          initializers: list.map(({ name, value }) => makeTensor(name, value)),
        })
        const decoded = decodeModel(encodeModel(makeModel({ graph })))
        expect(decoded.graph?.initializer.map(tensorValue)).toEqual(list.map(({ value }) => value))
        expect(decoded.graph?.initializer.map(({ name }) => name)).toEqual(list.map(({ name }) => name))
      }),
    )
  })

  test('bytes that are not aligned for their type are copied, from a Buffer too', () => {
    const shifted = Buffer.from([9, 0, 0, 128, 63, 0, 0, 0, 64]).subarray(1)
    expect(tensorFromBytes('float32', [2], shifted).data).toEqual(Float32Array.of(1, 2))
    expect(tensorFromBytes('float64', [1], shifted).data).toEqual(Float64Array.of(Buffer.from(shifted).readDoubleLE()))
  })

  test('a shape that the data do not fill is refused', () => {
    expect(() => makeTensor('w', float32Tensor(new Float32Array(5), [2, 3]))).toThrow(
      'ONNX_TENSOR_SIZE: w: got 5 elements, expected the shape [2, 3]',
    )
    expect(() => tensorFromBytes('float32', [2], new Uint8Array(7))).toThrow('ONNX_TENSOR_SIZE')
    expect(() => makeExternalTensor('w', 'float16', [4], { location: 'a.bin', offset: 0, length: 9 })).toThrow('ONNX_TENSOR_SIZE')
  })

  test('sizes below zero or beyond memory are refused before anything is allocated', () => {
    for (const dims of [[-1n], [-2n, -3n], [2n ** 40n, 2n ** 40n], [2n ** 62n]]) {
      const tensor = create(TensorProtoSchema, { dims, dataType: TensorProto_DataType.FLOAT })
      expect(() => tensorValue(tensor)).toThrow('ONNX_TENSOR_SIZE')
    }
  })

  test('external elements and foreign element types are refused by name', () => {
    const external = makeExternalTensor('w', 'float32', [2], { location: 'a.bin', offset: 0, length: 8 })
    expect(() => tensorValue(external)).toThrow('ONNX_TENSOR_EXTERNAL: w')
    const fp8 = create(TensorProtoSchema, { name: 'q', dims: [1n], dataType: TensorProto_DataType.FLOAT8E4M3FN })
    expect(() => tensorValue(fp8)).toThrow('got FLOAT8E4M3FN')
  })

  test('the element types have the numbers of onnx.proto', () => {
    expect(onnxDataTypes).toEqual({
      float32: 1,
      uint8: 2,
      int8: 3,
      uint16: 4,
      int16: 5,
      int32: 6,
      int64: 7,
      bool: 9,
      float16: 10,
      float64: 11,
      uint32: 12,
      uint64: 13,
      bfloat16: 16,
    })
  })
})

describe('attributes', () => {
  const float = fc.float({ noNaN: true })
  const int = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n })
  const inputs: fc.Arbitrary<AttributeInput> = fc.oneof(
    fc.record({ int }),
    fc.record({ float }),
    fc.record({ string: fc.string({ unit: 'grapheme' }) }),
    fc.record({ ints: fc.array(int) }),
    fc.record({ floats: fc.array(float) }),
    fc.record({ strings: fc.array(fc.string({ unit: 'grapheme' })) }),
    fc.record({ tensor: fc.array(int).map((data) => int64Tensor(BigInt64Array.from(data), [data.length])) }),
  )

  test('every kind survives encoding and decoding', () => {
    fc.assert(
      fc.property(fc.array(inputs), (values) => {
        const nodes = values.map((value) =>
          makeNode({ opType: 'Op', domain: 'test', name: 'n', inputs: ['', 'x'], outputs: ['y'], attributes: { value } }),
        )
        const decoded = decodeModel(encodeModel(makeModel({ graph: makeGraph({ nodes, inputs: [], outputs: [] }) })))
        expect(decoded.graph?.node.map((node) => node.attribute.map(attributeValue))).toEqual(values.map((value) => [value]))
        for (const node of decoded.graph?.node ?? [])
          expect([node.opType, node.domain, node.name, node.input, node.output]).toEqual(['Op', 'test', 'n', ['', 'x'], ['y']])
      }),
    )
  })

  test('a graph is read back as the graph', () => {
    const graph = makeGraph({ name: 'body', nodes: [], inputs: [], outputs: [] })
    expect(attributeValue(attribute('then_branch', { graph }))).toEqual({ graph })
  })

  test('kinds without a plain value are refused by name', () => {
    const reference = withFields(attribute('alpha', { float: 1 }), { refAttrName: 'outer' })
    expect(() => attributeValue(reference)).toThrow("ONNX_ATTRIBUTE_UNSUPPORTED: alpha: got a reference to the function attribute 'outer'")
    const latin1 = withFields(attribute('s', { string: '' }), { s: Uint8Array.of(0xe9) })
    expect(() => attributeValue(latin1)).toThrow('ONNX_MALFORMED: s')
  })
})

test.each([
  { name: 'x', dtype: 'float32', dims: ['batch', 3, 224, ''] },
  { name: 'scalar', dtype: 'int64', dims: [] },
  { name: 'unranked', dtype: 'bool' },
] as const)('value $name is described as it was made', (description) => {
  const { name, dtype } = description
  expect(valueDescription(makeValueInfo(name, dtype, 'dims' in description ? description.dims : undefined))).toEqual(description)
})

describe('codec', () => {
  test('unknown fields survive a round trip byte for byte', () => {
    const known = encodeModel(smallModel())
    // Field 1000, wire type 2, four bytes; then field 1001, varint 7: neither is in the schema.
    const unknown = Uint8Array.of(0xc2, 0x3e, 4, 1, 2, 3, 4, 0xc8, 0x3e, 7)
    const bytes = Uint8Array.of(...known, ...unknown)
    const again = encodeModel(decodeModel(bytes))
    expect(again).toEqual(bytes)
    expect(encodeModel(withFields(decodeModel(bytes), { producerName: 'modalign' }))).toEqual(bytes)
  })

  test('withFields leaves the original alone and keeps unset defaults', () => {
    const node = makeNode({ opType: 'Relu', inputs: ['x'], outputs: ['y'] })
    const renamed = withFields(node, { input: ['z'] })
    expect([node.input, renamed.input, renamed.domain, renamed.opType]).toEqual([['x'], ['z'], '', 'Relu'])
    expect(renamed.$typeName).toBe(NodeProtoSchema.typeName)
  })

  test('bytes that are no model, and numbers that fit no field, are typed errors', () => {
    expect(() => decodeModel(Uint8Array.of(0x3a, 0xff, 0xff, 1), 'a.onnx')).toThrow('ONNX_MALFORMED: a.onnx')
    const node = makeNode({ opType: 'Op', inputs: [], outputs: [], attributes: { a: { float: 1e39 } } })
    expect(() => encodeModel(makeModel({ graph: makeGraph({ nodes: [node], inputs: [], outputs: [] }) }))).toThrow('ONNX_VALUE_RANGE')
  })
})
