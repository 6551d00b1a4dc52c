/** OpenCLIP's vision transformers (Ilharco et al. 2021) in their own format: open_clip_config.json and open_clip_model.safetensors. */
import { z } from 'zod'
import { matmulTransposed } from '../src/graph/composites/linear.ts'
import { add } from '../src/graph/operators/add.ts'
import { split } from '../src/graph/operators/split.ts'
import type { Tensor } from '../src/graph/tensor.ts'
import { activate } from '../src/llm/activations.ts'
import type { FamilyWeights } from '../src/llm/family-weights.ts'
import type { ImagePreprocessing } from '../src/media/preprocess.ts'
import { count, sizeField, squareField } from './blocks/config-fields.ts'
import { defineImageFamily } from './blocks/image-family.ts'
import { selfAttention } from './blocks/transformer.ts'
import { transformerTower } from './blocks/transformer-tower.ts'

const perChannel = z.tuple([z.number(), z.number(), z.number()])
const openclipConfig = z
  .object({
    model_cfg: z.object({
      quick_gelu: z.boolean().default(false),
      vision_cfg: z
        .object({
          image_size: squareField.default({ height: 224, width: 224 }),
          layers: count.default(12),
          width: count.default(768),
          head_width: count.default(64),
          mlp_ratio: z.number().positive().max(64).default(4),
          patch_size: sizeField.default({ height: 16, width: 16 }),
          /** Other towers than OpenCLIP's own. */
          timm_model_name: z.null({ error: 'nothing: towers of timm have families of their own (siglip, eva)' }).optional(),
          no_ln_pre: z.literal(false).default(false),
          pos_embed_type: z.literal('learnable').default('learnable'),
        })
        .refine(({ width, head_width: head }) => width % head === 0, { path: ['head_width'], message: 'a divisor of width' }),
    }),
    preprocess_cfg: z
      .object({
        mean: perChannel.default([0.48145466, 0.4578275, 0.40821073]),
        std: perChannel.default([0.26862954, 0.26130258, 0.27577711]),
        interpolation: z.enum(['bicubic', 'bilinear']).default('bicubic'),
        resize_mode: z.enum(['shortest', 'squash']).default('shortest'),
      })
      .prefault({}),
  })
  .readonly()
type OpenclipConfig = z.infer<typeof openclipConfig>

/**
 * OpenCLIP. Default layer: -2, the one before the last. One prefix token, the class token. Repositories with a config.json of CLIP's are opened by `clip`.
 *
 * @example
 * const encoder = await openclip('models/CLIP-ViT-B-32-laion2B-s34B-b79K')
 */
export const openclip = defineImageFamily({
  name: 'openclip',
  label: 'OpenCLIP',
  config: openclipConfig,
  layer: -2,
  prefixTokens: 1,
  onnxNames: ['vision_model', 'model'],
  files: { config: 'open_clip_config.json', weights: 'open_clip_model.safetensors', preprocessing: openclipPreprocessing },
  tower({ model_cfg: { quick_gelu: quick, vision_cfg: vision } }) {
    const { width } = vision
    const shape = {
      heads: width / vision.head_width,
      inner: Math.trunc(width * vision.mlp_ratio),
      epsilon: 1e-5,
      activation: quick ? 'quick_gelu' : 'gelu',
    } as const
    return transformerTower({
      ...shape,
      width,
      layers: vision.layers,
      patch: vision.patch_size,
      imageSize: vision.image_size,
      names: { prefix: '', others: ['visual.'], probe: 'conv1.weight' },
      patches: { module: 'conv1', bias: false },
      classToken: { name: 'class_embedding', shape: [width] },
      positions: { name: 'positional_embedding', leadingAxis: false, interpolation: 'bicubic' },
      firstNorm: 'ln_pre',
      layer: (x, weights, index) => residualBlock(x, weights, `transformer.resblocks.${index}`, { ...shape, width }),
    })
  },
})

interface BlockShape {
  readonly width: number
  readonly heads: number
  readonly inner: number
  readonly epsilon: number
  readonly activation: 'quick_gelu' | 'gelu'
}

/** torch.nn.MultiheadAttention keeps queries, keys and values in one matrix. */
function residualBlock(x: Tensor, weights: FamilyWeights, name: string, { width, heads, inner, epsilon, activation }: BlockShape): Tensor {
  const normal = weights.layerNorm(x, `${name}.ln_1`, { epsilon })
  const joint = add(
    matmulTransposed(normal, weights.tensor(`${name}.attn.in_proj_weight`, [3 * width, width])),
    weights.tensor(`${name}.attn.in_proj_bias`, [3 * width]),
  )
  const [query, key, value] = split(joint, [width, width, width], -1)
  if (query === undefined || key === undefined || value === undefined) throw new Error('internal: three parts')
  const attended = weights.linear(selfAttention([query, key, value], { heads }), `${name}.attn.out_proj`, width, { bias: true })
  const middle = add(x, attended)
  const up = weights.linear(weights.layerNorm(middle, `${name}.ln_2`, { epsilon }), `${name}.mlp.c_fc`, inner, { bias: true })
  return add(middle, weights.linear(activate(activation, up), `${name}.mlp.c_proj`, width, { bias: true }))
}

/** OpenCLIP's transform for evaluation, with torchvision's transforms on Pillow's pictures: halves of a pixel in the crop go to the even neighbour. */
function openclipPreprocessing({ model_cfg: { vision_cfg: vision }, preprocess_cfg: given }: OpenclipConfig): ImagePreprocessing {
  const { image_size: size } = vision
  const squash = given.resize_mode === 'squash'
  return {
    resize: { size: squash ? size : { shortestEdge: size.height }, filter: given.interpolation },
    ...(!squash && { centreCrop: { ...size, halves: 'even' as const } }),
    rescaleFactor: 1 / 255,
    normalize: { mean: given.mean, std: given.std },
  }
}
