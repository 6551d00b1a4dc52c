/** The embedded pair: MobileNetV2's encoder and the tiny language model, with the projector's recipe. */
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { mobilenetV2 } from '../../encoders/mobilenet-v2.ts'
import { pooledMlp } from '../../projectors/pooled-mlp.ts'
import { ModalignError } from '../../src/errors.ts'
import { loadLanguageModel } from '../../src/llm/language-model.ts'
import { compose, type MultimodalModel } from '../../src/model/multimodal-model.ts'
import type { TuneSettings } from '../../src/training/tune.ts'

/** A file of the pair; compiled, this module lies one folder deeper than its data: dist/examples/tiny. */
export function pairFile(name: string): string {
  const up = import.meta.url.endsWith('.ts') ? './' : '../../../examples/tiny/'
  const file = fileURLToPath(new URL(`${up}${name}`, import.meta.url))
  if (existsSync(file)) return file
  throw new ModalignError({
    code: 'PAIR_MISSING',
    file,
    got: 'no such file',
    expected: 'the pair that comes with the package',
    hint: 'install the package again',
  })
}

/** How the pair's projector is tuned. */
export const tuning = {
  epochs: 6,
  batchSize: 64,
  learningRate: 7e-4,
  warmupRatio: 0.05,
  optimizer: { name: 'adamw', weightDecay: 0.05 },
  checkpointEvery: 0,
} as const satisfies TuneSettings

/** The pair with an untrained projector. */
export async function composePair(seed = 0): Promise<MultimodalModel> {
  const llm = await loadLanguageModel(pairFile('llm'), { device: 'cpu' })
  const encoder = await mobilenetV2({ model: pairFile('encoder.onnx'), device: 'cpu', batch: 32 })
  return compose({ llm, image: { encoder, projector: pooledMlp({ rows: 2, columns: 2, depth: 1 }) }, seed })
}
