/** Sound encoders built as graphs from a Hugging Face folder: the same functions serve a frozen session and a training step. */
import { createHash } from 'node:crypto'
import path from 'node:path'
import type { z } from 'zod'
import { ModalignError } from '../../src/errors.ts'
import type { Tensor } from '../../src/graph/tensor.ts'
import { fileSource } from '../../src/io/byte-source.ts'
import { fingerprint } from '../../src/io/fingerprint.ts'
import { checkpointWeights } from '../../src/llm/checkpoint-weights.ts'
import type { WeightLookup } from '../../src/llm/decoder.ts'
import { lower } from '../../src/onnx/lower.ts'
import { createSession } from '../../src/runtime/node.ts'
import type { DeviceRequest } from '../../src/runtime/session.ts'
import type { NamedTensors, TensorValue } from '../../src/tensors.ts'
import { readJson } from '../../src/text/model-folder.ts'
import { openCheckpoint } from '../../src/weights/checkpoint.ts'
import type { SoundModel } from '../sound-encoder.ts'

/** What a family gives: its layers as a graph. */
export interface SoundTower {
  readonly width: number
  /** Tokens at each step. Default 1. */
  readonly columns?: number
  /** The graph's inputs, fed with what `feeds` makes of the windows; the first axis counts the windows. */
  readonly inputs: readonly Tensor[]
  /** Such inputs -> float32 [windows, steps * columns, width], step by step. Weights come from anywhere: frozen, or with adapters. */
  forward(inputs: readonly Tensor[], weights: WeightLookup): Tensor
  /** Windows of one size, stacked, as `preprocess` gives them. */
  feeds(windows: TensorValue): NamedTensors
}

export interface EncoderFolder<C> {
  readonly config: C
  readonly weights: WeightLookup
  /** SHA-256 over config.json and the weights' fingerprints. */
  readonly hash: string
}

const largestConfigBytes = 1_048_576

/**
 * config.json and the weights of a Hugging Face folder.
 *
 * @throws {ModalignError} `ENCODER_CONFIG` (missing, or a field that the family cannot have), `CHECKPOINT_...`
 */
export async function openEncoderFolder<C>(folder: string, schema: z.ZodType<C>): Promise<EncoderFolder<C>> {
  const file = path.join(folder, 'config.json')
  const json = await readJson(file, largestConfigBytes)
  if (json === undefined)
    throw new ModalignError({ code: 'ENCODER_CONFIG', file, got: 'no such file', expected: 'a Hugging Face model folder' })
  const parsed = schema.safeParse(json)
  if (!parsed.success) {
    const [issue] = parsed.error.issues
    throw new ModalignError({
      code: 'ENCODER_CONFIG',
      file,
      field: `/${(issue?.path ?? []).join('/')}`,
      got: issue?.message,
      expected: 'a config of this family',
    })
  }
  const checkpoint = await openCheckpoint(folder)
  const hash = createHash('sha256').update(JSON.stringify(json))
  for (const weightsFile of new Set([...checkpoint.tensors.values()].map((tensor) => tensor.file)))
    hash.update(await fingerprint(await fileSource(weightsFile)))
  return { config: parsed.data, weights: checkpointWeights(checkpoint), hash: hash.digest('hex') }
}

/** A session over a tower's graph. @throws `WEIGHT_...`, `TENSOR_MISSING`, `RUNTIME_...` */
export async function openSoundTower(
  tower: SoundTower,
  weights: WeightLookup,
  { device = 'auto', threads }: { readonly device?: DeviceRequest | undefined; readonly threads?: number | undefined },
): Promise<SoundModel> {
  const { inputs } = tower
  const { bytes, externalRoot, externalData } = lower({ outputs: { features: tower.forward(inputs, weights) }, inputs })
  const session = await createSession(
    { bytes, ...(externalRoot !== undefined && { externalRoot }), ...(externalData !== undefined && { externalData }) },
    { device, ...(threads !== undefined && { threads }) },
  )
  return {
    device: session.device,
    async run(windows, _longer, signal) {
      const result = await session.run(tower.feeds(windows), signal === undefined ? {} : { signal })
      const value = result.features
      if (value?.dtype !== 'float32') throw new Error('internal: features are float32')
      const [count = 0, tokens = 0, width = 0] = value.dims
      const { columns = 1 } = tower
      return { windows: count, steps: tokens / columns, columns, width, data: value.data }
    },
    dispose: () => session.dispose(),
  }
}
