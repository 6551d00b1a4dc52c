/** Vision encoders against Transformers on small random checkpoints, as graphs over safetensors and as published ONNX files. Fixture: test/fixtures/vision/make.py. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test } from 'vitest'
import { z } from 'zod'
import { hiddenStates } from '../encoders/blocks/residual-stream.ts'
import { withoutPrefix } from '../encoders/blocks/vision-tower.ts'
import { clip } from '../encoders/clip.ts'
import { concat } from '../encoders/concat.ts'
import { convnext } from '../encoders/convnext.ts'
import { dinov2 } from '../encoders/dinov2.ts'
import { dinov3 } from '../encoders/dinov3.ts'
import { eva } from '../encoders/eva.ts'
import { openclip } from '../encoders/openclip.ts'
import { siglip } from '../encoders/siglip.ts'
import { siglip2 } from '../encoders/siglip2.ts'
import { tiled } from '../encoders/tiled.ts'
import { vit } from '../encoders/vit.ts'
import { encoderCatalogue } from '../src/cli/catalogues.ts'
import { matmulTransposed } from '../src/graph/composites/linear.ts'
import { size } from '../src/graph/dim.ts'
import { gradients } from '../src/graph/gradients.ts'
import { add } from '../src/graph/operators/add.ts'
import { mul } from '../src/graph/operators/mul.ts'
import { reduceSum } from '../src/graph/operators/reduce-sum.ts'
import { input, type Tensor } from '../src/graph/tensor.ts'
import { checkpointWeights } from '../src/llm/checkpoint-weights.ts'
import type { LinearLayer } from '../src/llm/decoder.ts'
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
        family: z.enum(['clip', 'siglip', 'vit', 'dinov2', 'dinov3', 'convnext', 'openclip', 'eva']),
        name: z.string(),
        height: z.int(),
        width: z.int(),
        layers: z.array(z.string()),
      }),
    ),
  })
  .parse(JSON.parse(readFileSync(`${folder}cases.json`, 'utf8')))
const families = { clip, siglip, vit, dinov2, dinov3, convnext, openclip, eva }

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

/** The reference's last `own` tokens of each picture, behind the prefix; maps as tokens. */
async function withoutPrefixTokens(name: string, own: number): Promise<Float32Array> {
  const { dims, data } = await reference(name)
  const [images = 0, second = 0, third = 0] = dims
  if (dims.length === 4) {
    return Float32Array.from({ length: data.length }, (_, at) => {
      const [image, place, channel] = [Math.floor(at / (own * second)), Math.floor(at / second) % own, at % second]
      return data[(image * second + channel) * own + place] ?? Number.NaN
    })
  }
  const parts = Array.from({ length: images }, (_, image) =>
    data.subarray((image * second + second - own) * third, (image + 1) * second * third),
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

describe(`hidden states equal those of Transformers ${transformers}, timm and OpenCLIP`, () => {
  test.each(cases)('$name at $height x $width, layers $layers', async ({ family, name, height, width, layers }) => {
    const configFile = family === 'openclip' ? 'open_clip_config.json' : 'config.json'
    const tower = families[family].towerOf(JSON.parse(readFileSync(`${folder}${name}/${configFile}`, 'utf8')))
    const weights = familyWeights(checkpointWeights(await openCheckpoint(`${folder}${name}`)), tower.names)
    const pixels = input('pixel_values', 'float32', [size('images'), 3, height, width])
    const outputs = layers.map((layer): readonly [string, Tensor] => {
      const state = tower.forward(pixels, weights, layer === 'last' ? layer : Number(layer))
      return [`state.${layer}`, withoutPrefix(state, tower.prefixTokens)]
    })
    const results = await run(lower({ outputs: Object.fromEntries(outputs) }), await reference(`${height}x${width}/pixels`))
    for (const layer of layers) {
      const patch = tower.patchAt(layer === 'last' ? layer : Number(layer))
      const own = Math.floor(height / patch.height) * Math.floor(width / patch.width)
      const theirs = await withoutPrefixTokens(`${name}/${height}x${width}/${layer}`, own)
      expect(largestDifference(floats(results[`state.${layer}`]).data, theirs), layer).toBeLessThan(1e-4)
    }
  })
})

/** One of each kind of part: interpolated positions, angles and gates, convolutions and response norms. */
test.each([
  { family: 'clip', name: 'clip', height: 12, width: 20, module: 'encoder.layers.0.self_attn.q_proj' },
  { family: 'dinov2', name: 'dinov2-registers', height: 12, width: 20, module: 'encoder.layer.0.mlp.fc1' },
  { family: 'dinov3', name: 'dinov3', height: 16, width: 16, module: 'layer.0.mlp.gate_proj' },
  { family: 'convnext', name: 'convnextv2', height: 16, width: 16, module: 'encoder.stages.1.layers.0.pwconv1' },
] as const)(
  '$name is differentiable: by its pixels, and by a low-rank change of $module',
  async ({ family, name, height, width, module }) => {
    const tower = families[family].towerOf(JSON.parse(readFileSync(`${folder}${name}/config.json`, 'utf8')))
    const lookup = checkpointWeights(await openCheckpoint(`${folder}${name}`))
    const parameters: Tensor[] = []
    const adapted = Object.assign((weight: string, shape: readonly number[]) => lookup(weight, shape), {
      ...(lookup.has !== undefined && { has: lookup.has }),
      linear(x: Tensor, layer: LinearLayer, plain: () => Tensor) {
        if (layer.module !== module) return plain()
        const a = input('a', 'float32', [1, layer.inFeatures])
        const b = input('b', 'float32', [layer.outFeatures, 1])
        parameters.push(a, b)
        return add(plain(), matmulTransposed(matmulTransposed(x, a), b))
      },
    })
    const pixels = input('pixel_values', 'float32', [2, 3, height, width])
    const features = tower.forward(pixels, familyWeights(adapted, tower.names), 'last')
    const loss = reduceSum(mul(features, features), [0, 1, 2], { keepdims: false })
    const wrt = [pixels, ...parameters]
    expect(wrt).toHaveLength(3)
    const outputs = Object.fromEntries(gradients(loss, wrt).map((gradient, index) => [`g${index}`, gradient]))
    const { bytes, externalRoot } = lower({ outputs: { loss, ...outputs } })
    const session = await createLocalSession({ bytes, ...(externalRoot !== undefined && { externalRoot }) }, { device: 'cpu', threads: 1 })
    onTestFinished(() => session.dispose())
    const own: Record<string, TensorValue> = { pixel_values: await reference(`${height}x${width}/pixels`) }
    for (const { shape, node } of parameters) {
      const dims = shape.map(Number)
      const data = Float32Array.from({ length: dims.reduce((product, dim) => product * dim, 1) }, (_, at) => Math.sin(at * 1.7) / 5)
      if (node.kind === 'input') own[node.name] = { dtype: 'float32', dims, data }
    }
    const at = await session.run(own)
    for (const [index, feed] of ['pixel_values', 'a', 'b'].entries()) {
      const [value, gradient] = [floats(own[feed]), floats(at[`g${index}`])]
      const direction = value.data.map((_, place) => Math.cos(place * 2.3))
      const along = async (step: number): Promise<number> => {
        const moved = { ...value, data: value.data.map((one, place) => one + step * (direction[place] ?? 0)) }
        return floats((await session.run({ ...own, [feed]: moved }, { fetch: ['loss'] })).loss).data[0] ?? Number.NaN
      }
      const step = 2e-3
      const numeric = ((await along(step)) - (await along(-step))) / (2 * step)
      const ours = gradient.data.reduce((sum, one, place) => sum + one * (direction[place] ?? 0), 0)
      expect(Math.abs(ours - numeric), feed).toBeLessThan(0.02 * Math.abs(numeric) + 0.05)
    }
  },
)

describe('hidden states are found in published ONNX files', () => {
  test.each([
    { file: 'clip/onnx/vision_model.onnx', output: 'image_embeds', name: 'clip', states: ['0', '1', '2'], error: 1e-5 },
    { file: 'dinov2/onnx/model.onnx', output: 'last_hidden_state', name: 'dinov2', states: ['0', '1', '2'], error: 1e-5 },
    { file: 'vit/onnx/model.onnx', output: 'last_hidden_state', name: 'vit', states: ['0', '1', '2'], error: 1e-5 },
    { file: 'vit/model_optimized.onnx', output: 'last_hidden_state', name: 'vit', states: ['0', '1', undefined], error: 1e-5 },
    // Of lower precision (parity-precisions.test.ts compares them with the same files in Python): each state is nearer to its own than to any other.
    { file: 'vit/onnx/model_fp16.onnx', output: 'last_hidden_state', name: 'vit', states: ['0', '1', '2'], error: undefined },
    { file: 'vit/onnx/model_quantized.onnx', output: 'last_hidden_state', name: 'vit', states: ['0', '1', '2'], error: undefined },
    { file: 'vit/onnx/model_q4.onnx', output: 'last_hidden_state', name: 'vit', states: ['0', '1', '2'], error: undefined },
  ])('$file: every state, within $error of its size', async ({ file, output, name, states, error }) => {
    const { model } = await readOnnxFile(`${folder}onnx-community/${file}`)
    const found = hiddenStates(model, output, file)
    expect(found.map((state) => state !== undefined)).toEqual(states.map((state) => state !== undefined))
    const tensors = found.filter((state) => state !== undefined)
    const results = await run({ bytes: encodeModel(exposeTensors(model, tensors)) }, await reference('16x16/pixels'))
    for (const [index, tensor] of tensors.entries()) {
      const value = results[tensor]
      // Half precision inside of a file whose inputs and outputs are float32.
      const ours = value?.dtype === 'float16' ? Float32Array.from(value.data, halfToFloat) : floats(value).data
      const errors = await Promise.all(
        ['0', '1', '2'].map(async (state) => relativeError(ours, (await reference(`${name}/16x16/${state}`)).data)),
      )
      const own = errors[Number(states[index])] ?? Number.NaN
      expect(own, tensor).toBe(Math.min(...errors))
      if (error !== undefined) expect(own, tensor).toBeLessThan(error)
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
    expect(graph.graph?.inputs[0]?.shape.slice(1)).toEqual([3, 16, 16])
    expect(file.graph).toBeUndefined()
    const [ours, theirs] = await Promise.all([graph, file].map(async (encoder) => encoder.encode([await encoder.preprocess(picture)])))
    expect(largestDifference(ours?.data ?? new Float32Array(0), theirs?.data ?? new Float32Array(1))).toBeLessThan(1e-4)
    expect(graph.preprocessing).toEqual(await readPreprocessorConfig(`${folder}clip`))
  })

  test.each(['1', 'last'] as const)('SigLIP 2 of any proportion, from pixels, layer %s', async (layer) => {
    const encoder = await siglip2({ model: `${folder}siglip2`, layer: layer === 'last' ? layer : Number(layer), device: 'cpu', threads: 1 })
    onTestFinished(() => encoder.dispose())
    for (const [width, height] of [
      [20, 20],
      [50, 13],
      [9, 30],
    ] as const) {
      const image = { width, height, data: Uint8Array.from({ length: 3 * width * height }, (_, at) => (at * 37) % 251) }
      const { data, tokens } = await encoder.encode([await encoder.preprocess(image)])
      const [segment] = encoder.grid(image).segments
      expect(tokens).toBe((segment?.rows ?? 0) * (segment?.columns ?? 0))
      expect(largestDifference(data, (await reference(`siglip2/${height}x${width}/${layer}`)).data)).toBeLessThan(1e-4)
    }
  })

  test('OpenCLIP: preprocessing and prefix from its own files', async () => {
    const encoder = await openclip({ model: `${folder}openclip`, device: 'cpu', threads: 1 })
    onTestFinished(() => encoder.dispose())
    expect(encoder.preprocessing.centreCrop).toEqual({ height: 16, width: 16, halves: 'even' })
    const image = { width: 19, height: 40, data: new Uint8Array(3 * 19 * 40).fill(7) }
    expect((await encoder.encode([await encoder.preprocess(image)])).tokens).toBe(16)
  })

  test('fused, in tiles, and made again from what a saved model remembers', async () => {
    const options = { device: 'cpu', threads: 1 } as const
    const fused = concat([
      await vit({ ...options, model: `${folder}vit` }),
      await siglip({ ...options, model: `${folder}siglip`, layer: 1 }),
    ])
    onTestFinished(() => fused.dispose())
    const tiles = tiled(await clip({ ...options, model: `${folder}clip` }), { tiling: { kind: 'dynamic', minTiles: 1, maxTiles: 4 } })
    onTestFinished(() => tiles.dispose())
    const catalogue = encoderCatalogue(options)
    for (const encoder of [fused, tiles]) {
      const { family = '', options: remembered = {} } = encoder.recipe ?? {}
      const again = await catalogue[family]?.(JSON.parse(JSON.stringify(remembered)))
      onTestFinished(() => again?.dispose())
      expect([again?.fingerprint, again?.width]).toEqual([encoder.fingerprint, encoder.width])
    }
    const image = { width: 40, height: 20, data: Uint8Array.from({ length: 2400 }, (_, at) => (at * 31) & 255) }
    expect((await fused.encode([await fused.preprocess(image)])).width).toBe(32)
    expect((await tiles.encode([await tiles.preprocess(image)])).tokens).toBe(3 * 16)
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
