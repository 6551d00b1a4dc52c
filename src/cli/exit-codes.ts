/** What the process says to the one that started it. One home for the mapping from error codes. */
import type { ErrorData } from '../errors.ts'

export const exitCodes = {
  ok: 0,
  /** Finished, but more items were skipped than `--max-bad` allows. */
  skipped: 1,
  /** The command line, a run file or the choice of models is wrong. */
  usage: 2,
  /** Pictures, sounds or records that cannot be used. */
  data: 3,
  /** Disk, permissions, memory, devices, missing programs. */
  environment: 4,
  /** A model, checkpoint or result file is damaged, or is not what it claims to be. */
  artefact: 5,
  /** A defect of this program. */
  internal: 70,
  /** SIGINT. */
  interrupted: 130,
  /** SIGTERM. */
  terminated: 143,
} as const
export type ExitCode = (typeof exitCodes)[keyof typeof exitCodes]

/** By the whole code, or by its domain (`IMAGE_` for all that begin so). The longest that fits decides. */
const byCode: ReadonlyMap<string, ExitCode> = new Map<string, ExitCode>([
  ['ABORTED', exitCodes.interrupted],
  ['INTERNAL', exitCodes.internal],

  ['CLI_', exitCodes.usage],
  ['CONFIG_', exitCodes.usage],
  ['MODULE_', exitCodes.usage],
  ['TUNE_', exitCodes.usage],
  ['OPTIMIZER_', exitCodes.usage],
  ['SCHEDULE_', exitCodes.usage],
  ['SAMPLER_', exitCodes.usage],
  ['SEED_', exitCodes.usage],
  ['GENERATION_', exitCodes.usage],
  ['PROJECTOR_', exitCodes.usage],
  // Graphs are written by projectors; those of this package are tested, so it is the user's own module that meets these.
  ['GRAPH_', exitCodes.usage],
  ['ENCODER_', exitCodes.usage],
  ['PREPROCESSING_', exitCodes.usage],
  ['GLOB_', exitCodes.usage],
  ['JOB_', exitCodes.usage],
  ['OUTPUT_', exitCodes.usage],
  ['INPUT_EMPTY', exitCodes.usage],
  ['RUNTIME_OPTIONS', exitCodes.usage],
  ['RUN_LOG_EXISTS', exitCodes.usage],
  ['MODEL_', exitCodes.usage],
  ['FILE_MISSING', exitCodes.usage],
  ['FILE_NOT_REGULAR', exitCodes.usage],
  ['FILE_EXISTS', exitCodes.usage],
  ['PATH_', exitCodes.usage],
  ['URL_', exitCodes.usage],
  ['HUB_', exitCodes.usage],
  ['ADAPTER_', exitCodes.usage],
  ['DATASET_ROOT', exitCodes.usage],
  // A run whose numbers overflow: its learning rate is what to change.
  ['METRIC_NOT_FINITE', exitCodes.usage],
  ['GRADIENT_NOT_FINITE', exitCodes.usage],
  ['TRAINING_', exitCodes.usage],

  ['IMAGE_', exitCodes.data],
  ['AUDIO_', exitCodes.data],
  ['VIDEO_', exitCodes.data],
  ['MEDIA_', exitCodes.data],
  ['FFMPEG_', exitCodes.data],
  ['FEATURES_', exitCodes.data],
  ['FEATURES_NOT_FROZEN', exitCodes.usage],
  ['SOUND_', exitCodes.data],
  ['SOURCE_', exitCodes.data],
  ['DATASET_', exitCodes.data],
  ['DATA_', exitCodes.data],
  ['JSON_', exitCodes.data],
  ['JSONL_', exitCodes.data],
  ['INPUT_', exitCodes.data],
  ['JOB_MOSTLY_BAD', exitCodes.data],
  ['JOB_ITEM_TWICE', exitCodes.data],
  ['JOB_ID_NOT_A_PATH', exitCodes.data],
  ['TOKENIZER_TEXT_TOO_LONG', exitCodes.data],
  ['BATCH_', exitCodes.data],

  ['DISK_', exitCodes.environment],
  ['FEATURE_STORE_', exitCodes.environment],
  ['FILE_', exitCodes.environment],
  ['OUTPUT_LOCKED', exitCodes.environment],
  ['SHARED_ROOM_', exitCodes.environment],
  ['FFMPEG_MISSING', exitCodes.environment],
  ['IMAGE_DECODER_START', exitCodes.environment],
  ['DEPENDENCY_', exitCodes.environment],
  ['DEVICE_', exitCodes.environment],
  ['RUNTIME_DEVICE_UNAVAILABLE', exitCodes.environment],
  ['RUNTIME_OUT_OF_MEMORY', exitCodes.environment],
  ['RUNTIME_WORKER_DIED', exitCodes.environment],
  ['ENCODER_MISSING', exitCodes.environment],
  ['EMBEDDED_MISSING', exitCodes.environment],
  ['PAIR_MISSING', exitCodes.environment],
  ['HTTP_', exitCodes.environment],
  ['HUB_UNAVAILABLE', exitCodes.environment],

  ['HUB_LISTING', exitCodes.artefact],
  ['HTTP_CHECKSUM', exitCodes.artefact],
  ['ONNX_', exitCodes.artefact],
  ['SAFETENSORS_', exitCodes.artefact],
  ['GGUF_', exitCodes.artefact],
  ['CHECKPOINT_', exitCodes.artefact],
  ['TENSOR_', exitCodes.artefact],
  ['WEIGHT_', exitCodes.artefact],
  ['WEIGHTS_', exitCodes.artefact],
  ['FLOAT16_', exitCodes.artefact],
  ['LLM_', exitCodes.artefact],
  ['TOKENIZER_', exitCodes.artefact],
  ['TEMPLATE_', exitCodes.artefact],
  ['MODEL_MANIFEST', exitCodes.artefact],
  ['MODEL_PARAMETERS', exitCodes.artefact],
  ['RUNTIME_MODEL_INVALID', exitCodes.artefact],
  ['RUNTIME_MODEL_TYPE', exitCodes.artefact],
  ['RUNTIME_EXTERNAL_', exitCodes.artefact],
  ['ENCODER_NOT_FINITE', exitCodes.artefact],
  ['RUN_LOG_', exitCodes.artefact],
  ['JOB_ROW_', exitCodes.artefact],
  ['JOB_SPEC_MALFORMED', exitCodes.artefact],
  ['FILE_CHANGED', exitCodes.artefact],

  ['LOSS_CURVE_', exitCodes.internal],
  ['FEATURES_', exitCodes.internal],
  ['RUNTIME_', exitCodes.internal],
  ['DECODER_DISPOSED', exitCodes.internal],
])

/**
 * The exit code for an error; undefined for a code that nobody has thought of, which a test forbids.
 *
 * @example
 * exitCodeOf({ code: 'IMAGE_EMPTY' }) // 3
 */
export function exitCodeOf({ code, record }: Pick<ErrorData, 'code' | 'record'>): ExitCode | undefined {
  // A path that the user named is a matter of the command line; one that a record names, of the data.
  if (record !== undefined && /^(FILE_MISSING|FILE_NOT_REGULAR|PATH_)/.test(code)) return exitCodes.data
  const whole = byCode.get(code)
  if (whole !== undefined) return whole
  let best: { readonly length: number; readonly exit: ExitCode } | undefined
  for (const [domain, exit] of byCode) {
    if (domain.endsWith('_') && code.startsWith(domain) && domain.length > (best?.length ?? 0)) best = { length: domain.length, exit }
  }
  return best?.exit
}
