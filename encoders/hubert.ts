/** HuBERT (Hsu et al. 2021), as Transformers' HubertModel has it. */
import { z } from 'zod'
import { defineSoundFamily } from './blocks/sound-family.ts'
import {
  checkWaveformConfig,
  publishedWaveform,
  waveformFields,
  waveformPreprocessing,
  waveformTokens,
  waveformTower,
} from './blocks/waveform-tower.ts'

const hubertConfig = z
  .object({
    model_type: z.literal('hubert'),
    ...waveformFields,
    feat_proj_layer_norm: z.boolean().default(true),
    /** Another norm in the convolution of positions. */
    conv_pos_batch_norm: z.literal(false).default(false),
  })
  .superRefine(checkWaveformConfig)

/**
 * HuBERT: one token for 20 ms of raw samples, in windows of 30 s at most (`windowSeconds`). Takes what {@link wav2vec2} takes.
 *
 * @throws {ModalignError} `ENCODER_CONFIG`, `ENCODER_LAYER`, `ENCODER_OPTIONS`, `ENCODER_MISSING`, and as {@link onnxAudio}
 *
 * @example
 * const encoder = await hubert('models/hubert-base-ls960')
 */
export const hubert = defineSoundFamily<z.infer<typeof hubertConfig>>({
  name: 'hubert',
  label: 'HuBERT',
  preprocessing: waveformPreprocessing(true),
  dropPadding: false,
  onnx: publishedWaveform,
  folder: {
    config: hubertConfig,
    tower: (config, layer) => waveformTower(config, layer, { prefix: 'hubert.', projectionNorm: config.feat_proj_layer_norm }),
    tokens: waveformTokens,
  },
})
