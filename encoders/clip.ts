/** CLIP's vision tower (Radford et al. 2021), as Transformers' CLIPModel and CLIPVisionModel have it: OpenAI's, and LAION's and others' in that format. */
import { z } from 'zod'
import { activationName } from '../src/llm/activations.ts'
import { colours, count, epsilonField, evenHeads, sizeField, squareField } from './blocks/config-fields.ts'
import { defineImageFamily } from './blocks/image-family.ts'
import { transformerTower } from './blocks/transformer-tower.ts'

const clipVisionConfig = z
  .object({
    model_type: z.enum(['clip_vision_model', 'clip']),
    hidden_size: count.default(768),
    intermediate_size: count.default(3072),
    num_hidden_layers: count.default(12),
    num_attention_heads: count.default(12),
    num_channels: colours,
    image_size: squareField.default({ height: 224, width: 224 }),
    patch_size: sizeField.default({ height: 32, width: 32 }),
    hidden_act: activationName.default('quick_gelu'),
    layer_norm_eps: epsilonField.default(1e-5),
  })
  .superRefine(evenHeads)

/** Names within CLIP's and SigLIP's layers. */
export function clipModules(layer: number) {
  const name = `encoder.layers.${layer}`
  return {
    norm1: `${name}.layer_norm1`,
    query: `${name}.self_attn.q_proj`,
    key: `${name}.self_attn.k_proj`,
    value: `${name}.self_attn.v_proj`,
    output: `${name}.self_attn.out_proj`,
    norm2: `${name}.layer_norm2`,
    up: `${name}.mlp.fc1`,
    down: `${name}.mlp.fc2`,
  }
}

/**
 * CLIP. Default layer: -2, the one before the last, as LLaVA takes it. One prefix token, the class token.
 *
 * @example
 * const encoder = await clip('models/clip-vit-large-patch14-336')
 * encoder.width // 1024
 */
export const clip = defineImageFamily({
  name: 'clip',
  label: 'CLIP',
  config: clipVisionConfig,
  layer: -2,
  prefixTokens: 1,
  onnxNames: ['vision_model', 'model'],
  tower: (config) =>
    transformerTower({
      width: config.hidden_size,
      layers: config.num_hidden_layers,
      heads: config.num_attention_heads,
      inner: config.intermediate_size,
      epsilon: config.layer_norm_eps,
      activation: config.hidden_act,
      patch: config.patch_size,
      imageSize: config.image_size,
      names: {
        prefix: '',
        others: ['vision_model.', 'vision_tower.vision_model.', 'model.vision_tower.vision_model.', 'model.vision_tower.'],
        probe: 'embeddings.patch_embedding.weight',
      },
      patches: { module: 'embeddings.patch_embedding', bias: false },
      classToken: { name: 'embeddings.class_embedding', shape: [config.hidden_size] },
      positions: { name: 'embeddings.position_embedding.weight', leadingAxis: false, interpolation: 'bicubic' },
      // The misspelling is the checkpoints'.
      firstNorm: 'pre_layrnorm',
      modules: clipModules,
    }),
})
