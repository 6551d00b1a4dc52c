/** DINOv2 (Oquab et al. 2023), with registers (Darcet et al. 2023) or without, as Transformers' Dinov2Model and Dinov2WithRegistersModel have it. */
import { z } from 'zod'
import { activationName } from '../src/llm/activations.ts'
import { colours, count, epsilonField, evenHeads, sizeField, squareField } from './blocks/config-fields.ts'
import { defineImageFamily } from './blocks/image-family.ts'
import { transformerTower } from './blocks/transformer-tower.ts'

const dinov2Config = z
  .object({
    model_type: z.enum(['dinov2', 'dinov2_with_registers']),
    hidden_size: count.default(768),
    mlp_ratio: z.number().positive().max(64).default(4),
    num_hidden_layers: count.default(12),
    num_attention_heads: count.default(12),
    num_channels: colours,
    image_size: squareField.default({ height: 224, width: 224 }),
    patch_size: sizeField.default({ height: 14, width: 14 }),
    hidden_act: activationName.default('gelu'),
    layer_norm_eps: epsilonField.default(1e-6),
    qkv_bias: z.boolean().default(true),
    use_swiglu_ffn: z.boolean().default(false),
    num_register_tokens: z.int().min(0).max(1024).default(4),
  })
  .superRefine(evenHeads)

/**
 * DINOv2. Default layer: -2, the one before the last, as Prismatic takes it. Prefix tokens: the class token, then the registers that config.json counts. Positions are
 * interpolated for pictures of another size than 518: by bicubic kernels, and by antialiased ones where there are registers, as in Transformers.
 *
 * @example
 * const encoder = await dinov2('models/dinov2-large')
 */
export const dinov2 = defineImageFamily({
  name: 'dinov2',
  label: 'DINOv2',
  config: dinov2Config,
  layer: -2,
  onnxNames: ['model'],
  tower(config) {
    const registers = config.model_type === 'dinov2_with_registers' ? config.num_register_tokens : 0
    const inner = Math.trunc(config.hidden_size * config.mlp_ratio)
    const gated = config.use_swiglu_ffn
    return transformerTower({
      width: config.hidden_size,
      layers: config.num_hidden_layers,
      heads: config.num_attention_heads,
      // Two thirds, in whole eights: as many weights as without a gate.
      inner: gated ? Math.floor((Math.trunc((inner * 2) / 3) + 7) / 8) * 8 : inner,
      epsilon: config.layer_norm_eps,
      activation: gated ? 'silu' : config.hidden_act,
      biases: { query: config.qkv_bias, key: config.qkv_bias, value: config.qkv_bias },
      patch: config.patch_size,
      imageSize: config.image_size,
      names: { prefix: '', others: ['dinov2.', 'dinov2_with_registers.'], probe: 'embeddings.patch_embeddings.projection.weight' },
      patches: { module: 'embeddings.patch_embeddings.projection', bias: true },
      classToken: { name: 'embeddings.cls_token', shape: [1, 1, config.hidden_size] },
      registers: { name: 'embeddings.register_tokens', count: registers },
      positions: {
        name: 'embeddings.position_embeddings',
        leadingAxis: true,
        interpolation: config.model_type === 'dinov2' ? 'bicubic' : 'antialiased bicubic',
      },
      modules: (layer) => {
        const name = `encoder.layer.${layer}`
        return {
          norm1: `${name}.norm1`,
          query: `${name}.attention.attention.query`,
          key: `${name}.attention.attention.key`,
          value: `${name}.attention.attention.value`,
          output: `${name}.attention.output.dense`,
          scale1: `${name}.layer_scale1.lambda1`,
          norm2: `${name}.norm2`,
          ...(gated
            ? { gateUp: `${name}.mlp.weights_in`, down: `${name}.mlp.weights_out` }
            : { up: `${name}.mlp.fc1`, down: `${name}.mlp.fc2` }),
          scale2: `${name}.layer_scale2.lambda1`,
        }
      },
      finalNorm: 'layernorm',
    })
  },
})
