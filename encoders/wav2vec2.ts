/** wav2vec 2.0 (Baevski et al. 2020), as Transformers' Wav2Vec2Model has it: base, large, and models tuned from them. */
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

const wav2vec2Config = z.object({ model_type: z.literal('wav2vec2'), ...waveformFields }).superRefine(checkWaveformConfig)

/**
 * wav2vec 2.0: one token for 20 ms of raw samples. Sounds are heard in windows of 30 s at most (`windowSeconds`), the last as long as it is.
 *
 * Takes a Hugging Face folder (`model.safetensors`), an export's `onnx/model.onnx`, or the file itself. Exports of models tuned to transcribe give letters, not
 * features: name the tensor before their head in `output`.
 *
 * @throws {ModalignError} `ENCODER_CONFIG`, `ENCODER_LAYER`, `ENCODER_OPTIONS`, `ENCODER_MISSING`, and as {@link onnxAudio}
 *
 * @example
 * const encoder = await wav2vec2({ model: 'models/wav2vec2-base', layer: 9 })
 * encoder.grid({ seconds: 2 }).segments[0].frames // 99
 */
export const wav2vec2 = defineSoundFamily<z.infer<typeof wav2vec2Config>>({
  name: 'wav2vec2',
  label: 'wav2vec 2.0',
  preprocessing: waveformPreprocessing(true),
  dropPadding: false,
  onnx: publishedWaveform,
  folder: {
    config: wav2vec2Config,
    tower: (config, layer) => waveformTower(config, layer, { prefix: 'wav2vec2.' }),
    tokens: waveformTokens,
  },
})
