import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { type LogMel, logMel, whisperLogMel } from '../src/media/log-mel.ts'
import { type AudioPreprocessing, preprocessAudio } from '../src/media/waveform-preprocess.ts'
import { gridTokens } from '../src/model/token-grid.ts'
import { makeGraph, makeModel, makeNode, makeTensor, makeValueInfo } from '../src/onnx/build.ts'
import { encodeModel } from '../src/onnx/codec.ts'
import type { NodeProto } from '../src/onnx/onnx_pb.ts'
import { type DataType, float32Tensor, int64Tensor, type TensorValue } from '../src/tensors.ts'
import { beats } from './beats.ts'
import { clap } from './clap.ts'
import { imagebindAudio } from './imagebind-audio.ts'
import { type OnnxAudioOptions, onnxAudio } from './onnx-audio.ts'
import type { SoundEncoder } from './sound-encoder.ts'

type Info = readonly [name: string, dtype: DataType, dims: readonly (number | string)[]]

function model(
  inputs: readonly Info[],
  nodes: readonly NodeProto[],
  output: string,
  constants: Readonly<Record<string, TensorValue>> = {},
): Uint8Array {
  return encodeModel(
    makeModel({
      graph: makeGraph({
        nodes,
        inputs: inputs.map(([name, dtype, dims]) => makeValueInfo(name, dtype, dims)),
        outputs: [makeValueInfo(output, 'float32')],
        initializers: Object.entries(constants).map(([name, value]) => makeTensor(name, value)),
      }),
    }),
  )
}

async function open(options: Omit<OnnxAudioOptions, 'device' | 'threads'>): Promise<SoundEncoder> {
  const encoder = await onnxAudio({ device: 'cpu', threads: 1, ...options })
  onTestFinished(() => encoder.dispose())
  return encoder
}

const sound = (length: number, seed = 1): Float32Array => Float32Array.from({ length }, (_, at) => Math.sin(at * at * 0.001 + seed))

/** Means of 4 samples every 2, and the same with the sign turned: [windows, 2, steps]. */
const means = model(
  [['samples', 'float32', ['windows', 'samples']]],
  [
    makeNode({ opType: 'Unsqueeze', inputs: ['samples', 'one'], outputs: ['row'] }),
    makeNode({ opType: 'Conv', inputs: ['row', 'kernel'], outputs: ['map'], attributes: { strides: { ints: [2] } } }),
  ],
  'map',
  {
    one: int64Tensor([1], [1]),
    kernel: float32Tensor(Float32Array.of(0.25, 0.25, 0.25, 0.25, -0.25, -0.25, -0.25, -0.25), [2, 1, 4]),
  },
)
const hundred: AudioPreprocessing = {
  kind: 'waveform',
  sampleRateHz: 100,
  normalize: false,
  windows: { kind: 'consecutive', samples: 100, step: 100, fill: 'none', most: 4 },
}
const convolution = { strideSamples: 2, receptiveSamples: 4 }

test('raw samples of any length: windows, times and values are those of the sound', async () => {
  const encoder = await open({ model: means, output: 'map', preprocessing: hundred, layout: 'channels-first', convolution })
  expect(encoder.width).toBe(2)
  expect(encoder.gridVaries).toBe(true)
  const samples = sound(250)
  const [segment] = encoder.grid({ seconds: 2.5 }).segments
  expect(segment?.frames).toBe(49 + 49 + 24)
  expect(segment?.time?.slice(48, 51)).toEqual([0.96, 1, 1.02])
  const { tokens, data } = await encoder.encode([await encoder.preprocess({ sampleRateHz: 100, samples })])
  expect(tokens).toBe(122)
  for (const [token, start] of [
    [0, 0],
    [48, 96],
    [49, 100],
    [121, 246],
  ] as const) {
    const mean = samples.slice(start, start + 4).reduce((sum, value) => sum + value, 0) / 4
    expect(data[2 * token]).toBeCloseTo(mean, 5)
    expect(data[2 * token + 1]).toBeCloseTo(-mean, 5)
  }

  const others = [250, 249, 250].map((length, seed) => sound(length, seed))
  const inputs = await Promise.all(others.map((one) => encoder.preprocess({ sampleRateHz: 100, samples: one })))
  const together = await encoder.encode([...inputs.slice(0, 1), ...inputs.slice(2)])
  const alone = await Promise.all(
    [inputs[0], inputs[2]].map(async (input) => (await encoder.encode(input === undefined ? [] : [input])).data),
  )
  expect(together.count).toBe(2)
  expect([...together.data]).toEqual(alone.flatMap((values) => [...values]))

  await expect(encoder.preprocess({ sampleRateHz: 100, samples: sound(3) })).rejects.toMatchObject({ code: 'AUDIO_TOO_SHORT' })
  await expect(encoder.preprocess({ sampleRateHz: 100, samples: sound(401) })).rejects.toMatchObject({ code: 'AUDIO_TOO_LONG' })
  const short = await encoder.preprocess({ sampleRateHz: 100, samples: sound(100) })
  await expect(encoder.encode([...inputs.slice(0, 1), short])).rejects.toMatchObject({ code: 'ENCODER_INPUT' })
})

const spec: LogMel = whisperLogMel({ bins: 8 })
/** 20 frames: 0.2 s. */
const fifth = (fill: 'zeros' | 'repeat'): AudioPreprocessing => ({
  kind: 'log-mel',
  mel: spec,
  axes: ['band', 'frame'],
  windows: { kind: 'consecutive', samples: 3_200, step: 3_200, fill, most: 10 },
})
const melInput: Info = ['mel', 'float32', ['windows', 8, 20]]
const turned = model(
  [melInput],
  [makeNode({ opType: 'Transpose', inputs: ['mel'], outputs: ['frames'], attributes: { perm: { ints: [0, 2, 1] } } })],
  'frames',
)

test('what fills a window gives no tokens, and the frames are those of the filled window', async () => {
  const encoder = await open({ model: turned, output: 'frames', preprocessing: fifth('zeros'), dropPadding: true })
  const samples = sound(3_200 + 1_000)
  const { tokens, width, data } = await encoder.encode([await encoder.preprocess({ sampleRateHz: 16_000, samples })])
  expect([tokens, width]).toEqual([20 + 7, 8])
  expect(gridTokens(encoder.grid({ seconds: 4_200 / 16_000 }))).toBe(27)
  expect(gridTokens(encoder.grid({}))).toBe(20)
  const second = new Float32Array(3_200)
  second.set(samples.subarray(3_200))
  const expected = [...logMel(samples.slice(0, 3_200), spec).values, ...logMel(second, spec).values.slice(0, 7 * 8)]
  expect([...data]).toEqual(expected)

  const kept = await open({ model: turned, output: 'frames', preprocessing: fifth('zeros') })
  expect(gridTokens(kept.grid({ seconds: 4_200 / 16_000 }))).toBe(40)
  expect(kept.fingerprint).not.toBe(encoder.fingerprint)
})

test('tokens that come frequency by frequency are put time by time', async () => {
  const flat = [makeNode({ opType: 'Reshape', inputs: ['mel', 'flat'], outputs: ['tokens'] })]
  const constants = { flat: int64Tensor([0, 160, 1], [3]) }
  const options = { preprocessing: fifth('repeat'), output: 'tokens', model: model([melInput], flat, 'tokens', constants) }
  const encoder = await open({ ...options, columns: 8, order: 'frequency' })
  const samples = sound(3_200)
  const { data } = await encoder.encode([await encoder.preprocess({ sampleRateHz: 16_000, samples })])
  expect([...data]).toEqual([...logMel(samples, spec).values])
  expect(encoder.grid({}).segments[0]).toMatchObject({ frames: 20, rows: 1, columns: 8 })
  await expect(open({ ...options, columns: 7 })).rejects.toMatchObject({ code: 'ENCODER_OUTPUT_SIZE' })
})

test('CLAP is told whether the sound is longer than its pictures', async () => {
  const inputs: readonly Info[] = [
    ['input_features', 'float32', ['windows', 4, 21, 8]],
    ['is_longer', 'bool', ['windows', 1]],
  ]
  const nodes = [
    makeNode({ opType: 'Cast', inputs: ['is_longer'], outputs: ['flag'], attributes: { to: { int: 1 } } }),
    makeNode({ opType: 'ReduceMax', inputs: ['input_features'], outputs: ['loudest'], attributes: { keepdims: { int: 1 } } }),
    makeNode({ opType: 'Reshape', inputs: ['loudest', 'pair'], outputs: ['loudness'] }),
    makeNode({ opType: 'Concat', inputs: ['flag', 'loudness'], outputs: ['embeds'], attributes: { axis: { int: 1 } } }),
  ]
  const preprocessing: AudioPreprocessing = {
    kind: 'fused-mel',
    mel: { ...spec, dropLast: false, normalize: undefined, range: undefined },
    samples: 3_200,
    fill: 'repeat',
  }
  const encoder = await open({
    model: model(inputs, nodes, 'embeds', { pair: int64Tensor([-1, 1], [2]) }),
    output: 'embeds',
    preprocessing,
  })
  expect(encoder.gridVaries).toBe(false)
  const flag = async (length: number): Promise<number | undefined> =>
    (await encoder.encode([await encoder.preprocess({ sampleRateHz: 16_000, samples: sound(length) })])).data[0]
  expect(await flag(3_000)).toBe(0)
  expect(await flag(9_000)).toBe(1)
})

test.each([
  [
    'two float inputs',
    () => ({
      model: model(
        [melInput, ['mask', 'float32', ['windows']]],
        [makeNode({ opType: 'Add', inputs: ['mel', 'mask'], outputs: ['sum'] })],
        'sum',
      ),
      output: 'sum',
      preprocessing: fifth('zeros'),
    }),
    'ENCODER_CONTRACT',
  ],
  [
    'NaN',
    () => ({
      model: model([melInput], [makeNode({ opType: 'Sqrt', inputs: ['mel'], outputs: ['roots'] })], 'roots'),
      output: 'roots',
      preprocessing: fifth('zeros'),
    }),
    'ENCODER_NOT_FINITE',
  ],
  [
    'another convolution than the file has',
    () => ({
      model: means,
      output: 'map',
      preprocessing: hundred,
      layout: 'channels-first',
      convolution: { strideSamples: 3, receptiveSamples: 4 },
    }),
    'ENCODER_OUTPUT_SIZE',
  ],
  [
    'a rank that the layout does not have',
    () => ({ model: means, output: 'map', preprocessing: hundred, layout: 'frequency-map' }),
    'ENCODER_OUTPUT_RANK',
  ],
  ['options of the wrong kind', () => ({ model: means, output: 'map', preprocessing: hundred, columns: 0 }), 'ENCODER_OPTIONS'],
  ['no such tensor', () => ({ model: means, output: 'last', preprocessing: hundred }), 'ONNX_TENSOR_UNKNOWN'],
] as const)('refuses %s', async (_, options, code) => {
  await expect(open(options())).rejects.toMatchObject({ code })
})

/** Means over rectangles of a mel picture `[windows, 1, high, wide]`. */
const average = (input: string, output: string, high: number, wide: number): NodeProto =>
  makeNode({
    opType: 'AveragePool',
    inputs: [input],
    outputs: [output],
    attributes: { kernel_shape: { ints: [high, wide] }, strides: { ints: [high, wide] } },
  })

/** The mean of a published picture `[frames][bands]` over a rectangle. */
function rectangle(
  values: TensorValue['data'],
  bands: number,
  [frame, frames]: readonly [number, number],
  [band, width]: readonly [number, number],
): number {
  let sum = 0
  for (let at = 0; at < frames * width; at++) sum += Number(values[(frame + Math.floor(at / width)) * bands + band + (at % width)])
  return sum / (frames * width)
}

test('CLAP, BEATs and ImageBind take a file as published, and remember how to be made again', async () => {
  const folder = await mkdtemp(path.join(tmpdir(), 'modalign-sound-'))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  const write = async (name: string, bytes: Uint8Array): Promise<string> => {
    await writeFile(path.join(folder, name), bytes)
    return path.join(folder, name)
  }
  const clapNodes = [
    average('input_features', 'coarse', 31, 32),
    makeNode({ opType: 'Transpose', inputs: ['coarse'], outputs: ['grouped'], attributes: { perm: { ints: [0, 1, 3, 2] } } }),
    makeNode({ opType: 'Reshape', inputs: ['grouped', 'flat'], outputs: ['latent'] }),
    makeNode({ opType: 'GlobalAveragePool', inputs: ['latent'], outputs: ['audio_embeds'] }),
  ]
  await write(
    'audio_model.onnx',
    model([['input_features', 'float32', ['batch', 1, 1001, 64]]], clapNodes, 'audio_embeds', { flat: int64Tensor([0, 1, 64], [3]) }),
  )
  const beatsNodes = [
    makeNode({ opType: 'Unsqueeze', inputs: ['fbank', 'one'], outputs: ['picture'] }),
    average('picture', 'patches', 16, 16),
    makeNode({ opType: 'Reshape', inputs: ['patches', 'flat'], outputs: ['row'] }),
    makeNode({ opType: 'Transpose', inputs: ['row'], outputs: ['features'], attributes: { perm: { ints: [0, 2, 1] } } }),
  ]
  const beatsFile = await write(
    'beats.onnx',
    model([['fbank', 'float32', ['batch', 'frames', 128]]], beatsNodes, 'features', {
      one: int64Tensor([1], [1]),
      flat: int64Tensor([0, 1, -1], [3]),
    }),
  )
  const bindNodes = [
    makeNode({ opType: 'ReduceMean', inputs: ['mel', 'axes'], outputs: ['embedding'], attributes: { keepdims: { int: 0 } } }),
  ]
  const bindFile = await write(
    'imagebind.onnx',
    model([['mel', 'float32', ['batch', 1, 128, 204]]], bindNodes, 'embedding', { axes: int64Tensor([1, 3], [2]) }),
  )

  const place = { device: 'cpu', threads: 1 } as const
  const encoders = {
    clap: await clap({ model: folder, ...place }),
    beats: await beats({ model: beatsFile, ...place }),
    bind: await imagebindAudio({ model: bindFile, ...place }),
  }
  onTestFinished(async () => {
    await Promise.all(Object.values(encoders).map((encoder) => encoder.dispose()))
  })
  const features = async (encoder: SoundEncoder, audio: { readonly sampleRateHz: number; readonly samples: Float32Array }) => {
    const { tokens, data } = await encoder.encode([await encoder.preprocess(audio)])
    expect(tokens).toBe(gridTokens(encoder.grid({ seconds: audio.samples.length / audio.sampleRateHz })))
    return { tokens, data, picture: preprocessAudio(audio, encoder.preprocessing).values[0]?.data ?? new Float32Array() }
  }

  const clapped = await features(encoders.clap, { sampleRateHz: 48_000, samples: sound(100_000) })
  expect(clapped.tokens).toBe(64)
  expect(clapped.data[2 * 5 + 1]).toBeCloseTo(rectangle(clapped.picture, 64, [31 * 5, 31], [32, 32]), 3)
  expect(encoders.clap.grid({}).segments[0]).toMatchObject({ frames: 32, columns: 2 })

  const heard = await features(encoders.beats, { sampleRateHz: 16_000, samples: sound(20_000) })
  expect(heard.tokens).toBe(Math.floor((Math.floor((20_000 - 400) / 160) + 1) / 16) * 8)
  expect(heard.data[8 * 3 + 2]).toBeCloseTo(rectangle(heard.picture, 128, [48, 16], [32, 16]), 3)

  const bound = await features(encoders.bind, { sampleRateHz: 16_000, samples: sound(160_000) })
  expect(bound.tokens).toBe(3)
  expect(encoders.bind.width).toBe(128)
  expect(encoders.bind.grid({ seconds: 10 }).segments[0]?.time).toEqual([0, 4, 8])

  const { family, model: file, options } = encoders.beats.recipe ?? {}
  expect(family).toBe('beats')
  const again = await beats({ model: file ?? '', ...options, ...place })
  onTestFinished(() => again.dispose())
  expect(again.fingerprint).toBe(encoders.beats.fingerprint)
})
