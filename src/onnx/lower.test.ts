import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { ModalignError } from '../errors.ts'
import { quickGelu, swiglu } from '../graph/composites/activations.ts'
import { scaledDotProductAttention } from '../graph/composites/attention.ts'
import { matmulTransposed } from '../graph/composites/linear.ts'
import { rmsNormalization } from '../graph/composites/rms-normalization.ts'
import { rotaryEmbedding } from '../graph/composites/rotary-embedding.ts'
import { addDims, multiplyDims, size } from '../graph/dim.ts'
import { evaluate } from '../graph/evaluate.ts'
import { gradients } from '../graph/gradients.ts'
import { add } from '../graph/operators/add.ts'
import { cast } from '../graph/operators/cast.ts'
import { concat } from '../graph/operators/concat.ts'
import { expand } from '../graph/operators/expand.ts'
import { matmul } from '../graph/operators/matmul.ts'
import { mul } from '../graph/operators/mul.ts'
import { reduceSum } from '../graph/operators/reduce-sum.ts'
import { reshape } from '../graph/operators/reshape.ts'
import { slice } from '../graph/operators/slice.ts'
import { softmax } from '../graph/operators/softmax.ts'
import { split } from '../graph/operators/split.ts'
import { sub } from '../graph/operators/sub.ts'
import { constant, input, scalar, type Tensor, weight } from '../graph/tensor.ts'
import { normals } from '../random.ts'
import { createLocalSession } from '../runtime/local.ts'
import { float32Tensor, int64Tensor, type NamedTensors } from '../tensors.ts'
import { toBfloat16 } from '../weights/float16.ts'
import { openSafetensors, type TensorToWrite, writeSafetensors } from '../weights/safetensors.ts'
import { decodeModel } from './codec.ts'
import { type LoweredModel, lower } from './lower.ts'

const [batch, tokens] = [size('batch'), size('tokens')]
const opTypes = ({ model }: LoweredModel): readonly string[] => (model.graph?.node ?? []).map(({ opType }) => opType)
const inputNames = ({ model }: LoweredModel): readonly string[] => (model.graph?.input ?? []).map(({ name }) => name)

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-lower-'))
})
afterAll(() => rm(folder, { recursive: true, force: true }))

async function run({ bytes, externalRoot, externalData }: LoweredModel, feeds: NamedTensors): Promise<NamedTensors> {
  const session = await createLocalSession(
    { bytes, ...(externalRoot !== undefined && { externalRoot }), ...(externalData && { externalData }) },
    { device: 'cpu', threads: 1 },
  )
  onTestFinished(() => session.dispose())
  return session.run(feeds)
}

const random = (
  name: string,
  dims: readonly number[],
): { readonly dtype: 'float32'; readonly dims: readonly number[]; readonly data: Float32Array } => ({
  dtype: 'float32',
  dims,
  data: normals(
    dims.reduce((product, dim) => product * dim, 1),
    { seed: 1, stream: name },
  ),
})

function floats(outputs: NamedTensors, name: string): Float32Array {
  const value = outputs[name]
  if (value?.dtype !== 'float32') throw new Error(`${name} is ${value?.dtype}`)
  return value.data
}

async function fileWeight(file: string, name: string): Promise<Tensor> {
  const entry = (await openSafetensors(file)).tensors.get(name)
  if (entry === undefined) throw new Error(`no ${name}`)
  return weight(name, entry.dtype, entry.shape, { kind: 'file', file, offset: entry.offset, byteLength: entry.byteLength })
}

function caught(act: () => unknown): unknown {
  try {
    act()
  } catch (error) {
    return error
  }
  return undefined
}

describe('weights in files', () => {
  test('are referred to where they lie in a safetensors file: the model holds no copy', async () => {
    const file = join(folder, 'one', 'model.safetensors')
    await mkdir(join(folder, 'one'))
    const [a, b] = [random('a', [256, 128]), random('b', [128])]
    const half = { name: 'half', value: { dtype: 'bfloat16' as const, dims: [128], data: toBfloat16(b.data) } }
    await writeSafetensors(file, [{ name: 'a', value: a }, half])
    const x = input('x', 'float32', [batch, 128])
    const y = add(matmulTransposed(mul(x, cast(await fileWeight(file, 'half'), 'float32')), await fileWeight(file, 'a')), 1)
    const lowered = lower({ outputs: { y } })
    expect(lowered.externalRoot).toBe(join(folder, 'one'))
    expect(lowered.externalData).toBeUndefined()
    expect(lowered.bytes.length).toBeLessThan(2000)
    const places = (lowered.model.graph?.initializer ?? []).flatMap(({ name, externalData }) =>
      externalData.length === 0 ? [] : [[name, Object.fromEntries(externalData.map(({ key, value }) => [key, value]))] as const],
    )
    const entries = (await openSafetensors(file)).tensors
    const expected = ['half', 'a'].map((name) => {
      const { offset, byteLength } = entries.get(name) ?? { offset: -1, byteLength: -1 }
      return [name, { location: 'model.safetensors', offset: `${offset}`, length: `${byteLength}` }] as const
    })
    expect(new Map(places)).toEqual(new Map(expected))

    const rows = random('x', [3, 128])
    const widened = new Float32Array(new Uint32Array(Array.from(half.value.data, (bits) => bits << 16)).buffer)
    const ours = floats(await run(lowered, { x: rows }), 'y')
    for (let row = 0; row < 3; row++) {
      for (const out of [0, 17, 255]) {
        let sum = 1
        for (let k = 0; k < 128; k++) sum += (rows.data[row * 128 + k] ?? 0) * (widened[k] ?? 0) * (a.data[out * 128 + k] ?? 0)
        expect(ours[row * 256 + out]).toBeCloseTo(sum, 3)
      }
    }
  })

  test('may be shards in two folders', async () => {
    const files = ['first/part-1.safetensors', 'second/deeper/part-2.safetensors'].map((path) => join(folder, 'shards', path))
    const values: readonly TensorToWrite[] = [
      { name: 'a', value: random('a', [4, 4]) },
      { name: 'b', value: random('b', [4, 4]) },
    ]
    for (const [index, file] of files.entries()) {
      await mkdir(join(file, '..'), { recursive: true })
      await writeSafetensors(file, values.slice(index, index + 1))
    }
    const x = input('x', 'float32', [batch, 4])
    const lowered = lower({
      outputs: { y: matmul(matmul(x, await fileWeight(files[0] ?? '', 'a')), await fileWeight(files[1] ?? '', 'b')) },
    })
    expect(lowered.externalRoot).toBe(join(folder, 'shards'))
    const [a, b] = [random('a', [4, 4]).data, random('b', [4, 4]).data]
    const product = Array.from({ length: 16 }, (_, at) =>
      [0, 1, 2, 3].reduce((sum, k) => sum + (a[Math.floor(at / 4) * 4 + k] ?? 0) * (b[k * 4 + (at % 4)] ?? 0), 0),
    )
    const identity = Float32Array.from({ length: 16 }, (_, at) => (at % 5 === 0 ? 1 : 0))
    const y = floats(await run(lowered, { x: float32Tensor(identity, [4, 4]) }), 'y')
    for (const [at, value] of product.entries()) expect(y[at]).toBeCloseTo(value, 5)
  })

  test('are written once, however often they are used', async () => {
    const file = join(folder, 'one', 'shared.safetensors')
    await mkdir(join(folder, 'one'), { recursive: true })
    await writeSafetensors(file, [{ name: 'w', value: random('w', [8, 8]) }])
    const w = await fileWeight(file, 'w')
    const x = input('x', 'float32', [batch, 8])
    const { model } = lower({ outputs: { y: matmulTransposed(matmulTransposed(x, w), w), z: matmul(x, w) } })
    expect(model.graph?.initializer.map(({ name }) => name)).toEqual(['w'])
  })
})

describe('weights in memory', () => {
  const large = random('large', [200, 100])
  const memoryWeight = weight('large', 'float32', large.dims, { kind: 'memory', value: large })
  const x = input('x', 'float32', [batch, 200])

  test('stay outside of the model where they are large, and inside where they are small', async () => {
    const lowered = lower({ outputs: { y: matmul(x, memoryWeight), z: add(x, constant(random('small', [200]))) } })
    expect(lowered.bytes.length).toBeLessThan(4000)
    expect(lowered.externalData?.map(({ path, data }) => [path, data.byteLength])).toEqual([['large', 80_000]])
    expect(lowered.externalRoot).toBeUndefined()
    const outputs = await run(lowered, {
      x: float32Tensor(
        Float32Array.from({ length: 200 }, (_, at) => (at === 7 ? 1 : 0)),
        [1, 200],
      ),
    })
    expect(floats(outputs, 'y')).toEqual(large.data.slice(700, 800))
  })

  test('are written into the model beside weights in files', async () => {
    const file = join(folder, 'beside.safetensors')
    await writeSafetensors(file, [{ name: 'b', value: random('b', [100]) }])
    const lowered = lower({ outputs: { y: add(matmul(x, memoryWeight), await fileWeight(file, 'b')) } })
    expect(lowered.externalData).toBeUndefined()
    expect(lowered.bytes.length).toBeGreaterThan(80_000)
    const outputs = await run(lowered, { x: float32Tensor(new Float32Array(200), [1, 200]) })
    expect(floats(outputs, 'y')).toEqual(random('b', [100]).data)
  })
})

describe('named sizes', () => {
  const x = input('x', 'float32', [batch, tokens, 4])

  test('are computed for Expand, Slice, Split and Reshape, over polynomials too', async () => {
    const longer = addDims(multiplyDims(2, tokens), 3)
    const filled = expand(scalar(2), [batch, longer])
    const [head, tail] = split(filled, [tokens, addDims(tokens, 3)], 1)
    if (head === undefined || tail === undefined) throw new Error('two parts')
    const y = concat([head, slice(tail, [{ axis: 1, start: 3 }])], 1)
    const flat = reshape(x, [multiplyDims(batch, tokens), 4])
    const regrouped = reshape(x, [multiplyDims(2, batch), 2, tokens])
    const lowered = lower({ outputs: { filled, y, flat, regrouped } })
    const session = await createLocalSession({ bytes: lowered.bytes }, { device: 'cpu', threads: 1 })
    onTestFinished(() => session.dispose())
    for (const [b, t] of [
      [1, 1],
      [3, 5],
      [2, 0],
      [0, 2],
    ] as const) {
      const outputs = await session.run({ x: float32Tensor(new Float32Array(b * t * 4), [b, t, 4]) })
      expect(outputs.filled?.dims).toEqual([b, 2 * t + 3])
      expect(outputs.y?.dims).toEqual([b, 2 * t])
      expect(outputs.flat?.dims).toEqual([b * t, 4])
      expect(outputs.regrouped?.dims).toEqual([2 * b, 2, t])
      expect(floats(outputs, 'filled').every((value) => value === 2)).toBe(true)
    }
  })

  test('give the sizes that the polynomial has', async () => {
    const dims = [
      batch,
      tokens,
      addDims(tokens, 1),
      multiplyDims(batch, tokens),
      addDims(multiplyDims(tokens, tokens), 2),
      addDims(multiplyDims(3, batch), tokens),
    ]
    const outputs = Object.fromEntries(dims.map((dim, index) => [`y${index}`, expand(scalar(1), [dim])]))
    const lowered = lower({ outputs, inputs: [x] })
    const session = await createLocalSession({ bytes: lowered.bytes }, { device: 'cpu', threads: 1 })
    onTestFinished(() => session.dispose())
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: 6 }), fc.integer({ min: 0, max: 6 }), async (b, t) => {
        const results = await session.run({ x: float32Tensor(new Float32Array(b * t * 4), [b, t, 4]) })
        expect(dims.map((_, index) => results[`y${index}`]?.dims[0])).toEqual([b, t, t + 1, b * t, t * t + 2, 3 * b + t])
      }),
      { numRuns: 15 },
    )
  })

  test('that stand alone in no input are refused by name', () => {
    const doubled = input('doubled', 'float32', [multiplyDims(2, tokens)])
    const error = caught(() => lower({ outputs: { y: expand(scalar(1), [tokens]) }, inputs: [doubled] }))
    expect(error).toBeInstanceOf(ModalignError)
    expect(error).toMatchObject({ code: 'GRAPH_SIZE_UNBOUND', details: { field: 'tokens' } })
  })

  test('may be bound by an input that nothing reads', async () => {
    const lowered = lower({ outputs: { y: expand(scalar(3), [tokens]) }, inputs: [input('ids', 'int64', [batch, tokens])] })
    expect((await run(lowered, { ids: int64Tensor([1, 2, 3, 4], [2, 2]) })).y?.data).toEqual(Float32Array.of(3, 3))
  })
})

describe('inputs and outputs', () => {
  const [x, unused, z] = [input('x', 'float32', [batch, 4]), input('unused', 'int64', [batch]), input('z', 'float32', [4])]

  test('inputs that are asked for come first, in order, used or not', async () => {
    const lowered = lower({ outputs: { y: add(x, z) }, inputs: [unused, z] })
    expect(lowered.inputs).toEqual(['unused', 'z', 'x'])
    expect(inputNames(lowered)).toEqual(['unused', 'z', 'x'])
    const { y } = await run(lowered, {
      x: random('x', [2, 4]),
      unused: int64Tensor([0, 0], [2]),
      z: float32Tensor(new Float32Array(4), [4]),
    })
    expect(y?.data).toEqual(random('x', [2, 4]).data)
  })

  test('an output may be an input, a constant, or another output under a second name', async () => {
    const sum = add(x, 1)
    const lowered = lower({ outputs: { same: x, first: sum, second: sum, number: scalar(5) } })
    const outputs = await run(lowered, { x: float32Tensor(Float32Array.of(1, 2, 3, 4), [1, 4]) })
    expect(Object.keys(outputs)).toEqual(['same', 'first', 'second', 'number'])
    expect([outputs.same, outputs.first, outputs.second, outputs.number].map((value) => Array.from(value?.data ?? [], Number))).toEqual([
      [1, 2, 3, 4],
      [2, 3, 4, 5],
      [2, 3, 4, 5],
      [5],
    ])
  })

  test('two inputs of one name are refused', () => {
    const error = caught(() => lower({ outputs: { y: add(x, input('x', 'float32', [batch, 4])) } }))
    expect(error).toBeInstanceOf(ModalignError)
    expect(error).toMatchObject({ code: 'GRAPH_INPUT_TWICE', details: { field: 'x' } })
  })

  test('a weight with the name of an input gets another', async () => {
    const frozen = weight('x', 'float32', [4], { kind: 'memory', value: float32Tensor(Float32Array.of(1, 2, 3, 4), [4]) })
    const lowered = lower({ outputs: { y: add(x, frozen) } })
    expect((await run(lowered, { x: float32Tensor(new Float32Array(4), [1, 4]) })).y?.data).toEqual(Float32Array.of(1, 2, 3, 4))
  })
})

describe('equal computations', () => {
  const x = input('x', 'float32', [batch, 4])

  test('are written once', () => {
    const once = (): Tensor => mul(softmax(add(x, 2)), scalar(3))
    expect(opTypes(lower({ outputs: { y: add(once(), once()) } }))).toEqual(['Add', 'Softmax', 'Mul', 'Add', 'Identity'])
  })

  test('are told apart by attributes, constants, types and the order of operands', () => {
    const count = (y: Tensor, opType: string): number => opTypes(lower({ outputs: { y } })).filter((type) => type === opType).length
    expect(count(add(softmax(x, 0), softmax(x, 1)), 'Softmax')).toBe(2)
    expect(count(concat([mul(x, 2), mul(x, 3)], 0), 'Mul')).toBe(2)
    expect(count(concat([mul(x, 2), mul(x, 2)], 0), 'Mul')).toBe(1)
    expect(count(concat([sub(x, 2), sub(2, x)], 0), 'Sub')).toBe(2)
  })
})

describe('fused operators', () => {
  const [b, t] = [2, 5]
  const heads = input('heads', 'float32', [batch, 2, tokens, 8])
  const rows = input('rows', 'float32', [batch, tokens, 16])
  const positions = input('positions', 'int64', [batch, tokens])
  const table = (fn: (angle: number) => number): Tensor =>
    constant(
      float32Tensor(
        Float32Array.from({ length: 40 }, (_, at) => fn(Math.floor(at / 4) / 10 ** (at % 4))),
        [10, 4],
      ),
    )
  const [cos, sin] = [table(Math.cos), table(Math.sin)]
  const scale = constant(random('scale', [16]))
  const matrix = constant(random('matrix', [6, 16]))
  const composites: Readonly<Record<string, { readonly y: Tensor; readonly wrt: Tensor; readonly fused: string }>> = {
    rmsNormalization: { y: rmsNormalization(rows, scale, { epsilon: 1e-5 }), wrt: rows, fused: 'SimplifiedLayerNormalization' },
    rotaryEmbedding: { y: rotaryEmbedding(heads, positions, cos, sin), wrt: heads, fused: 'RotaryEmbedding' },
    'rotaryEmbedding interleaved': {
      y: rotaryEmbedding(heads, positions, cos, sin, { interleaved: true }),
      wrt: heads,
      fused: 'RotaryEmbedding',
    },
    quickGelu: { y: quickGelu(rows), wrt: rows, fused: 'QuickGelu' },
    swiglu: { y: swiglu(rows, mul(rows, 2)), wrt: rows, fused: 'QuickGelu' },
    matmulTransposed: { y: matmulTransposed(rows, matrix), wrt: rows, fused: 'FusedMatMul' },
    attention: {
      y: scaledDotProductAttention(rotaryEmbedding(heads, positions, cos, sin), heads, heads),
      wrt: heads,
      fused: 'RotaryEmbedding',
    },
  }
  const feeds: NamedTensors = {
    heads: random('heads', [b, 2, t, 8]),
    rows: random('rows', [b, t, 16]),
    positions: int64Tensor([0, 1, 2, 3, 4, 3, 4, 5, 6, 9], [b, t]),
  }

  test.each(Object.keys(composites))('%s: value and gradient as without them, and as evaluated in double precision', async (name) => {
    const { y, wrt, fused: operator } = composites[name] ?? { y: rows, wrt: rows, fused: '' }
    const loss = reduceSum(mul(y, y), [0, 1, 2, ...(y.shape.length === 4 ? [3] : [])])
    const [gradient] = gradients(loss, [wrt])
    if (gradient === undefined) throw new Error('no gradient')
    const all = { outputs: { y, gradient }, inputs: [heads, rows, positions] }
    const [fused, plain] = [lower(all), lower({ ...all, fused: false })]
    expect(opTypes(fused)).toContain(operator)
    expect(plain.model.graph?.node.every(({ domain }) => domain === '')).toBe(true)
    expect(opTypes(plain)).not.toContain(operator)
    const [one, other] = [await run(fused, feeds), await run(plain, feeds)]
    const exact = evaluate([y, gradient], feeds)
    for (const [index, output] of ['y', 'gradient'].entries()) {
      const reference = Array.from(exact[index]?.data ?? [], Number)
      const largest = Math.max(...reference.map(Math.abs))
      for (const [at, value] of reference.entries()) {
        expect(Math.abs((floats(one, output)[at] ?? Number.NaN) - value)).toBeLessThan(2e-6 * largest)
        expect(Math.abs((floats(other, output)[at] ?? Number.NaN) - value)).toBeLessThan(2e-6 * largest)
      }
    }
  })
})

test('the bytes are the model, opset 21 and IR version 10', () => {
  const { model, bytes } = lower({ outputs: { y: add(input('x', 'float32', [batch]), 1) } })
  expect(model.irVersion).toBe(10n)
  expect(model.opsetImport.map(({ domain, version }) => [domain, version])).toEqual([
    ['', 21n],
    ['com.microsoft', 1n],
  ])
  expect(decodeModel(bytes)).toEqual(model)
})
