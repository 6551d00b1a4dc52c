import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { errorData } from '../src/errors.ts'
import type { ImagePreprocessing } from '../src/media/preprocess.ts'
import type { DecodedImage } from '../src/model/contracts.ts'
import { makeGraph, makeModel, makeNode, makeTensor, makeValueInfo } from '../src/onnx/build.ts'
import { encodeModel } from '../src/onnx/codec.ts'
import type { NodeProto } from '../src/onnx/onnx_pb.ts'
import type { DataType } from '../src/tensors.ts'
import { float32Tensor, int64Tensor } from '../src/tensors.ts'
import { type OnnxImageEncoder, type OnnxImageOptions, onnxImage } from './onnx-image.ts'

const plain: ImagePreprocessing = { resize: { size: { height: 4, width: 6 }, filter: 'nearest' } }

/** A model over `pixels` [batch, 3, 4, 6]. */
function model(
  nodes: readonly NodeProto[],
  {
    dtype = 'float32',
    dims = ['batch', 3, 4, 6],
    extraInput = false,
  }: { readonly dtype?: DataType; readonly dims?: readonly (number | string)[]; readonly extraInput?: boolean } = {},
): Uint8Array {
  const inputs = [makeValueInfo('pixels', dtype, dims), ...(extraInput ? [makeValueInfo('mask', 'float32', ['batch'])] : [])]
  const initializers = [
    makeTensor('ends', int64Tensor([0, 3, 24], [3])),
    makeTensor('prefix', float32Tensor(Float32Array.of(-1, -2, -3), [1, 1, 3])),
    makeTensor('minus', float32Tensor(Float32Array.of(-1), [1])),
  ]
  return encodeModel(makeModel({ graph: makeGraph({ nodes, inputs, outputs: [makeValueInfo('last', 'float32')], initializers }) }))
}

const pooled = [
  makeNode({
    opType: 'AveragePool',
    inputs: ['pixels'],
    outputs: ['map'],
    attributes: { kernel_shape: { ints: [2, 2] }, strides: { ints: [2, 2] } },
  }),
  makeNode({ opType: 'GlobalAveragePool', inputs: ['map'], outputs: ['last'] }),
]
/** One token a pixel, in reading order, its channels the pixel's. */
const sequence = [
  makeNode({ opType: 'Reshape', inputs: ['pixels', 'ends'], outputs: ['flat'] }),
  makeNode({ opType: 'Transpose', inputs: ['flat'], outputs: ['tokens'], attributes: { perm: { ints: [0, 2, 1] } } }),
  makeNode({ opType: 'Concat', inputs: ['prefix', 'tokens'], outputs: ['withPrefix'], attributes: { axis: { int: 1 } } }),
  makeNode({ opType: 'Relu', inputs: ['withPrefix'], outputs: ['last'] }),
]

async function open(options: Partial<OnnxImageOptions> & Pick<OnnxImageOptions, 'model' | 'output'>): Promise<OnnxImageEncoder> {
  const encoder = await onnxImage({ preprocessing: plain, device: 'cpu', ...options })
  onTestFinished(() => encoder.dispose())
  return encoder
}

/** Shared by the tests that need nothing special: opening a session takes most of a second. */
let mapEncoder: OnnxImageEncoder
beforeAll(async () => {
  mapEncoder = await onnxImage({ model: model(pooled), output: 'map', preprocessing: plain, device: 'cpu', batch: 4 })
})
afterAll(() => mapEncoder.dispose())

function picture(seed: number): DecodedImage {
  return { width: 6, height: 4, data: Uint8Array.from({ length: 72 }, (_, i) => (i * 37 + seed * 101) & 255) }
}

test('takes a map from inside the graph and lays its places out in reading order', async () => {
  const encoder = mapEncoder
  expect(encoder.width).toBe(3)
  expect(encoder.grid({})).toEqual({ segments: [{ frames: 1, rows: 2, columns: 3 }] })
  const image = picture(1)
  const features = await encoder.encode([await encoder.preprocess(image)])
  const mean = (row: number, column: number, channel: number): number =>
    [0, 1, 6, 7].reduce((sum, at) => sum + (image.data[(row * 12 + column * 2 + at) * 3 + channel] ?? 0), 0) / 4
  const expected = [0, 1].flatMap((row) => [0, 1, 2].flatMap((column) => [0, 1, 2].map((channel) => mean(row, column, channel))))
  expect(features).toEqual({ count: 1, tokens: 6, width: 3, data: Float32Array.from(expected) })
})

test('drops prefix tokens and finds the grid of a sequence by the proportion of the input', async () => {
  const encoder = await open({ model: model(sequence, { dims: [1, 3, 4, 6] }), output: 'withPrefix', prefixTokens: 1 })
  expect(encoder.grid({})).toEqual({ segments: [{ frames: 1, rows: 4, columns: 6 }] })
  const images = [picture(1), picture(2), picture(3)]
  // The file takes one picture at a time; several still go in one call.
  const features = await encoder.encode(await Promise.all(images.map((image) => encoder.preprocess(image))))
  expect([features.count, features.tokens, features.width]).toEqual([3, 24, 3])
  expect(features.data).toEqual(Float32Array.from(images.flatMap(({ data }) => [...data])))
})

test.each(['float32', 'float16'] as const)('pictures as bytes have the features of their tensors: %s', async (dtype) => {
  const preprocessing: ImagePreprocessing = { ...plain, rescaleFactor: 1 / 255, normalize: { mean: [0.5, 0.4, 0.3], std: [0.2, 0.3, 0.4] } }
  const doubled = [makeNode({ opType: 'Add', inputs: ['pixels', 'pixels'], outputs: ['map'] }), ...pooled.slice(1)]
  const encoder = await open({ model: model(doubled, { dtype }), output: 'map', preprocessing, batch: 4 })
  for (const count of [1, 4, 9, 2]) {
    const images = Array.from({ length: count }, (_, index) => picture(count + index))
    const tensors = await Promise.all(images.map((image) => encoder.preprocess(image)))
    expect(await encoder.preparation?.encodePictures?.(images)).toEqual(await encoder.encode(tensors))
    expect(images[0]?.data.length).toBe(72)
  }
})

test('without a declared prefix the tokens lie in one row', async () => {
  const encoder = await open({ model: model(sequence, { dims: [1, 3, 4, 6] }), output: 'withPrefix' })
  expect(encoder.grid({})).toEqual({ segments: [{ frames: 1, rows: 1, columns: 25 }] })
})

test('many pictures give what each gives alone, whatever the batch', async () => {
  const whole = mapEncoder
  const inputs = await Promise.all(Array.from({ length: 7 }, (_, i) => whole.preprocess(picture(i))))
  const together = await whole.encode(inputs)
  for (const [i, input] of inputs.entries()) {
    const alone = await whole.encode([input])
    expect(together.data.subarray(i * 18, (i + 1) * 18)).toEqual(alone.data)
  }
})

test('feeds half precision where the file asks for it', async () => {
  const half = [
    makeNode({ opType: 'AveragePool', inputs: ['pixels'], outputs: ['map'], attributes: { kernel_shape: { ints: [2, 2] } } }),
    makeNode({ opType: 'Cast', inputs: ['map'], outputs: ['last'], attributes: { to: { int: 1 } } }),
  ]
  const encoder = await open({ model: model(half, { dtype: 'float16' }), output: 'last' })
  const flat = { width: 6, height: 4, data: new Uint8Array(72).fill(77) }
  const { data } = await encoder.encode([await encoder.preprocess(flat)])
  expect(new Set(data)).toEqual(new Set([77]))
})

test('the fingerprint is the same for the same file, and another for another tensor and preprocessing', async () => {
  const of = async (options: Partial<OnnxImageOptions>): Promise<string> =>
    (await open({ model: model(pooled), output: 'map', ...options })).fingerprint
  expect(mapEncoder.fingerprint).toMatch(/^[0-9a-f]{64}$/)
  expect(await of({ batch: 1, label: 'other' })).toBe(mapEncoder.fingerprint)
  const others = [await of({ preprocessing: { ...plain, rescaleFactor: 1 / 255 } }), await of({ output: 'last' })]
  expect(new Set([mapEncoder.fingerprint, ...others]).size).toBe(3)
})

const flattened = [makeNode({ opType: 'Flatten', inputs: ['pixels'], outputs: ['last'] })]
const broken = [
  makeNode({ opType: 'Mul', inputs: ['pixels', 'minus'], outputs: ['negative'] }),
  makeNode({ opType: 'Sqrt', inputs: ['negative'], outputs: ['last'] }),
]
const collapsed = [makeNode({ opType: 'ReduceMean', inputs: ['pixels'], outputs: ['last'], attributes: { keepdims: { int: 1 } } })]
const twoInputs = [
  makeNode({ opType: 'Identity', inputs: ['pixels'], outputs: ['a'] }),
  makeNode({ opType: 'Add', inputs: ['a', 'mask'], outputs: ['last'] }),
]

test.each<[string, Partial<OnnxImageOptions> & Pick<OnnxImageOptions, 'model'>, string, RegExp]>([
  ['a tensor that is not there', { model: model(pooled), output: 'mapp' }, 'ONNX_TENSOR_UNKNOWN', /'map'/],
  ['a tensor without places', { model: model(flattened) }, 'ENCODER_OUTPUT_RANK', /before the pooling/],
  ['a layout of another rank', { model: model(pooled), output: 'map', layout: 'tokens' }, 'ENCODER_OUTPUT_RANK', /tokens/],
  ['a model that gives NaN', { model: model(broken) }, 'ENCODER_NOT_FINITE', /NaN/],
  [
    'two inputs',
    { model: model(twoInputs, { extraInput: true }) },
    'ENCODER_CONTRACT',
    /pixels float32\[batch, 3, 4, 6\]; mask float32\[batch\]/,
  ],
  ['a grey input', { model: model(pooled, { dims: ['batch', 1, 4, 6] }) }, 'ENCODER_CONTRACT', /pixels float32\[batch, 1, 4, 6\]/],
  [
    'bytes as input',
    { model: model([makeNode({ opType: 'Identity', inputs: ['pixels'], outputs: ['last'] })], { dtype: 'uint8' }) },
    'ENCODER_CONTRACT',
    /uint8/,
  ],
  ['a batch fixed at 8', { model: model(pooled, { dims: [8, 3, 4, 6] }) }, 'ENCODER_CONTRACT', /fixed at 8/],
  [
    'pictures of another size',
    { model: model(pooled), preprocessing: { resize: { size: { height: 6, width: 4 }, filter: 'box' } } },
    'ENCODER_PREPROCESSING',
    /6 x 4/,
  ],
  [
    'a size that depends on the picture',
    { model: model(pooled), preprocessing: { resize: { size: { shortestEdge: 4 }, filter: 'box' } } },
    'ENCODER_PREPROCESSING',
    /one size/,
  ],
  ['a grid of another size', { model: model(pooled), output: 'map', grid: { rows: 2, columns: 2 } }, 'ENCODER_OUTPUT_SIZE', /6 tokens/],
  ['a prefix of a map', { model: model(pooled), output: 'map', prefixTokens: 1 }, 'ENCODER_OPTIONS', /prefix/],
  [
    'more prefix than tokens',
    { model: model(sequence, { dims: [1, 3, 4, 6] }), output: 'withPrefix', prefixTokens: 25 },
    'ENCODER_OUTPUT_SIZE',
    /25 prefix/,
  ],
  ['half a picture a batch', { model: model(pooled), output: 'map', batch: 0.5 }, 'ENCODER_OPTIONS', /batch/],
  [
    'a preprocessing file that is missing',
    { model: model(pooled), preprocessing: '/nowhere/preprocessor_config.json' },
    'FILE_MISSING',
    /nowhere/,
  ],
  ['a model file that is missing', { model: '/nowhere/model.onnx' }, 'FILE_MISSING', /nowhere/],
  ['bytes that are no model', { model: new Uint8Array([1, 2, 3]) }, 'ONNX_', /./],
])('refuses %s', async (_, options, code, text) => {
  const error = await open({ output: 'last', ...options }).then(
    () => ({ code: 'accepted' }),
    (thrown: unknown) => errorData(thrown),
  )
  expect(error.code).toMatch(new RegExp(`^${code}`))
  expect(JSON.stringify(error)).toMatch(text)
})

test('refuses a model that mixes the pictures of a batch, and says what to do', async () => {
  const encoder = await open({ model: model(collapsed), output: 'last' })
  const inputs = await Promise.all([encoder.preprocess(picture(1)), encoder.preprocess(picture(2))])
  const error = await encoder.encode(inputs).catch((thrown: unknown) => errorData(thrown))
  expect(error).toMatchObject({ code: 'ENCODER_OUTPUT_SIZE', hint: expect.stringContaining('batch: 1') })
})

test('refuses inputs that preprocess did not make', async () => {
  const encoder = mapEncoder
  const error = await encoder
    .encode([{ image: float32Tensor(new Float32Array(72), [1, 3, 4, 6]) }])
    .catch((thrown: unknown) => errorData(thrown))
  expect(error).toMatchObject({ code: 'ENCODER_INPUT', field: 'pixels' })
})
