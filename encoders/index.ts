/** The encoders that come with the package. Your own needs no entry here: pass it where an encoder is taken. */
import { ast } from './ast.ts'
import { beats } from './beats.ts'
import { clap } from './clap.ts'
import { clip } from './clip.ts'
import { concat } from './concat.ts'
import { convnext } from './convnext.ts'
import { dinov2 } from './dinov2.ts'
import { dinov3 } from './dinov3.ts'
import { eva } from './eva.ts'
import { frames } from './frames.ts'
import { hubert } from './hubert.ts'
import { imagebindAudio } from './imagebind-audio.ts'
import { mobilenetV2 } from './mobilenet-v2.ts'
import { onnxAudio } from './onnx-audio.ts'
import { onnxImage } from './onnx-image.ts'
import { openclip } from './openclip.ts'
import { pooled } from './pooled.ts'
import { ppOcr } from './pp-ocr.ts'
import { siglip } from './siglip.ts'
import { siglip2 } from './siglip2.ts'
import { speechEmbedding } from './speech-embedding.ts'
import { tiled } from './tiled.ts'
import { vit } from './vit.ts'
import { wav2vec2 } from './wav2vec2.ts'
import { wavlm } from './wavlm.ts'
import { whisper } from './whisper.ts'

export type { ImageEncoder } from './blocks/graph-image.ts'
export type { ImageFamilyOptions, OpenImageFamily } from './blocks/image-family.ts'
export type { SoundFamilyOptions } from './blocks/sound-family.ts'
export type { LayerChoice } from './blocks/vision-tower.ts'
export type { ConcatOptions } from './concat.ts'
export type { FeatureLayout } from './feature-layout.ts'
export { type FramesOptions, frames } from './frames.ts'
export { type MobilenetV2Options, mobilenetV2, mobilenetV2Preprocessing } from './mobilenet-v2.ts'
export { type OnnxAudioOptions, onnxAudio } from './onnx-audio.ts'
export { type OnnxImageEncoder, type OnnxImageOptions, onnxImage } from './onnx-image.ts'

export { type PooledOptions, pooled } from './pooled.ts'
export { type PpOcrOptions, ppOcr, ppOcrSettingsSchema } from './pp-ocr.ts'

/** Families of image encoders that all take the same options. */
export const imageFamilies = { clip, openclip, siglip, vit, dinov2, dinov3, convnext, eva } as const

export type { Siglip2Options } from './siglip2.ts'
export type { SoundEncoder } from './sound-encoder.ts'
export type { SoundLayout } from './sound-layout.ts'
export { type SpeechEmbeddingOptions, speechEmbedding } from './speech-embedding.ts'
export type { TiledOptions } from './tiled.ts'
export { clip, concat, convnext, dinov2, dinov3, eva, openclip, siglip, siglip2, tiled, vit }

/** Families of sound encoders that all take the same options. */
export const soundFamilies = { whisper, wav2vec2, hubert, wavlm, ast, clap, imagebindAudio, beats } as const
export { ast, beats, clap, hubert, imagebindAudio, wav2vec2, wavlm, whisper }

/** By the name under which a saved model remembers its encoder. */
export const encoders = {
  onnxImage,
  mobilenetV2,
  ...imageFamilies,
  siglip2,
  ppOcr,
  concat,
  tiled,
  onnxAudio,
  speechEmbedding,
  ...soundFamilies,
  pooled,
  frames,
} as const
