/** EVA and EVA-02 (Fang et al. 2023), EVA-CLIP's towers among them, as timm publishes them: config.json names the architecture, the weights have timm's names. */
import { z } from 'zod'
import { matmulTransposed } from '../src/graph/composites/linear.ts'
import { add } from '../src/graph/operators/add.ts'
import { concat } from '../src/graph/operators/concat.ts'
import { mul } from '../src/graph/operators/mul.ts'
import { neg } from '../src/graph/operators/neg.ts'
import { reshape } from '../src/graph/operators/reshape.ts'
import { slice } from '../src/graph/operators/slice.ts'
import { split } from '../src/graph/operators/split.ts'
import { constant, fixedDim, full, type Tensor } from '../src/graph/tensor.ts'
import { activate, gated } from '../src/llm/activations.ts'
import type { FamilyWeights } from '../src/llm/family-weights.ts'
import type { ImagePreprocessing } from '../src/media/preprocess.ts'
import { count } from './blocks/config-fields.ts'
import { defineImageFamily } from './blocks/image-family.ts'
import { selfAttention } from './blocks/transformer.ts'
import { transformerTower } from './blocks/transformer-tower.ts'
import { type Size, tokenGridOf } from './blocks/vision-tower.ts'

const perChannel = z.tuple([z.number(), z.number(), z.number()])
/** What timm's functions of these names call `Eva` with; `model_args` of a config wins over it. */
const modelArguments = z.object({
  patch_size: count.default(14),
  embed_dim: count,
  depth: count,
  num_heads: count,
  mlp_ratio: z.number().positive().max(64),
  qkv_fused: z.boolean().default(true),
  swiglu_mlp: z.boolean().default(false),
  scale_mlp: z.boolean().default(false),
  scale_attn_inner: z.boolean().default(false),
  use_rot_pos_emb: z.boolean().default(false),
  /** Rows and columns at which the angles were trained. */
  ref_feat_shape: z.tuple([count, count]).nullish(),
})
type ModelArguments = z.infer<typeof modelArguments>

const second = { mlp_ratio: (4 * 2) / 3, swiglu_mlp: true, use_rot_pos_emb: true, ref_feat_shape: [16, 16] }
const separate = { ...second, qkv_fused: false, scale_mlp: true }
const clip = { ...separate, patch_size: 16, scale_attn_inner: true }
/** By the architecture's name without its sizes in pixels. */
const architectures: readonly (readonly [pattern: RegExp, given: Readonly<Record<string, unknown>>])[] = [
  [/^eva02_tiny_patch14_\d+$/, { ...second, embed_dim: 192, depth: 12, num_heads: 3 }],
  [/^eva02_small_patch14_\d+$/, { ...second, embed_dim: 384, depth: 12, num_heads: 6 }],
  [/^eva02_base_patch14_\d+$/, { ...separate, embed_dim: 768, depth: 12, num_heads: 12 }],
  [/^eva02_large_patch14_\d+$/, { ...separate, embed_dim: 1024, depth: 24, num_heads: 16 }],
  [/^eva02_base_patch16_clip_\d+$/, { ...clip, embed_dim: 768, depth: 12, num_heads: 12 }],
  [/^eva02_large_patch14_clip_\d+$/, { ...clip, patch_size: 14, embed_dim: 1024, depth: 24, num_heads: 16 }],
  [/^eva_giant_patch14_(clip_)?\d+$/, { embed_dim: 1408, depth: 40, num_heads: 16, mlp_ratio: 6144 / 1408 }],
]

const evaConfig = z
  .object({
    architecture: z
      .string()
      .refine((name) => architectures.some(([pattern]) => pattern.test(name)), 'an EVA or EVA-02 architecture of timm'),
    model_args: z.record(z.string(), z.json()).default({}),
    pretrained_cfg: z.object({
      input_size: z.tuple([z.literal(3), count, count]).refine(([, height, width]) => height === width, 'a square'),
      mean: perChannel,
      std: perChannel,
      interpolation: z.enum(['bicubic', 'bilinear']).default('bicubic'),
      crop_pct: z.number().positive().max(1).default(0.875),
      crop_mode: z.enum(['center', 'squash']).default('center'),
    }),
  })
  .transform((config, context) => {
    const [, given] = architectures.find(([pattern]) => pattern.test(config.architecture)) ?? []
    const args = modelArguments.safeParse({ ...given, ...config.model_args })
    if (args.success && args.data.embed_dim % (4 * args.data.num_heads) === 0) return { ...config, args: args.data }
    const issue = args.error?.issues[0]
    context.addIssue({
      code: 'custom',
      path: ['model_args', ...(issue?.path ?? ['num_heads'])],
      message: issue?.message ?? 'heads of a multiple of four channels',
    })
    return z.NEVER
  })
type EvaConfig = z.infer<typeof evaConfig>

/**
 * EVA. Default layer: -2, the one before the last, as BLIP-2 and Video-LLaMA take it; `last` is the last layer's output without a norm, because checkpoints differ in
 * whether they have one. One prefix token, the class token.
 *
 * @example
 * const encoder = await eva('models/eva02_base_patch14_224.mim_in22k')
 */
export const eva = defineImageFamily({
  name: 'eva',
  label: 'EVA',
  config: evaConfig,
  layer: -2,
  prefixTokens: 1,
  onnxNames: ['model'],
  files: { config: 'config.json', weights: 'model.safetensors', preprocessing: timmPreprocessing },
  tower({ args, pretrained_cfg: { input_size: input } }) {
    const { embed_dim: width, num_heads: heads, patch_size: edge } = args
    const patch = { height: edge, width: edge }
    const headDim = width / heads
    return transformerTower({
      width,
      layers: args.depth,
      heads,
      inner: Math.trunc(width * args.mlp_ratio),
      epsilon: 1e-6,
      activation: 'gelu',
      patch,
      imageSize: { height: input[1], width: input[2] },
      names: { prefix: '', others: ['trunk.', 'visual.trunk.'], probe: 'patch_embed.proj.weight' },
      patches: { module: 'patch_embed.proj', bias: true },
      classToken: { name: 'cls_token', shape: [1, 1, width] },
      positions: { name: 'pos_embed', leadingAxis: true, interpolation: 'antialiased bicubic' },
      ...(args.use_rot_pos_emb && { rotateFor: (size: Size) => patchRotation(size, patch, headDim, args.ref_feat_shape ?? undefined) }),
      layer: (x, weights, index, rotate) => block(x, weights, `blocks.${index}`, args, rotate),
    })
  },
})

const epsilon = 1e-6

function block(x: Tensor, weights: FamilyWeights, name: string, args: ModelArguments, rotate: ((x: Tensor) => Tensor) | undefined): Tensor {
  const { embed_dim: width, num_heads: heads } = args
  const normal = weights.layerNorm(x, `${name}.norm1`, { epsilon })
  const attended = selfAttention(projections(normal, weights, `${name}.attn`, args), { heads, ...(rotate !== undefined && { rotate }) })
  const scaled = args.scale_attn_inner ? weights.layerNorm(attended, `${name}.attn.norm`, { epsilon }) : attended
  const middle = add(x, weights.linear(scaled, `${name}.attn.proj`, width, { bias: true }))
  return add(middle, feedForward(weights.layerNorm(middle, `${name}.norm2`, { epsilon }), weights, `${name}.mlp`, args))
}

/** Keys have no bias. */
function projections(
  x: Tensor,
  weights: FamilyWeights,
  name: string,
  { embed_dim: width, qkv_fused: fused }: ModelArguments,
): readonly [Tensor, Tensor, Tensor] {
  if (!fused)
    return [
      weights.linear(x, `${name}.q_proj`, width, { bias: true }),
      weights.linear(x, `${name}.k_proj`, width),
      weights.linear(x, `${name}.v_proj`, width, { bias: true }),
    ]
  const bias = concat(
    [weights.tensor(`${name}.q_bias`, [width]), full(0, 'float32', [width]), weights.tensor(`${name}.v_bias`, [width])],
    0,
  )
  const joint = add(matmulTransposed(x, weights.tensor(`${name}.qkv.weight`, [3 * width, width])), bias)
  const [query, key, value] = split(joint, [width, width, width], -1)
  if (query === undefined || key === undefined || value === undefined) throw new Error('internal: three parts')
  return [query, key, value]
}

function feedForward(x: Tensor, weights: FamilyWeights, name: string, args: ModelArguments): Tensor {
  const width = args.embed_dim
  const inner = Math.trunc(width * args.mlp_ratio)
  const up = (module: string, size: number): Tensor => weights.linear(x, `${name}.${module}`, size, { bias: true })
  const down = (hidden: Tensor): Tensor => {
    const normal = args.scale_mlp ? weights.layerNorm(hidden, `${name}.norm`, { epsilon }) : hidden
    return weights.linear(normal, `${name}.fc2`, width, { bias: true })
  }
  if (!args.swiglu_mlp) return down(activate('gelu', up('fc1', inner)))
  // As timm chooses its modules: gate and values in one matrix, or in two where there is a norm between.
  if (args.scale_mlp) return down(gated('silu', up('fc1_g', inner), up('fc1_x', inner)))
  const [gate, values] = split(up('fc1', 2 * inner), [inner, inner], -1)
  if (gate === undefined || values === undefined) throw new Error('internal: two halves')
  return down(gated('silu', gate, values))
}

/** Neighbouring channels are pairs; half of them turn by the row, half by the column, counted at the size that was trained. The class token stays. */
function patchRotation(size: Size, patch: Size, headDim: number, reference: readonly [number, number] | undefined): (x: Tensor) => Tensor {
  const { rows, columns } = tokenGridOf(size, patch)
  const [trainedRows, trainedColumns] = reference ?? [rows, columns]
  const bands = headDim / 4
  const dims = [rows * columns, headDim]
  const angles = Float32Array.from({ length: rows * columns * headDim }, (_, at) => {
    const [token, channel] = [Math.floor(at / headDim), Math.floor((at % headDim) / 2)]
    const place = channel < bands ? (Math.floor(token / columns) / rows) * trainedRows : ((token % columns) / columns) * trainedColumns
    return place * 10_000 ** (-(channel % bands) / bands)
  })
  const cos = constant({ dtype: 'float32', dims, data: angles.map(Math.cos) })
  const sin = constant({ dtype: 'float32', dims, data: angles.map(Math.sin) })
  return (x) => {
    const prefix = fixedDim(x.shape, 2, 'tokens') - rows * columns
    const own = slice(x, [{ axis: 2, start: prefix }])
    const turned = add(mul(own, cos), mul(quarterTurn(own), sin))
    return prefix === 0 ? turned : concat([slice(x, [{ axis: 2, end: prefix }]), turned], 2)
  }
}

/** (a, b) to (-b, a) for every pair of neighbouring channels. */
function quarterTurn(x: Tensor): Tensor {
  const pairs = reshape(x, [...x.shape.slice(0, -1), fixedDim(x.shape, -1, 'head') / 2, 2])
  const [first, last] = split(pairs, [1, 1], -1)
  if (first === undefined || last === undefined) throw new Error('internal: pairs')
  return reshape(concat([neg(last), first], -1), x.shape)
}

/** timm's transform for evaluation, with torchvision's transforms on Pillow's pictures. */
function timmPreprocessing({
  pretrained_cfg: { input_size: input, crop_pct: share, crop_mode: mode, ...given },
}: EvaConfig): ImagePreprocessing {
  const [, height, width] = input
  const whole = { height: Math.floor(height / share), width: Math.floor(width / share) }
  return {
    resize: { size: mode === 'squash' ? whole : { shortestEdge: whole.height }, filter: given.interpolation },
    centreCrop: { height, width, halves: 'even' },
    rescaleFactor: 1 / 255,
    normalize: { mean: given.mean, std: given.std },
  }
}
