/** ConvNeXt (Liu et al. 2022) and ConvNeXt V2 (Woo et al. 2023), as Transformers' ConvNextModel and ConvNextV2Model have them. */
import { z } from 'zod'
import { ModalignError } from '../src/errors.ts'
import { add } from '../src/graph/operators/add.ts'
import { conv } from '../src/graph/operators/conv.ts'
import { div } from '../src/graph/operators/div.ts'
import { mul } from '../src/graph/operators/mul.ts'
import { reduceMean } from '../src/graph/operators/reduce-mean.ts'
import { reduceSum } from '../src/graph/operators/reduce-sum.ts'
import { sqrt } from '../src/graph/operators/sqrt.ts'
import { transpose } from '../src/graph/operators/transpose.ts'
import { fixedDim, type Tensor } from '../src/graph/tensor.ts'
import { activate, activationName } from '../src/llm/activations.ts'
import type { FamilyWeights } from '../src/llm/family-weights.ts'
import type { ModelProto } from '../src/onnx/onnx_pb.ts'
import { colours, count, sizeField } from './blocks/config-fields.ts'
import { defineImageFamily } from './blocks/image-family.ts'
import { mapAsTokens } from './blocks/patch-embedding.ts'
import type { LayerChoice, VisionTower } from './blocks/vision-tower.ts'

const convnextConfig = z
  .object({
    model_type: z.enum(['convnext', 'convnextv2']),
    hidden_sizes: z.array(count).min(1).max(16).default([96, 192, 384, 768]),
    depths: z.array(count).min(1).max(16).default([3, 3, 9, 3]),
    patch_size: sizeField.default({ height: 4, width: 4 }),
    num_channels: colours,
    hidden_act: activationName.default('gelu'),
    layer_scale_init_value: z.number().default(1e-6),
  })
  .refine(({ hidden_sizes: sizes, depths }) => sizes.length === depths.length, { path: ['depths'], message: 'as many as hidden_sizes' })
type ConvnextConfig = z.infer<typeof convnextConfig>

const epsilon = 1e-6
const channelsLast = (map: Tensor): Tensor => transpose(map, [0, 2, 3, 1])
const channelsFirst = (map: Tensor): Tensor => transpose(map, [0, 3, 1, 2])

/**
 * ConvNeXt. Layers are stages: 0 is the stem, each later one halves rows and columns. Default: `last`, the last stage's map, as LLaVA's ConvNeXt variants take it. No prefix tokens.
 *
 * @example
 * const encoder = await convnext('models/convnext-base-224')
 * encoder.grid({}).segments // [{ frames: 1, rows: 7, columns: 7 }]
 */
export const convnext = defineImageFamily({
  name: 'convnext',
  label: 'ConvNeXt',
  config: convnextConfig,
  layer: 'last',
  prefixTokens: 0,
  onnxNames: ['model'],
  onnxOutput: mapBeforePool,
  tower: convnextTower,
})

function convnextTower(config: ConvnextConfig): VisionTower {
  const { hidden_sizes: widths, depths, patch_size: patch } = config
  const stage = (layer: number | 'last'): number => Math.max(0, (layer === 'last' ? depths.length : layer) - 1)
  return {
    layers: depths.length,
    widthAt: (layer) => widths[stage(layer)] ?? 0,
    patchAt: (layer) => ({ height: patch.height * 2 ** stage(layer), width: patch.width * 2 ** stage(layer) }),
    prefixTokens: 0,
    names: { prefix: '', others: ['convnext.', 'convnextv2.'], probe: 'embeddings.patch_embeddings.weight' },
    forward(pixels, weights, layer) {
      const [first = 0] = widths
      const kernel = weights.tensor('embeddings.patch_embeddings.weight', [first, 3, patch.height, patch.width])
      const bias = weights.tensor('embeddings.patch_embeddings.bias', [first])
      let map = normed(conv(pixels, kernel, bias, { strides: [patch.height, patch.width] }), weights, 'embeddings.layernorm')
      for (let index = 0; index < (layer === 'last' ? depths.length : layer); index++) map = stageOf(map, weights, config, index)
      return mapAsTokens(map)
    },
  }
}

/** LayerNorm over the channels of a map [images, channels, rows, columns]. */
function normed(map: Tensor, weights: FamilyWeights, name: string): Tensor {
  return channelsFirst(weights.layerNorm(channelsLast(map), name, { epsilon }))
}

function stageOf(map: Tensor, weights: FamilyWeights, config: ConvnextConfig, index: number): Tensor {
  const name = `encoder.stages.${index}`
  const width = config.hidden_sizes[index] ?? 0
  const before = fixedDim(map.shape, 1, name)
  let x = map
  if (index > 0) {
    const kernel = weights.tensor(`${name}.downsampling_layer.1.weight`, [width, before, 2, 2])
    x = conv(normed(x, weights, `${name}.downsampling_layer.0`), kernel, weights.tensor(`${name}.downsampling_layer.1.bias`, [width]), {
      strides: [2, 2],
    })
  }
  for (let layer = 0; layer < (config.depths[index] ?? 0); layer++) x = layerOf(x, weights, config, `${name}.layers.${layer}`)
  return x
}

/** A depthwise convolution, then a feed-forward block for each place. */
function layerOf(map: Tensor, weights: FamilyWeights, config: ConvnextConfig, name: string): Tensor {
  const width = fixedDim(map.shape, 1, name)
  const kernel = weights.tensor(`${name}.dwconv.weight`, [width, 1, 7, 7])
  const mixed = conv(map, kernel, weights.tensor(`${name}.dwconv.bias`, [width]), { groups: width, pads: [3, 3, 3, 3] })
  const normal = weights.layerNorm(channelsLast(mixed), `${name}.layernorm`, { epsilon })
  const inner = activate(config.hidden_act, weights.linear(normal, `${name}.pwconv1`, 4 * width, { bias: true }))
  const second = config.model_type === 'convnextv2'
  const out = weights.linear(second ? responseNorm(inner, weights, `${name}.grn`) : inner, `${name}.pwconv2`, width, { bias: true })
  const scaled = second || config.layer_scale_init_value <= 0 ? out : mul(out, weights.tensor(`${name}.layer_scale_parameter`, [width]))
  return add(map, channelsFirst(scaled))
}

/** Global response normalisation: each channel by its norm over the picture, relative to the mean over channels.   x [images, rows, columns, channels]. */
function responseNorm(x: Tensor, weights: FamilyWeights, name: string): Tensor {
  const shape = [1, 1, 1, fixedDim(x.shape, 3, name)]
  const norms = sqrt(reduceSum(mul(x, x), [1, 2], { keepdims: true }))
  const relative = div(norms, add(reduceMean(norms, [-1], { keepdims: true }), 1e-6))
  return add(add(mul(weights.tensor(`${name}.weight`, shape), mul(x, relative)), weights.tensor(`${name}.bias`, shape)), x)
}

/** `last_hidden_state`, or what the pooling over rows and columns pools. */
function mapBeforePool(model: ModelProto, layer: LayerChoice, file: string): string {
  const graph = model.graph
  if (graph?.output.some(({ name }) => name === 'last_hidden_state') && layer === 'last') return 'last_hidden_state'
  const constants = new Map(graph?.initializer.map((tensor) => [tensor.name, tensor.dims.map(Number)]) ?? [])
  const pools = (graph?.node ?? []).filter(({ opType, attribute, input }) => {
    if (opType === 'GlobalAveragePool') return true
    // The norms inside average over one axis; the pooling over two.
    const axes = attribute.find(({ name }) => name === 'axes')?.ints.length ?? constants.get(input[1] ?? '')?.[0]
    return opType === 'ReduceMean' && axes === 2
  })
  const [pooled] = pools.at(-1)?.input ?? []
  if (pooled !== undefined && layer === 'last') return pooled
  throw new ModalignError({
    code: 'ENCODER_LAYER',
    file,
    field: '/layer',
    got: layer === 'last' ? 'no pooling over rows and columns, and no output last_hidden_state' : String(layer),
    expected: '"last" from an ONNX file of this family',
    hint: 'name the tensor with onnxImage: `modalign inspect FILE` lists them',
  })
}
