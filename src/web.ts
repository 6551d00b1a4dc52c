/**
 * `modalign/web`: what runs in a browser tab. Sessions on onnxruntime-web, the graph API and its lowering, the training step, tokenizer, chat template and label
 * spans, weights from memory or a server. No module of Node is reachable from here, which a test of the bundle proves. Projectors come from `modalign/projectors`,
 * which is as portable.
 */
export { type ErrorData, type ErrorDetails, errorData, ModalignError, renderError } from './errors.ts'
export * as graph from './graph/index.ts'
export { initialValues } from './graph/initial-values.ts'
export type { Trainables, TrainableValue } from './graph/parameters.ts'
export { type HttpSourceOptions, httpSource } from './io/http-source.ts'
export { type ByteSource, memorySource } from './io/memory-source.ts'
export { memoryWeights } from './llm/checkpoint-weights.ts'
export type { DecodeContext, Decoded, Decoder, WeightLookup } from './llm/decoder.ts'
export { buildDecoder, families } from './llm/families/index.ts'
export { type LlamaConfig, llama, llamaConfig } from './llm/families/llama.ts'
export {
  type GenerationEvent,
  type GenerationOptions,
  type GeneratorModel,
  generateTokens,
  generationOptionsSchema,
} from './llm/generation/generate-tokens.ts'
export { generationGraph } from './llm/generation/graph.ts'
export type * from './model/contracts.ts'
export { defineProjector, onlyFeatures, type ProjectorFamily } from './model/projector.ts'
export type { MediaPath } from './model/splice.ts'
export { gridTokens, imageGrid } from './model/token-grid.ts'
export { decodeModel, encodeModel } from './onnx/codec.ts'
export { type LoweredModel, type LowerRequest, lower } from './onnx/lower.ts'
export { checkModel, type PrecheckOptions, precheckModel } from './onnx/precheck.ts'
export { type ExposeOptions, exposeTensors, listTensors, type TensorListing } from './onnx/surgery.ts'
export { normals, type RandomKey, type RandomStream, randomStream, uniforms } from './random.ts'
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
export { createWebSession, type WebSessionOptions } from './runtime/web.ts'
export type { WasmPaths } from './runtime/web-session.ts'
export { bytesPerElement, type DataType, elementCount, float32Tensor, int64Tensor, type NamedTensors, type TensorValue } from './tensors.ts'
export { type ChatTemplate, type ChatTemplateFiles, createChatTemplate } from './text/chat-template.ts'
export { type LabelledIds, type LabelOptions, labelSpans, type PromptIds, type PromptOptions, renderPrompt } from './text/label-spans.ts'
export { renderPreview } from './text/preview.ts'
export { createTokenizer, type Tokenizer, type TokenizerFiles } from './text/tokenizer.ts'
export { type Batch, type BatchItem, type CollateOptions, collate } from './training/batch.ts'
export { type LossCurveOptions, type LossPoint, renderLossCurve } from './training/loss-curve.ts'
export { type AdamWOptions, adamw } from './training/optimizers/adamw.ts'
export { type OptimizerSpec, optimizerOf, optimizerSchema } from './training/optimizers/index.ts'
export type { Optimizer, OptimizerState } from './training/optimizers/optimizer.ts'
export { epochOf, type GroupedSamplerOptions, groupedSampler, type Sampler, type SamplerOptions, sampler } from './training/sampler.ts'
export { type Schedule, type ScheduleOptions, schedules, warmupStepsOf } from './training/schedules.ts'
export { gradientName, type StepGraph, type StepGraphRequest, stepGraph, stepInputs } from './training/step-graph.ts'
export { LocalTrainer, type LocalTrainerOptions, type Trainer, type TrainerSnapshot, type Update } from './training/trainer.ts'
export { toBfloat16, toFloat16, toFloat32 } from './weights/float16.ts'
export { readSafetensors, type SafetensorsFile, safetensorsBytes, type TensorToWrite } from './weights/safetensors-source.ts'
