/**
 * `modalign`: compose a frozen encoder, a projector and a language model; tune, talk, caption and save. This file and the command line are the only places that know
 * the catalogues; everything below takes them as arguments.
 */
import { projectors } from '../projectors/index.ts'
import { encoderCatalogue } from './cli/catalogues.ts'
import type { MultimodalModel } from './model/multimodal-model.ts'
import { type Catalogues, type LoadOptions, loadModel } from './model/saved-model.ts'

export { type ErrorData, type ErrorDetails, errorData, ModalignError, renderError } from './errors.ts'
export type { Trainables, TrainableValue } from './graph/parameters.ts'
export type { HttpAccess } from './io/guarded-fetch.ts'
export {
  type CaptionFormat,
  type CaptionItem,
  type CaptionJobOptions,
  type CaptionOutcome,
  type CaptionOutput,
  type CaptionProgress,
  type CaptionRow,
  type CaptionSummary,
  captionJob,
} from './jobs/caption.ts'
export { type EncodeJobOptions, type EncodeProgress, type EncodeSummary, encodeJob } from './jobs/encode.ts'
export { type InputItem, type InputOptions, type Inputs, imageExtensions, inputItems } from './jobs/inputs.ts'
export { type AdaptedLanguageModel, type AdaptOptions, adapt } from './llm/adapters/adapt.ts'
export { loadAdapter, mergeAdapters, saveAdapter, unmergeAdapters } from './llm/adapters/adapter-files.ts'
export type { AdapterOptions, AdapterSettings } from './llm/adapters/settings.ts'
export type { Decoder } from './llm/decoder.ts'
export {
  type Beam,
  type EndEvent,
  type FinishReason,
  type GenerationEvent,
  type GenerationOptions,
  type GenerationRequest,
  generationOptionsSchema,
  type ScoredChoice,
  type TokenEvent,
} from './llm/generation/generate-tokens.ts'
export type { GeneratorOptions, KeyedRequest, TextGenerator } from './llm/generation/generator.ts'
export { type LanguageModel, type LanguageModelOptions, loadLanguageModel } from './llm/language-model.ts'
export { type AudioNote, type DecodeAudioOptions, type DecodedAudioFile, decodeAudio } from './media/audio.ts'
export { type AudioLimits, defaultAudioLimits, type Span } from './media/audio-limits.ts'
export {
  createImageDecoder,
  type ImageDecoder,
  type ImageDecoderOptions,
} from './media/child-decoder.ts'
export { decodeDataUrl } from './media/data-url.ts'
export { type FrameSampling, type Shortage, type UniformRule, uniformIndices } from './media/frame-sampling.ts'
export { type DecodedImageFile, type DecodeImageOptions, decodeImage } from './media/image.ts'
export { defaultImageLimits, type ImageLimits } from './media/image-limits.ts'
export { imageSize } from './media/image-size.ts'
export { clapLogMel, kaldiFbank, type LogMel, logMel, whisperLogMel } from './media/log-mel.ts'
export { logMelGraph, lowerLogMel } from './media/log-mel-graph.ts'
export { createMediaDecoder, type MediaDecoder, type MediaDecoderOptions } from './media/media-decoder.ts'
export { type ImagePreprocessing, preprocessImage } from './media/preprocess.ts'
export { parsePreprocessorConfig, readPreprocessorConfig } from './media/preprocessor-config.ts'
export { type ResampleOptions, resample } from './media/resample.ts'
export { type MediaInput, readMedia, type SourceOptions } from './media/source.ts'
export { remapSpan, type ShownSpan, spanSteps, type WindowSpan, windowSpans } from './media/time-spans.ts'
export {
  type DecodedVideoFile,
  type DecodeVideoOptions,
  decodeVideo,
  type VideoFrame,
  type VideoFramesOptions,
  videoFrames,
} from './media/video.ts'
export { defaultVideoLimits, type VideoLimits } from './media/video-limits.ts'
export { type Box, remapBox, type View, type ViewBox, viewsOf } from './media/views.ts'
export { parseAudioPreprocessorConfig } from './media/waveform-config.ts'
export { readAudioPreprocessorConfig } from './media/waveform-config-file.ts'
export { type AudioPreprocessing, preprocessAudio } from './media/waveform-preprocess.ts'
export type { Branch, Branches } from './model/branches.ts'
export type * from './model/contracts.ts'
export type { MediumFeatures } from './model/media-features.ts'
export { decodingReader, localReader, type MediaReader, type ReadAudioOptions, type ReadOptions } from './model/media-reader.ts'
export {
  type CaptionOptions,
  type ChatOptions,
  type ComposeOptions,
  compose,
  MultimodalModel,
} from './model/multimodal-model.ts'
export { defineProjector, oneGrid, onlyFeatures, type ProjectorFamily } from './model/projector.ts'
export { type Catalogues, type LoadOptions, loadModel, type ModelManifest, readManifest, saveModel } from './model/saved-model.ts'
export { gridTokens, imageGrid } from './model/token-grid.ts'
export { type AdaptEncoderOptions, adaptEncoder } from './model/trained-encoder.ts'
export { type LoweredModel, type LowerRequest, lower } from './onnx/lower.ts'
export { type DeviceDiagnosis, type Diagnosis, diagnose } from './runtime/doctor.ts'
export { createSession } from './runtime/node.ts'
export { type ProfiledNode, profileRun, providerNames, readProfile } from './runtime/profile.ts'
export type {
  CreateSession,
  Device,
  DeviceRequest,
  ModelSource,
  PassedOver,
  RunOptions,
  Session,
  SessionOptions,
  TensorDescription,
} from './runtime/session.ts'
export { bytesPerElement, type DataType, elementCount, float32Tensor, int64Tensor, type NamedTensors, type TensorValue } from './tensors.ts'
export { type ChatTemplate, createChatTemplate, type RenderOptions, type RichMessage } from './text/chat-template.ts'
export { type LabelledIds, labelSpans, type PromptIds, renderPrompt } from './text/label-spans.ts'
export { loadChatTemplate, loadTokenizer } from './text/model-folder.ts'
export { renderPreview } from './text/preview.ts'
export { createTokenizer, type Tokenizer } from './text/tokenizer.ts'
export {
  type FeatureDtype,
  type FeatureKey,
  type FeatureStore,
  type FeatureStoreCounts,
  type FeatureStoreOptions,
  openFeatureStore,
  type StoredFeatures,
} from './training/feature-store.ts'
export { FeatureMemory, type FeatureMemoryOptions } from './training/features.ts'
export { type LossCurveOptions, type LossPoint, renderLossCurve } from './training/loss-curve.ts'
export { lossCurvePng, writeLossCurve } from './training/loss-curve-files.ts'
export { type RunEvent, type RunListener, readRunLog, type StepMetrics } from './training/run-log.ts'
export { type TuneOptions, type TuneSettings, type TuneSummary, tune, tuneOptionsSchema } from './training/tune.ts'
export { type Checkpoint, openCheckpoint } from './weights/checkpoint.ts'
export { openSafetensors, type SafetensorsFile, writeSafetensors } from './weights/safetensors.ts'

/**
 * Loads a model that `saveModel` or `tune` wrote, with the encoder and language model that its manifest names.
 *
 * @param options `encoders` and `projectors` of your own go beside those of this package and win over them
 * @throws what {@link loadModel} throws
 * @example
 * await using model = await load('runs/first/model')
 * for await (const text of model.chat([{ role: 'user', content: [{ type: 'image', source: 'cat.jpg' }, { type: 'text', text: '\nWhat is this?' }] }])) process.stdout.write(text)
 */
export async function load(folder: string, options: LoadOptions & Partial<Catalogues> = {}): Promise<MultimodalModel> {
  const { encoders: ownEncoders, projectors: ownProjectors, ...rest } = options
  return loadModel(folder, { encoders: { ...encoderCatalogue(), ...ownEncoders }, projectors: { ...projectors, ...ownProjectors } }, rest)
}
export { type DownloadOptions, type DownloadProgress, resolveModel } from './weights/hub/resolve-model.ts'
