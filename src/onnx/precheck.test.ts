import { readFile } from 'node:fs/promises'
import { create } from '@bufbuild/protobuf'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ModalignError } from '../errors.ts'
import { float32Tensor } from '../tensors.ts'
import {
  attribute,
  attributeValue,
  makeExternalTensor,
  makeGraph,
  makeModel,
  makeNode,
  makeTensor,
  makeValueInfo,
  tensorValue,
} from './build.ts'
import { encodeModel, withFields } from './codec.ts'
import { convertInitializersToFloat16 } from './half.ts'
import {
  type AttributeProto,
  FunctionProtoSchema,
  type ModelProto,
  type NodeProto,
  SparseTensorProtoSchema,
  type TensorProto,
  TensorProto_DataLocation,
  TensorProto_DataType,
  TensorProto_SegmentSchema,
  TensorProtoSchema,
} from './onnx_pb.ts'
import { checkModel, precheckModel } from './precheck.ts'
import { exposeTensors, listTensors } from './surgery.ts'
import { visitModel } from './visit.ts'
import { checkWire } from './wire.ts'

const identity = makeNode({ opType: 'Identity', inputs: ['x'], outputs: ['y'] })

function model({
  initializers = [],
  nodes = [identity],
  ...rest
}: {
  initializers?: TensorProto[]
  nodes?: NodeProto[]
  opsets?: Record<string, number>
  irVersion?: number
} = {}) {
  const graph = makeGraph({
    nodes,
    inputs: [makeValueInfo('x', 'float32', [1])],
    outputs: [makeValueInfo('y', 'float32', [1])],
    initializers,
  })
  return makeModel({ graph, ...rest })
}

function varint(value: number): number[] {
  const bytes: number[] = []
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return [...bytes, rest]
    bytes.push((rest % 128) | 0x80)
  }
}
const field = (number: number, wireType: number) => varint(number * 8 + wireType)
const message = (number: number, content: readonly number[]) => [...field(number, 2), ...varint(content.length), ...content]

/** A graph in an attribute of a node in a graph ..., built from the inside out without copying. */
function nested(levels: number): Uint8Array {
  const headers: number[][] = []
  let length = 0
  for (let level = 0; level < levels; level++) {
    for (const number of [6, 5, 1]) {
      const header = [...field(number, 2), ...varint(length)]
      headers.push(header)
      length += header.length
    }
  }
  headers.push([...field(7, 2), ...varint(length)])
  return Uint8Array.from(headers.reverse().flat())
}

describe('wire', () => {
  test.each<[string, number[], string]>([
    ['a varint of 11 bytes', [...field(1, 0), ...Array<number>(10).fill(0x80), 1], 'a varint longer than 10 bytes at byte 1'],
    ['a varint above 64 bits', [...field(1, 0), ...Array<number>(9).fill(0xff), 2], 'a varint above 64 bits at byte 1'],
    ['a varint that stops', [...field(1, 0), 0x80], 'a varint that does not end at byte 1'],
    ['a tag of 6 bytes', [0x88, 0x80, 0x80, 0x80, 0x80, 0], 'a varint longer than 5 bytes at byte 0'],
    ['a tag above 32 bits', [0xf8, 0xff, 0xff, 0xff, 0x7f, 0], 'a tag or length above 32 bits at byte 0'],
    ['a length beyond the file', [...field(7, 2), 5, 0], 'a length of 5 bytes where 1 are left at byte 1'],
    ['a length of 4 GiB', [...field(7, 2), 0xff, 0xff, 0xff, 0xff, 0x0f], 'a length of 4294967295 bytes where 0 are left'],
    ['a length beyond its message', message(7, [...field(2, 2), 3, 65]), 'a length of 3 bytes where 1 are left'],
    ['a fixed value cut short', [...field(99, 1), 1, 2, 3], 'a fixed-size value of 8 bytes where 3 are left'],
    ['a start of group', field(99, 3), 'wire type 3'],
    ['an end of group', field(99, 4), 'wire type 4'],
    ['wire type 6', field(99, 6), 'wire type 6'],
    ['wire type 7', field(99, 7), 'wire type 7'],
    ['field number 0', field(0, 0), 'field number 0'],
    ['a graph that is a number', [...field(7, 0), 1], 'wire type 0 for ModelProto.graph'],
    ['an IR version that is bytes', message(1, [8]), 'wire type 2 for ModelProto.ir_version'],
    ['two graphs', [...message(7, []), ...message(7, [])], 'a second ModelProto.graph'],
    ['a name that is not UTF-8', message(7, message(2, [0xc0, 0xae])), 'text in name that is not UTF-8'],
    ['packed floats of 5 bytes', message(7, message(5, message(4, [0, 0, 0, 0, 0]))), '5 bytes of packed float_data, not a multiple of 4'],
    ['packed integers cut short', message(7, message(5, message(7, [0x80]))), 'a varint that does not end'],
  ])('%s is refused', (_, bytes, got) => {
    expect(() => checkWire(Uint8Array.from(bytes), {}, 'm.onnx')).toThrow(`ONNX_MALFORMED: m.onnx: got ${got}`)
  })

  test('nesting is refused before the stack ends', () => {
    expect(() => checkWire(nested(20))).not.toThrow()
    expect(() => checkWire(nested(21))).toThrow('ONNX_LIMIT: got messages nested more than 64 deep')
    expect(() => checkWire(nested(35_000))).toThrow('ONNX_LIMIT')
  })

  test('counts are bounded, packed integers one by one', () => {
    const nodes = Uint8Array.from(message(7, Array<number[]>(10).fill(message(1, [])).flat()))
    expect(() => checkWire(nodes, { messages: 12 })).not.toThrow()
    expect(() => checkWire(nodes, { messages: 11 })).toThrow('more than 11 messages')
    const packed = Uint8Array.from(message(7, message(5, message(7, [1, 2, 3]))))
    expect(() => checkWire(packed, { fields: 6 })).not.toThrow()
    expect(() => checkWire(packed, { fields: 5 })).toThrow('more than 5 fields')
  })

  test('unknown fields pass', () => {
    checkWire(
      Uint8Array.from([
        ...message(1000, [1, 2]),
        ...field(1001, 0),
        7,
        ...field(1002, 5),
        1,
        2,
        3,
        4,
        ...field(1002, 1),
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
      ]),
    )
  })
})

describe('kinds of file', () => {
  const text = (content: string) => new TextEncoder().encode(content)
  test.each<[string, Uint8Array, string]>([
    ['a Git LFS pointer', text('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n'), 'ONNX_LFS_POINTER: m.onnx'],
    ['nothing', new Uint8Array(), 'ONNX_FORMAT: m.onnx: got an empty file'],
    ['a zip archive', text('PK\u0003\u0004abcdefgh'), 'got a zip archive'],
    ['a pickle', Uint8Array.of(0x80, 4, 0x95), 'got a Python pickle'],
    ['GGUF', text('GGUF\u0003\0\0\0'), 'got a GGUF file'],
    ['safetensors', Uint8Array.of(16, 0, 0, 0, 0, 0, 0, 0, 0x7b, 0x22), 'got a safetensors file'],
    ['an .ort file', text('\u0020\0\0\0ORTM'), 'got an .ort file'],
    ['an error page', text('<!DOCTYPE html><html>'), 'got text'],
    ['a truncated model', encodeModel(model()).subarray(0, 40), 'ONNX_MALFORMED: m.onnx'],
    ['no graph', Uint8Array.of(8, 10), 'ONNX_MALFORMED: m.onnx, /graph'],
  ])('%s', (_, bytes, error) => {
    expect(() => precheckModel(bytes, { file: 'm.onnx' })).toThrow(error)
  })
})

describe('versions and operators', () => {
  test.each<[string, ModelProto, string]>([
    ['IR 14', model({ irVersion: 14 }), 'ONNX_IR_VERSION: got IR version 14, expected 3 to 13'],
    ['IR 2', model({ irVersion: 2 }), 'ONNX_IR_VERSION'],
    ['opset 27', model({ opsets: { '': 27 } }), 'ONNX_OPSET: /opset_import: got operator set ai.onnx 27, expected 1 to 26'],
    ['opset 0', model({ opsets: { '': 0 } }), 'ONNX_OPSET'],
    ['no opset', model({ opsets: {} }), 'ONNX_OPSET'],
    ['two opsets', model({ opsets: { '': 20, 'ai.onnx': 21 } }), 'ONNX_OPSET'],
    [
      'a foreign domain',
      model({ nodes: [makeNode({ opType: 'Rm', domain: 'evil.corp', inputs: ['x'], outputs: ['y'] })] }),
      'ONNX_DOMAIN: /graph/node/0: got operator evil.corp.Rm',
    ],
  ])('%s is refused', (_, bad, error) => {
    expect(() => checkModel(bad)).toThrow(error)
  })

  test('domains pass when allowed, when defined by the model, or when only imported', () => {
    const node = makeNode({ opType: 'Own', domain: 'mine', inputs: ['x'], outputs: ['y'] })
    expect(() => checkModel(model({ nodes: [node] }))).toThrow('ONNX_DOMAIN')
    checkModel(model({ nodes: [node] }), { allowDomains: ['mine'] })
    const own = create(FunctionProtoSchema, {
      domain: 'mine',
      name: 'Own',
      input: ['a'],
      output: ['b'],
      node: [makeNode({ opType: 'Neg', inputs: ['a'], outputs: ['b'] })],
    })
    checkModel(withFields(model({ nodes: [node] }), { functions: [own] }))
    checkModel(model({ opsets: { '': 21, 'com.microsoft.nchwc': 1 } }))
  })

  test('a foreign operator is found inside a branch', () => {
    const branch = makeGraph({
      nodes: [makeNode({ opType: 'Rm', domain: 'evil', inputs: [], outputs: ['z'] })],
      inputs: [],
      outputs: [makeValueInfo('z', 'float32')],
    })
    const choice = makeNode({
      opType: 'If',
      inputs: ['x'],
      outputs: ['y'],
      attributes: { then_branch: { graph: branch }, else_branch: { graph: branch } },
    })
    expect(() => checkModel(model({ nodes: [choice] }))).toThrow('/graph/node/0/attribute/0/g/node/0: got operator evil.Rm')
  })

  const calling = (name: string, ...callees: string[]) =>
    create(FunctionProtoSchema, {
      domain: 'f',
      name,
      input: ['a'],
      output: ['b'],
      node: callees.map((opType) => makeNode({ opType, domain: 'f', inputs: ['a'], outputs: ['b'] })),
    })

  test('functions that call themselves or grow without measure are refused', () => {
    expect(() => checkModel(withFields(model(), { functions: [calling('A', 'A')] }))).toThrow('ONNX_FUNCTION_EXPANSION')
    expect(() => checkModel(withFields(model(), { functions: [calling('A', 'B'), calling('B', 'C'), calling('C', 'A')] }))).toThrow(
      'which calls itself',
    )
    const bomb = Array.from({ length: 9 }, (_, i) => calling(`F${i}`, ...Array<string>(10).fill(`F${i + 1}`)))
    const call = (opType: string) => [makeNode({ opType, domain: 'f', inputs: ['x'], outputs: ['y'] })]
    expect(() => checkModel(withFields(model({ nodes: call('F0') }), { functions: bomb }), { allowDomains: ['f'] })).toThrow(
      '1000000000 nodes',
    )
    checkModel(withFields(model({ nodes: call('F4') }), { functions: bomb }), { allowDomains: ['f'] })
    // A diamond is no circle, and a long chain needs no stack.
    checkModel(withFields(model(), { functions: [calling('A', 'B', 'C'), calling('B', 'D'), calling('C', 'B', 'D'), calling('D')] }))
    const chain = Array.from({ length: 20_000 }, (_, i) => calling(`F${i}`, `F${i + 1}`))
    checkModel(withFields(model({ nodes: call('F0') }), { functions: chain }), { allowDomains: ['f'] })
    expect(() => checkModel(withFields(model(), { functions: [calling('A'), calling('A')] }))).toThrow('two functions A')
  })
})

describe('tensors', () => {
  const tensor = (init: Parameters<typeof create<typeof TensorProtoSchema>>[1]) =>
    create(TensorProtoSchema, { name: 'w', dataType: TensorProto_DataType.FLOAT, ...init })
  test.each<[string, TensorProto, string]>([
    ['a negative size', tensor({ dims: [-1n] }), 'ONNX_TENSOR_SIZE'],
    ['a product above 2^63', tensor({ dims: [2n ** 40n, 2n ** 40n] }), 'ONNX_TENSOR_SIZE'],
    ['two negative sizes', tensor({ dims: [-1n, -4n], rawData: new Uint8Array(16) }), 'ONNX_TENSOR_SIZE'],
    ['too few bytes', tensor({ dims: [3n], rawData: new Uint8Array(11) }), 'w: 11 bytes, expected 12'],
    ['too few values', tensor({ dims: [3n], floatData: [1, 2] }), 'w: 2 values in the field for FLOAT, expected 3'],
    ['values in the wrong field', tensor({ dims: [2n], doubleData: [1, 2] }), 'w: 0 values in the field for FLOAT, expected 2'],
    ['values in a wrong field of an empty tensor', tensor({ dims: [0n], doubleData: [1, 2] }), 'ONNX_TENSOR_SIZE'],
    ['values twice', tensor({ dims: [1n], floatData: [1], rawData: new Uint8Array(4) }), 'elements in several fields'],
    ['no element type', tensor({ dims: [0n], dataType: 0 }), 'ONNX_DTYPE_UNSUPPORTED'],
    ['element type 99', tensor({ dims: [0n], dataType: 99 }), 'got w: data type 99'],
    ['a segment', tensor({ dims: [0n], segment: create(TensorProto_SegmentSchema, { begin: 0n, end: 1n }) }), 'a tensor in segments'],
    [
      'odd 4-bit integers',
      tensor({ dims: [3n], dataType: TensorProto_DataType.INT4, rawData: new Uint8Array(1) }),
      'w: 1 bytes, expected 2',
    ],
    [
      'complex numbers without imaginary parts',
      tensor({ dims: [2n], dataType: TensorProto_DataType.COMPLEX64, floatData: [1, 2] }),
      'expected 4',
    ],
    [
      'missing strings',
      tensor({ dims: [2n], dataType: TensorProto_DataType.STRING, stringData: [new Uint8Array()] }),
      'w: 1 strings, expected 2',
    ],
    [
      'strings as raw bytes',
      tensor({ dims: [1n], dataType: TensorProto_DataType.STRING, rawData: new Uint8Array(1) }),
      'strings outside string_data',
    ],
  ])('%s: refused', (_, bad, error) => {
    expect(() => checkModel(model({ initializers: [bad] }))).toThrow(error)
    const constant = withFields(identity, {
      attribute: [withFields(attribute('value', { tensor: float32Tensor(new Float32Array(1), [1]) }), { t: bad })],
    })
    expect(() => checkModel(model({ nodes: [constant] }))).toThrow(error)
  })

  test('a sparse tensor may not ask for more memory than the file could pay for', () => {
    const values = makeTensor('s', float32Tensor(new Float32Array(1), [1]))
    const sparse = (dims: bigint[]) => create(SparseTensorProtoSchema, { dims, values })
    const holding = (dims: bigint[]) => {
      const { graph, ...rest } = model()
      if (graph === undefined) throw new Error('no graph')
      return withFields(model(), { ...rest, graph: withFields(graph, { sparseInitializer: [sparse(dims)] }) })
    }
    checkModel(holding([1000n, 1000n]))
    expect(() => checkModel(holding([2n ** 30n]))).toThrow('ONNX_TENSOR_SIZE')
  })

  test('an attribute without a type is refused', () => {
    const untyped: AttributeProto = withFields(attribute('axis', { int: 1 }), { type: 0 })
    expect(() => checkModel(model({ nodes: [withFields(identity, { attribute: [untyped] })] }))).toThrow(
      'attribute axis without a known type',
    )
  })
})

describe('external data', () => {
  const at = (location: string, offset = 0) =>
    model({ initializers: [makeExternalTensor('w', 'float32', [4], { location, offset, length: 16 })] })
  const entries = (pairs: Record<string, string>) =>
    model({
      initializers: [
        create(TensorProtoSchema, {
          name: 'w',
          dims: [4n],
          dataType: TensorProto_DataType.FLOAT,
          dataLocation: TensorProto_DataLocation.EXTERNAL,
          externalData: Object.entries(pairs).map(([key, value]) => ({ key, value })),
        }),
      ],
    })

  test.each([
    '../../etc/passwd',
    '/etc/passwd',
    'C:\\weights',
    'C:weights',
    '\\\\server\\share\\w',
    'a\\b',
    'a/../../b',
    '..',
    '.',
    'a/',
    '',
    'w\0.bin',
    'w\n',
    'w.bin:stream',
    '*/_ORT_MEM_ADDR_/*',
    '_ORT_MEM_ADDR_',
    '.. /w',
    'w.',
    `${'a'.repeat(5000)}`,
    'https://example.com/w',
  ])('the location %j is refused', (location) => {
    expect(() => checkModel(at(location))).toThrow('ONNX_EXTERNAL_PATH')
  })

  test.each(['w.bin', 'model.onnx_data', 'folder/w.bin', './w.bin', 'ünïcode.bin', '..w', 'a..b'])('the location %j passes', (location) => {
    checkModel(at(location))
  })

  test.each<[string, Record<string, string>]>([
    ['no location', { offset: '0' }],
    ['a negative offset', { location: 'w', offset: '-4' }],
    ['a hexadecimal offset', { location: 'w', offset: '0x10' }],
    ['an offset beyond 2^53', { location: 'w', offset: '9999999999999999' }],
    ['an empty length', { location: 'w', length: '' }],
    ['an unknown entry', { location: 'w', prepacked_0: 'x' }],
  ])('%s is refused', (_, pairs) => {
    expect(() => checkModel(entries(pairs))).toThrow('ONNX_EXTERNAL_DATA')
  })

  test('ranges lie inside their files and have the size of their tensors', () => {
    const externalSizes = new Map([['w.bin', 32]])
    checkModel(at('w.bin', 16), { externalSizes })
    checkModel(entries({ location: 'w.bin' }), { externalSizes })
    expect(() => checkModel(at('w.bin', 17), { externalSizes })).toThrow(
      'ONNX_EXTERNAL_DATA: /graph/initializer/0: got w: bytes 17 to 33 of w.bin',
    )
    expect(() => checkModel(at('v.bin'), { externalSizes })).toThrow('ONNX_EXTERNAL_MISSING')
    expect(() => checkModel(entries({ location: 'w.bin', length: '12' }), { externalSizes })).toThrow(
      '12 bytes of external data, expected 16',
    )
  })
})

test('whatever happens to a model, only ModalignErrors come out', async () => {
  const original = new Uint8Array(await readFile(new URL('../../test/fixtures/onnx/values.onnx', import.meta.url)))
  const position = fc.nat(original.length - 1)
  const splice = fc.record({ at: position, remove: fc.nat(12), insert: fc.uint8Array({ maxLength: 12 }) })
  const set = fc.record({
    at: position,
    remove: fc.constant(1),
    insert: fc.oneof(
      fc.uint8Array({ minLength: 1, maxLength: 1 }),
      fc.constantFrom(0, 1, 0x7f, 0x80, 0xff).map((byte) => Uint8Array.of(byte)),
    ),
  })
  const copy = fc
    .record({ from: position, length: fc.nat(200), at: position })
    .map(({ from, length, at }) => ({ at, remove: 0, insert: original.slice(from, from + length) }))
  let accepted = 0
  fc.assert(
    fc.property(
      fc.array(fc.oneof({ weight: 6, arbitrary: set }, { weight: 1, arbitrary: splice }, { weight: 1, arbitrary: copy }), {
        minLength: 1,
        maxLength: 4,
      }),
      (edits) => {
        const bytes = edits.reduce(
          (before, { at, remove, insert }) => Uint8Array.from([...before.subarray(0, at), ...insert, ...before.subarray(at + remove)]),
          original,
        )
        const decoded = attempt(() => precheckModel(bytes))()
        if (decoded === undefined) return
        accepted++
        // What passes must not break what reads it, and passes again when we write it.
        visitModel(decoded, { tensor: attempt(tensorValue), attribute: attempt(attributeValue) })
        const last = listTensors(decoded).at(-1)?.name ?? ''
        attempt(() => exposeTensors(decoded, [last]))()
        attempt(() => convertInitializersToFloat16(decoded))()
        precheckModel(encodeModel(decoded))
      },
    ),
    { numRuns: process.env.MODALIGN_LONG === '1' ? 100_000 : 2000 },
  )
  // Both sides of the check must have been exercised.
  expect(accepted).toBeGreaterThan(100)
})

/** Undefined in place of a ModalignError; everything else is a defect. */
function attempt<A extends readonly unknown[], R>(use: (...values: A) => R): (...values: A) => R | undefined {
  return (...values) => {
    try {
      return use(...values)
    } catch (error) {
      if (!(error instanceof ModalignError)) throw error
      return undefined
    }
  }
}
