/** Vision encoders against Transformers on small random checkpoints, as graphs over safetensors and as published ONNX files. Fixture: test/fixtures/vision/make.py. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test } from 'vitest'
import { z } from 'zod'
import { hiddenStates } from '../encoders/blocks/residual-stream.ts'
import { withoutPrefix } from '../encoders/blocks/vision-tower.ts'
import { clip } from '../encoders/clip.ts'
import { dinov2 } from '../encoders/dinov2.ts'
import { dinov3 } from '../encoders/dinov3.ts'
import { siglip } from '../encoders/siglip.ts'
import { vit } from '../encoders/vit.ts'
import { size } from '../src/graph/dim.ts'
import { input, type Tensor } from '../src/graph/tensor.ts'
import { checkpointWeights } from '../src/llm/checkpoint-weights.ts'
import { familyWeights } from '../src/llm/family-weights.ts'
import { readPreprocessorConfig } from '../src/media/preprocessor-config.ts'
import { encodeModel } from '../src/onnx/codec.ts'
import { readOnnxFile } from '../src/onnx/load.ts'
import { lower } from '../src/onnx/lower.ts'
import { exposeTensors } from '../src/onnx/surgery.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import type { ModelSource } from '../src/runtime/session.ts'
import type { NamedTensors, TensorValue } from '../src/tensors.ts'
import { openCheckpoint } from '../src/weights/checkpoint.ts'
import { openSafetensors } from '../src/weights/safetensors.ts'

const folder = fileURLToPath(new URL('./fixtures/vision/', import.meta.url))
const { transformers, cases } = z
  .object({
    transformers: z.string(),
    cases: z.array(
      z.object({
        family: z.enum(['clip', 'siglip', 'vit', 'dinov2', 'dinov3']),
        name: z.string(),
        height: z.int(),
        width: z.int(),
        layers: z.array(z.string()),
      }),
    ),
  })
  .parse(JSON.parse(readFileSync(`${folder}cases.json`, 'utf8')))
const families = { clip, siglip, vit, dinov2, dinov3 }

type Float32Value = Extract<TensorValue, { dtype: 'float32' }>

async function reference(name: string): Promise<Float32Value> {
  return floats(await (await openSafetensors(`${folder}references.safetensors`)).read(name))
}

function floats(value: TensorValue | undefined): Float32Value {
  if (value?.dtype !== 'float32') throw new Error(`not float32: ${value?.dtype}`)
  return value
}

async function run({ bytes, externalRoot }: ModelSource, pixels: TensorValue): Promise<NamedTensors> {
  const session = await createLocalSession({ bytes, ...(externalRoot !== undefined && { externalRoot }) }, { device: 'cpu', threads: 1 })
  onTestFinished(() => session.dispose())
  return session.run({ pixel_values: pixels })
}

/** The reference's own tokens, prefix dropped. */
async function withoutPrefixTokens(name: string, own: number): Promise<Float32Array> {
  const { dims, data } = await reference(name)
  const [images = 0, tokens = 0, channels = 0] = dims
  const parts = Array.from({ length: images }, (_, image) =>
    data.subarray((image * tokens + tokens - own) * channels, (image + 1) * tokens * channels),
  )
  return Float32Array.from(parts.flatMap((part) => [...part]))
}

function largestDifference(a: Float32Array, b: Float32Array): number {
  expect(a.length).toBe(b.length)
  return a.reduce((most, value, index) => Math.max(most, Math.abs(value - (b[index] ?? Number.NaN))), 0)
}

function relativeError(a: Float32Array, b: Float32Array): number {
  expect(a.length).toBe(b.length)
  const norm = (values: Float32Array): number => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0))
  return norm(a.map((value, index) => value - (b[index] ?? Number.NaN))) / norm(b)
}

describe(`hidden states equal those of Transformers ${transformers}`, () => {
  test.each(cases)('$name at $height x $width, layers $layers', async ({ family, name, height, width, layers }) => {
    const tower = families[family].towerOf(JSON.parse(readFileSync(`${folder}${name}/config.json`, 'utf8')))
    const weights = familyWeights(checkpointWeights(await openCheckpoint(`${folder}${name}`)), tower.names)
    const pixels = input('pixel_values', 'float32', [size('images'), 3, height, width])
    const outputs = layers.map((layer): readonly [string, Tensor] => {
      const state = tower.forward(pixels, weights, layer === 'last' ? layer : Number(layer))
      return [`state.${layer}`, withoutPrefix(state, tower.prefixTokens)]
    })
    const results = await run(lower({ outputs: Object.fromEntries(outputs) }), await reference(`${height}x${width}/pixels`))
    for (const layer of layers) {
      const theirs = await withoutPrefixTokens(`${name}/${height}x${width}/${layer}`, (height / 4) * (width / 4))
      expect(largestDifference(floats(results[`state.${layer}`]).data, theirs), layer).toBeLessThan(1e-4)
    }
  })
})

describe('hidden states are found in published ONNX files', () => {
  test.each([
    { file: 'clip/onnx/vision_model.onnx', output: 'image_embeds', name: 'clip', states: ['0', '1', '2'], error: 1e-5 },
    { file: 'dinov2/onnx/model.onnx', output: 'last_hidden_state', name: 'dinov2', states: ['0', '1', '2'], error: 1e-5 },
    { file: 'vit/onnx/model.onnx', output: 'last_hidden_state', name: 'vit', states: ['0', '1', '2'], error: 1e-5 },
    { file: 'vit/model_optimized.onnx', output: 'last_hidden_state', name: 'vit', states: ['0', '1', undefined], error: 1e-5 },
    { file: 'vit/onnx/model_fp16.onnx', output: 'last_hidden_state', name: 'vit', states: ['0', '1', '2'], error: 0.01 },
    { file: 'vit/onnx/model_quantized.onnx', output: 'last_hidden_state', name: 'vit', states: ['0', '1', '2'], error: 0.1 },
    { file: 'vit/onnx/model_q4.onnx', output: 'last_hidden_state', name: 'vit', states: ['0', '1', '2'], error: 0.2 },
  ])('$file: every state within $error of its size', async ({ file, output, name, states, error }) => {
    const { model } = await readOnnxFile(`${folder}onnx-community/${file}`)
    const found = hiddenStates(model, output, file)
    expect(found.map((state) => state !== undefined)).toEqual(states.map((state) => state !== undefined))
    const tensors = found.filter((state) => state !== undefined)
    const results = await run({ bytes: encodeModel(exposeTensors(model, tensors)) }, await reference('16x16/pixels'))
    for (const [index, tensor] of tensors.entries()) {
      const value = results[tensor]
      // Half precision inside of a file whose inputs and outputs are float32.
      const ours = value?.dtype === 'float16' ? Float32Array.from(value.data, halfToFloat) : floats(value).data
      expect(relativeError(ours, (await reference(`${name}/16x16/${states[index]}`)).data), tensor).toBeLessThan(error)
    }
  })
})

function halfToFloat(bits: number): number {
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023]
  const size = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15)
  return bits >> 15 === 0 ? size : -size
}

describe('opened by their families', () => {
  test('CLIP: safetensors and the ONNX file of one folder give the same penultimate features of a picture', async () => {
    const picture = { width: 20, height: 30, data: Uint8Array.from({ length: 1800 }, (_, at) => (at * 37) & 255) }
    const options = { device: 'cpu', threads: 1 } as const
    const graph = await clip({ ...options, model: `${folder}clip` })
    onTestFinished(() => graph.dispose())
    const file = await clip({ ...options, model: `${folder}onnx-community/clip` })
    onTestFinished(() => file.dispose())
    expect([graph.width, graph.grid({}), graph.recipe?.family]).toEqual([file.width, file.grid({}), 'clip'])
    expect(graph.graph?.inputShape).toEqual([3, 16, 16])
    expect(file.graph).toBeUndefined()
    const [ours, theirs] = await Promise.all([graph, file].map(async (encoder) => encoder.encode([await encoder.preprocess(picture)])))
    expect(largestDifference(ours?.data ?? new Float32Array(0), theirs?.data ?? new Float32Array(1))).toBeLessThan(1e-4)
    expect(graph.preprocessing).toEqual(await readPreprocessorConfig(`${folder}clip`))
  })

  test.each([
    ['a layer that is not there', { model: `${folder}clip`, layer: 3 }, 'ENCODER_LAYER'],
    ['another family', { model: `${folder}vit` }, 'ENCODER_CONFIG'],
    ['a precision that is not there', { model: `${folder}onnx-community/clip`, weights: 'q4' as const }, 'ENCODER_MISSING'],
    [
      'a size of less than a patch',
      { model: `${folder}clip`, preprocessing: { resize: { size: { height: 3, width: 9 }, filter: 'box' as const } } },
      'ENCODER_PREPROCESSING',
    ],
    ['a size that hangs on the picture', { model: `${folder}clip`, preprocessing: {} }, 'ENCODER_PREPROCESSING'],
    ['a fused state', { model: `${folder}onnx-community/vit/model_optimized.onnx`, layer: -1 }, 'ENCODER_LAYER'],
  ])('refuses %s', async (_, options, code) => {
    const open = options.model.endsWith('.onnx') ? vit : clip
    await expect(open(options)).rejects.toThrow(expect.objectContaining({ code }))
  })
})
