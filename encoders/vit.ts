/** ViT (Dosovitskiy et al. 2021), as Transformers' ViTModel and ViTForImageClassification have it; DeiT's checkpoints without distillation are of this kind. */
import { z } from 'zod'
import { activationName } from '../src/llm/activations.ts'
import { colours, count, epsilonField, evenHeads, sizeField, squareField } from './blocks/config-fields.ts'
import { defineImageFamily } from './blocks/image-family.ts'
import { transformerTower } from './blocks/transformer-tower.ts'

const vitConfig = z
  .object({
    model_type: z.literal('vit'),
    hidden_size: count.default(768),
    intermediate_size: count.default(3072),
    num_hidden_layers: count.default(12),
    num_attention_heads: count.default(12),
    num_channels: colours,
    image_size: squareField.default({ height: 224, width: 224 }),
    patch_size: sizeField.default({ height: 16, width: 16 }),
    hidden_act: activationName.default('gelu'),
    layer_norm_eps: epsilonField.default(1e-12),
    qkv_bias: z.boolean().default(true),
  })
  .superRefine(evenHeads)

/**
 * ViT. Default layer: -2, the one before the last, as Prismatic takes it. One prefix token, the class token.
 *
 * @example
 * const encoder = await vit('models/vit-base-patch16-224', { layer: 'last' })
 */
export const vit = defineImageFamily({
  name: 'vit',
  label: 'ViT',
  config: vitConfig,
  layer: -2,
  prefixTokens: 1,
  onnxNames: ['model'],
  tower: (config) =>
    transformerTower({
      width: config.hidden_size,
      layers: config.num_hidden_layers,
      heads: config.num_attention_heads,
      inner: config.intermediate_size,
      epsilon: config.layer_norm_eps,
      activation: config.hidden_act,
      biases: { query: config.qkv_bias, key: config.qkv_bias, value: config.qkv_bias },
      patch: config.patch_size,
      imageSize: config.image_size,
      names: { prefix: '', others: ['vit.'], probe: 'embeddings.patch_embeddings.projection.weight' },
      patches: { module: 'embeddings.patch_embeddings.projection', bias: true },
      classToken: { name: 'embeddings.cls_token', shape: [1, 1, config.hidden_size] },
      positions: { name: 'embeddings.position_embeddings', leadingAxis: true, interpolation: 'bicubic' },
      modules: (layer) => {
        const name = `encoder.layer.${layer}`
        return {
          norm1: `${name}.layernorm_before`,
          query: `${name}.attention.attention.query`,
          key: `${name}.attention.attention.key`,
          value: `${name}.attention.attention.value`,
          output: `${name}.attention.output.dense`,
          norm2: `${name}.layernorm_after`,
          up: `${name}.intermediate.dense`,
          down: `${name}.output.dense`,
        }
      },
      finalNorm: 'layernorm',
    }),
})
