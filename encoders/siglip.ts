/** SigLIP's vision tower (Zhai et al. 2023), as Transformers' SiglipModel and SiglipVisionModel have it. SigLIP 2's checkpoints of fixed size are of this kind, too. */
import { z } from 'zod'
import { activationName } from '../src/llm/activations.ts'
import { colours, count, epsilonField, evenHeads, sizeField, squareField } from './blocks/config-fields.ts'
import { defineImageFamily } from './blocks/image-family.ts'
import { transformerTower } from './blocks/transformer-tower.ts'
import { clipModules } from './clip.ts'

const siglipVisionConfig = z
  .object({
    model_type: z.enum(['siglip_vision_model', 'siglip']),
    hidden_size: count.default(768),
    intermediate_size: count.default(3072),
    num_hidden_layers: count.default(12),
    num_attention_heads: count.default(12),
    num_channels: colours,
    image_size: squareField.default({ height: 224, width: 224 }),
    patch_size: sizeField.default({ height: 16, width: 16 }),
    hidden_act: activationName.default('gelu_pytorch_tanh'),
    layer_norm_eps: epsilonField.default(1e-6),
  })
  .superRefine(evenHeads)

/**
 * SigLIP. Default layer: `last`, after the final norm. No prefix tokens: every token is a patch.
 *
 * @example
 * const encoder = await siglip('models/siglip-so400m-patch14-384')
 * encoder.grid({}).segments // [{ frames: 1, rows: 27, columns: 27 }]
 */
export const siglip = defineImageFamily({
  name: 'siglip',
  label: 'SigLIP',
  config: siglipVisionConfig,
  layer: 'last',
  prefixTokens: 0,
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
      patches: { module: 'embeddings.patch_embedding', bias: true },
      positions: { name: 'embeddings.position_embedding.weight', leadingAxis: false, interpolation: 'bicubic' },
      modules: clipModules,
      finalNorm: 'post_layernorm',
    }),
})
