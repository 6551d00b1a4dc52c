import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { create } from '@bufbuild/protobuf'
import { InferenceSession, Tensor } from 'onnxruntime-node'
import { describe, expect, test } from 'vitest'
import { skipWithout, testDataMissing } from '../../test/skip.ts'
import { float32Tensor, int64Tensor } from '../tensors.ts'
import { makeGraph, makeModel, makeNode, makeTensor, makeValueInfo, tensorValue } from './build.ts'
import { decodeModel, encodeModel, withFields } from './codec.ts'
import { fromFloat16Bits } from './float16.ts'
import { convertInitializersToFloat16 } from './half.ts'
import { FunctionProtoSchema, type ModelProto } from './onnx_pb.ts'
import { exposeTensors, listTensors } from './surgery.ts'

const data = process.env.MODALIGN_TEST_DATA

/** x -> a -> (If: a * scale | a + bias) -> y, and beside it x -> c -> d with an input and an initializer of its own. */
function branching(): ModelProto {
  const branch = (opType: string, outer: string) =>
    makeGraph({
      name: opType,
      nodes: [makeNode({ opType, inputs: ['a', outer], outputs: [`${opType}_y`] })],
      inputs: [],
      outputs: [makeValueInfo(`${opType}_y`, 'float32', ['n'])],
    })
  const scalar = (name: string, value: number) => makeTensor(name, float32Tensor(Float32Array.of(value), [1]))
  const graph = makeGraph({
    nodes: [
      makeNode({ opType: 'Neg', inputs: ['x'], outputs: ['a'] }),
      makeNode({
        opType: 'If',
        inputs: ['flag'],
        outputs: ['y'],
        attributes: { then_branch: { graph: branch('Mul', 'scale') }, else_branch: { graph: branch('Add', 'bias') } },
      }),
      makeNode({
        opType: 'Constant',
        inputs: [],
        outputs: ['two'],
        attributes: { value: { tensor: float32Tensor(Float32Array.of(2), [1]) } },
      }),
      makeNode({ opType: 'Mul', inputs: ['x', 'two'], outputs: ['c'] }),
      makeNode({ opType: 'Split', inputs: ['other', 'sizes'], outputs: ['left', 'right'] }),
      makeNode({ opType: 'Add', inputs: ['c', 'left'], outputs: ['d'] }),
    ],
    inputs: [makeValueInfo('x', 'float32', ['n']), makeValueInfo('flag', 'bool', []), makeValueInfo('other', 'float32', [2])],
    outputs: [makeValueInfo('y', 'float32', ['n']), makeValueInfo('d', 'float32', ['n'])],
    initializers: [scalar('scale', 10), scalar('bias', 100), makeTensor('sizes', int64Tensor([1, 1], [2]))],
    valueInfo: [makeValueInfo('c', 'float32', ['n'])],
  })
  return makeModel({ graph })
}

async function run(
  model: ModelProto,
  feeds: InferenceSession.OnnxValueMapType,
  names?: readonly string[],
): Promise<Record<string, number[]>> {
  const session = await InferenceSession.create(encodeModel(model))
  try {
    const results = names === undefined ? await session.run(feeds) : await session.run(feeds, [...names])
    return Object.fromEntries(Object.entries(results).map(([name, tensor]) => [name, Array.from(tensor.data, Number)]))
  } finally {
    await session.release()
  }
}

const x = new Tensor('float32', [1, -3], [2])
const flag = (value: boolean) => new Tensor('bool', [value], [])
const contents = ({ graph }: ModelProto) => ({
  nodes: graph?.node.map(({ opType }) => opType),
  inputs: graph?.input.map(({ name }) => name),
  outputs: graph?.output.map(({ name }) => name),
  initializers: graph?.initializer.map(({ name }) => name),
})

describe('exposeTensors', () => {
  test('keeps what a branch reads from outside', async () => {
    const cut = exposeTensors(branching(), ['y'])
    expect(contents(cut)).toEqual({ nodes: ['Neg', 'If'], inputs: ['x', 'flag'], outputs: ['y'], initializers: ['scale', 'bias'] })
    expect(await run(cut, { x, flag: flag(true) })).toEqual({ y: [-10, 30] })
    expect(await run(cut, { x, flag: flag(false) })).toEqual({ y: [99, 103] })
  })

  test('cuts at an inner value, whose type the file states', async () => {
    const cut = exposeTensors(branching(), ['c'])
    expect(contents(cut)).toEqual({ nodes: ['Constant', 'Mul'], inputs: ['x'], outputs: ['c'], initializers: [] })
    expect(await run(cut, { x })).toEqual({ c: [2, -6] })
  })

  test('a node with two outputs stays whole; order of outputs is as named; types may be unknown', async () => {
    const cut = exposeTensors(branching(), ['right', 'a'])
    expect(contents(cut)).toEqual({ nodes: ['Neg', 'Split'], inputs: ['x', 'other'], outputs: ['right', 'a'], initializers: ['sizes'] })
    expect(await run(cut, { x, other: new Tensor('float32', [5, 7], [2]) })).toEqual({ right: [7], a: [-1, 3] })
  })

  test('without pruning adds outputs and leaves the model as it was', async () => {
    const original = branching()
    const before = encodeModel(original)
    const more = exposeTensors(original, ['a', 'y', 'a'], { prune: false })
    expect(contents(more)).toEqual({ ...contents(original), outputs: ['y', 'd', 'a'] })
    expect(encodeModel(original)).toEqual(before)
    const feeds = { x, flag: flag(true), other: new Tensor('float32', [5, 7], [2]) }
    expect(await run(more, feeds)).toEqual({ ...(await run(original, feeds)), a: [-1, 3] })
  })

  test('a loop body reads outer values too', async () => {
    // for 3 turns: v = v + step, with `step` made outside the body
    const body = makeGraph({
      name: 'body',
      nodes: [
        makeNode({ opType: 'Add', inputs: ['v_in', 'step'], outputs: ['v_out'] }),
        makeNode({ opType: 'Identity', inputs: ['go_in'], outputs: ['go_out'] }),
      ],
      inputs: [makeValueInfo('i', 'int64', []), makeValueInfo('go_in', 'bool', []), makeValueInfo('v_in', 'float32', [2])],
      outputs: [makeValueInfo('go_out', 'bool', []), makeValueInfo('v_out', 'float32', [2])],
    })
    const graph = makeGraph({
      nodes: [
        makeNode({ opType: 'Abs', inputs: ['x'], outputs: ['step'] }),
        makeNode({ opType: 'Loop', inputs: ['turns', '', 'x'], outputs: ['sum'], attributes: { body: { graph: body } } }),
        makeNode({ opType: 'Exp', inputs: ['sum'], outputs: ['y'] }),
      ],
      inputs: [makeValueInfo('x', 'float32', [2])],
      outputs: [makeValueInfo('y', 'float32', [2])],
      initializers: [makeTensor('turns', int64Tensor([3], []))],
    })
    const cut = exposeTensors(makeModel({ graph }), ['sum'])
    expect(contents(cut)).toEqual({ nodes: ['Abs', 'Loop'], inputs: ['x'], outputs: ['sum'], initializers: ['turns'] })
    expect(await run(cut, { x })).toEqual({ sum: [4, 6] })
  })

  test('functions stay only where they are called', async () => {
    const definition = (name: string, callee: string, domain: string) =>
      create(FunctionProtoSchema, {
        name,
        domain: 'local',
        input: ['p'],
        output: ['q'],
        node: [makeNode({ opType: callee, domain, inputs: ['p'], outputs: ['q'] })],
        opsetImport: [
          { domain: '', version: 21n },
          { domain: 'local', version: 1n },
        ],
      })
    const graph = makeGraph({
      nodes: [
        makeNode({ opType: 'Outer', domain: 'local', inputs: ['x'], outputs: ['a'] }),
        makeNode({ opType: 'Unused', domain: 'local', inputs: ['a'], outputs: ['y'] }),
      ],
      inputs: [makeValueInfo('x', 'float32', [2])],
      outputs: [makeValueInfo('y', 'float32', [2])],
    })
    const functions = [definition('Outer', 'Inner', 'local'), definition('Inner', 'Neg', ''), definition('Unused', 'Abs', '')]
    const model = withFields(makeModel({ graph, opsets: { '': 21, local: 1 } }), { functions })
    const cut = exposeTensors(model, ['a'])
    expect(cut.functions.map(({ name }) => name)).toEqual(['Outer', 'Inner'])
    expect(await run(cut, { x })).toEqual({ a: [-1, 3] })
  })

  test('an unknown name is answered with the near ones', () => {
    expect(() => exposeTensors(branching(), ['lefd'])).toThrow(
      /^ONNX_TENSOR_UNKNOWN: got 'lefd', expected one of the 13 tensors of the graph \(near it: 'left'/,
    )
    expect(() => exposeTensors(branching(), ['Mul_y'])).toThrow('this one lies inside a branch or loop')
    expect(() => exposeTensors(branching(), [])).toThrow('ONNX_TENSOR_UNKNOWN: got no names')
    expect(() => exposeTensors(withFields(branching(), { graph: undefined }), ['y'])).toThrow('ONNX_MALFORMED')
  })

  test('nodes that feed each other in a circle end the walk', () => {
    const graph = makeGraph({
      nodes: [makeNode({ opType: 'Neg', inputs: ['b'], outputs: ['a'] }), makeNode({ opType: 'Neg', inputs: ['a'], outputs: ['b'] })],
      inputs: [],
      outputs: [makeValueInfo('a', 'float32')],
    })
    expect(contents(exposeTensors(makeModel({ graph }), ['b'])).nodes).toEqual(['Neg', 'Neg'])
  })
})

test('listTensors tells names, origins and what the file knows of types', () => {
  expect(listTensors(branching())).toEqual([
    { name: 'x', origin: 'input', dtype: 'float32', dims: ['n'] },
    { name: 'flag', origin: 'input', dtype: 'bool', dims: [] },
    { name: 'other', origin: 'input', dtype: 'float32', dims: [2] },
    { name: 'scale', origin: 'initializer', dtype: 'float32', dims: [1] },
    { name: 'bias', origin: 'initializer', dtype: 'float32', dims: [1] },
    { name: 'sizes', origin: 'initializer', dtype: 'int64', dims: [2] },
    { name: 'a', origin: 'node', opType: 'Neg' },
    { name: 'y', origin: 'node', opType: 'If', dtype: 'float32', dims: ['n'] },
    { name: 'two', origin: 'node', opType: 'Constant' },
    { name: 'c', origin: 'node', opType: 'Mul', dtype: 'float32', dims: ['n'] },
    { name: 'left', origin: 'node', opType: 'Split' },
    { name: 'right', origin: 'node', opType: 'Split' },
    { name: 'd', origin: 'node', opType: 'Add', dtype: 'float32', dims: ['n'] },
  ])
})

describe('convertInitializersToFloat16', () => {
  const weights = Float32Array.from({ length: 32 }, (_, i) => Math.sin(i) * 10 ** ((i % 7) - 4))
  const model = (data: Float32Array, { overridable = false } = {}) =>
    makeModel({
      graph: makeGraph({
        nodes: [
          makeNode({ opType: 'Mul', inputs: ['x', 'w'], outputs: ['w_float16'] }),
          makeNode({ opType: 'Add', inputs: ['w_float16', 'b'], outputs: ['y'] }),
        ],
        inputs: [makeValueInfo('x', 'float32', [1]), ...(overridable ? [makeValueInfo('w', 'float32', [data.length])] : [])],
        outputs: [makeValueInfo('y', 'float32', [data.length])],
        initializers: [makeTensor('w', float32Tensor(data, [data.length])), makeTensor('b', float32Tensor(Float32Array.of(0.1), [1]))],
      }),
    })

  test('stores halves and computes with them in float32', async () => {
    const half = convertInitializersToFloat16(model(weights))
    const [stored, bias] = half.graph?.initializer ?? []
    if (stored === undefined || bias === undefined) throw new Error('no initializers')
    // 'w_float16' is taken by a node of the model.
    expect([stored.name, bias.name]).toEqual(['w_float16_1', 'b'])
    const value = tensorValue(stored)
    expect(value.dtype).toBe('float16')
    if (value.dtype !== 'float16') return
    const rounded = Array.from(value.data, fromFloat16Bits)
    for (const [i, weight] of weights.entries())
      expect(Math.abs((rounded[i] ?? 0) - weight)).toBeLessThanOrEqual(Math.abs(weight) * 2 ** -11 + 2 ** -25)
    const two = new Tensor('float32', [2], [1])
    expect(await run(half, { x: two })).toEqual({ y: rounded.map((weight) => Math.fround(Math.fround(2 * weight) + Math.fround(0.1))) })
  })

  test('leaves alone what would overflow and what a caller may override', () => {
    const untouched = ({ graph }: ModelProto) => [graph?.node.length, graph?.initializer.map(({ name }) => name)]
    expect(untouched(convertInitializersToFloat16(model(Float32Array.from(weights, (v) => v * 1e6))))).toEqual([2, ['w', 'b']])
    expect(untouched(convertInitializersToFloat16(model(weights, { overridable: true })))).toEqual([2, ['w', 'b']])
    expect(untouched(convertInitializersToFloat16(model(weights), { minElements: 33 }))).toEqual([2, ['w', 'b']])
  })
})

skipWithout(data === undefined ? testDataMissing : undefined).describe('MobileNetV2', () => {
  const model = async () => decodeModel(await readFile(path.join(data ?? '', 'mobilenet_v2/model.onnx')))
  const pixels = new Tensor(
    'float32',
    Float32Array.from({ length: 3 * 224 * 224 }, (_, i) => Math.sin(i * 0.01) * Math.cos(i * 0.00037)),
    [1, 3, 224, 224],
  )

  test('its feature map alone equals the feature map of the whole', async () => {
    const original = await model()
    // The whole graph, with the map before the global pool (`t168`) among its outputs.
    const pool = original.graph?.node.find(({ opType }) => opType === 'GlobalAveragePool')
    expect(pool?.input).toEqual(['t168'])
    const whole = await run(exposeTensors(original, ['t168'], { prune: false }), { t0: pixels }, ['t168', 't173'])
    const cut = exposeTensors(original, ['t168'])
    const { t168 } = await run(cut, { t0: pixels })
    expect(t168).toHaveLength(49 * 1280)
    expect(t168).toEqual(whole.t168)
    expect(whole.t173).toHaveLength(1001)
    expect(cut.graph?.node.some(({ opType }) => opType === 'GlobalAveragePool' || opType === 'Softmax')).toBe(false)
    expect(original.graph?.node.length).toBe((cut.graph?.node.length ?? 0) + 5)
    expect(contents(cut).inputs).toEqual(['t0'])
  })

  test('in half precision it is half the size and gives nearly the same features', async () => {
    const cut = exposeTensors(await model(), ['t168'])
    const half = convertInitializersToFloat16(cut)
    expect(encodeModel(half).byteLength / encodeModel(cut).byteLength).toBeLessThan(0.52)
    const { t168: a = [] } = await run(cut, { t0: pixels })
    const { t168: b = [] } = await run(half, { t0: pixels })
    const dot = (p: number[], q: number[]) => p.reduce((sum, value, i) => sum + value * (q[i] ?? 0), 0)
    expect(dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b))).toBeGreaterThan(0.9999)
  })
})
