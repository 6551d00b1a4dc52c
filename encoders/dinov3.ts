/** DINOv3's vision transformers (Siméoni et al. 2025), as Transformers' DINOv3ViTModel has them: positions are angles, for patches alone. */
import { z } from 'zod'
import { add } from '../src/graph/operators/add.ts'
import { concat } from '../src/graph/operators/concat.ts'
import { mul } from '../src/graph/operators/mul.ts'
import { split } from '../src/graph/operators/split.ts'
import { sub } from '../src/graph/operators/sub.ts'
import { constant, fixedDim, type Tensor } from '../src/graph/tensor.ts'
import { activationName } from '../src/llm/activations.ts'
import { colours, count, epsilonField, evenHeads, sizeField } from './blocks/config-fields.ts'
import { defineImageFamily } from './blocks/image-family.ts'
import { transformerTower } from './blocks/transformer-tower.ts'
import { type Size, tokenGridOf } from './blocks/vision-tower.ts'

const dinov3Config = z
  .object({
    model_type: z.literal('dinov3_vit'),
    hidden_size: count.default(384),
    intermediate_size: count.default(1536),
    num_hidden_layers: count.default(12),
    num_attention_heads: count.default(6),
    num_channels: colours,
    image_size: sizeField.default({ height: 224, width: 224 }),
    patch_size: sizeField.default({ height: 16, width: 16 }),
    hidden_act: activationName.default('gelu'),
    layer_norm_eps: epsilonField.default(1e-5),
    rope_theta: z.number().positive().default(100),
    query_bias: z.boolean().default(true),
    key_bias: z.boolean().default(false),
    value_bias: z.boolean().default(true),
    proj_bias: z.boolean().default(true),
    mlp_bias: z.boolean().default(true),
    use_gated_mlp: z.boolean().default(false),
    num_register_tokens: z.int().min(0).max(1024).default(0),
  })
  .superRefine(evenHeads)
  .refine(({ hidden_size: width, num_attention_heads: heads }) => (width / heads) % 4 === 0, {
    path: ['num_attention_heads'],
    message: 'heads of a multiple of four channels: half of them turn by the row, half by the column',
  })

/**
 * DINOv3's ViTs. Default layer: `last`, after the final norm. Prefix tokens: the class token, then the registers that config.json counts.
 *
 * @example
 * const encoder = await dinov3('models/dinov3-vitb16-pretrain-lvd1689m')
 */
export const dinov3 = defineImageFamily({
  name: 'dinov3',
  label: 'DINOv3',
  config: dinov3Config,
  layer: 'last',
  onnxNames: ['model'],
  tower: (config) =>
    transformerTower({
      width: config.hidden_size,
      layers: config.num_hidden_layers,
      heads: config.num_attention_heads,
      inner: config.intermediate_size,
      epsilon: config.layer_norm_eps,
      activation: config.hidden_act,
      biases: { query: config.query_bias, key: config.key_bias, value: config.value_bias, output: config.proj_bias, mlp: config.mlp_bias },
      patch: config.patch_size,
      imageSize: config.image_size,
      names: { prefix: '', others: [], probe: 'embeddings.patch_embeddings.weight' },
      patches: { module: 'embeddings.patch_embeddings', bias: true },
      classToken: { name: 'embeddings.cls_token', shape: [1, 1, config.hidden_size] },
      registers: { name: 'embeddings.register_tokens', count: config.num_register_tokens },
      rotateFor: (size) => patchRotation(size, config.patch_size, config.hidden_size / config.num_attention_heads, config.rope_theta),
      modules: (layer) => {
        const name = `layer.${layer}`
        return {
          norm1: `${name}.norm1`,
          query: `${name}.attention.q_proj`,
          key: `${name}.attention.k_proj`,
          value: `${name}.attention.v_proj`,
          output: `${name}.attention.o_proj`,
          scale1: `${name}.layer_scale1.lambda1`,
          norm2: `${name}.norm2`,
          ...(config.use_gated_mlp && { gate: `${name}.mlp.gate_proj` }),
          up: `${name}.mlp.up_proj`,
          down: `${name}.mlp.down_proj`,
          scale2: `${name}.layer_scale2.lambda1`,
        }
      },
      finalNorm: 'norm',
    }),
})

/**
 * Turns patches by where their centres lie in a picture whose edges are -1 and 1: a quarter of a head's angles by the row, a quarter by the column, and both again
 * for the other half, with which the first is paired. Tokens before the patches stay.
 */
function patchRotation(size: Size, patch: Size, headDim: number, theta: number): (x: Tensor) => Tensor {
  const { rows, columns } = tokenGridOf(size, patch)
  const quarter = headDim / 4
  const half = 2 * quarter
  const angles = new Float32Array(rows * columns * half)
  const centre = (index: number, count: number): number => 2 * ((index + 0.5) / count) - 1
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const at = (row * columns + column) * half
      for (let channel = 0; channel < quarter; channel++) {
        const frequency = 2 * Math.PI * theta ** (-channel / quarter)
        angles[at + channel] = frequency * centre(row, rows)
        angles[at + quarter + channel] = frequency * centre(column, columns)
      }
    }
  }
  const dims = [rows * columns, half]
  const cos = constant({ dtype: 'float32', dims, data: angles.map(Math.cos) })
  const sin = constant({ dtype: 'float32', dims, data: angles.map(Math.sin) })
  return (x) => {
    const prefix = fixedDim(x.shape, 2, 'tokens') - rows * columns
    const [before, own] = prefix === 0 ? [undefined, x] : split(x, [prefix, rows * columns], 2)
    const [first, second] = split(own ?? x, [half, half], -1)
    if (first === undefined || second === undefined) throw new Error('internal: two halves')
    const turned = concat([sub(mul(first, cos), mul(second, sin)), add(mul(second, cos), mul(first, sin))], -1)
    return before === undefined ? turned : concat([before, turned], 2)
  }
}
