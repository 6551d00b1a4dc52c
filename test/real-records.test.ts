/** The real multimodal records, unchanged, through decoding, preprocessing, projectors and a training step. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect } from 'vitest'
import { messages } from '../datasets/messages.ts'
import { frames } from '../encoders/frames.ts'
import { mobilenetV2 } from '../encoders/mobilenet-v2.ts'
import { whisper } from '../encoders/whisper.ts'
import { mlp } from '../projectors/mlp.ts'
import { stackedMlp } from '../projectors/stacked-mlp.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import { findFfmpeg } from '../src/media/ffmpeg.ts'
import { compose, type MultimodalModel } from '../src/model/multimodal-model.ts'
import type { StepMetrics } from '../src/training/run-log.ts'
import { tune } from '../src/training/tune.ts'
import { longOnly, skipWithout, testDataMissing } from './skip.ts'
import { writeLanguageModel } from './tune-tiny-pair.ts'

const data = process.env.MODALIGN_TEST_DATA ?? ''
const missing = data === '' ? testDataMissing : process.env.MODALIGN_LONG === '1' ? undefined : longOnly

const ffmpegMissing = await findFfmpeg().then(
  () => undefined,
  () => 'ffmpeg is not installed',
)

/** Of each projector here. */
const weights = ['0.bias', '0.weight', '2.bias', '2.weight']

skipWithout(missing).describe('the real records', () => {
  let root: string
  let llm: LanguageModel
  let model: MultimodalModel

  beforeAll(async () => {
    root = await mkdtemp(join(tmpdir(), 'modalign-records-'))
    await writeLanguageModel(join(root, 'llm'), 0, 2048)
    llm = await loadLanguageModel(join(root, 'llm'), { device: 'cpu' })
    const mobilenet = () => mobilenetV2({ device: 'cpu' })
    model = await compose({
      llm,
      image: { encoder: await mobilenet(), projector: mlp() },
      audio: { encoder: await whisper({ model: join(data, 'whisper_base_encoder'), device: 'cpu' }), projector: stackedMlp({ stack: 8 }) },
      video: {
        encoder: frames(await mobilenet(), { sampling: { type: 'uniform', frames: 4 }, pooling: { rows: 3, columns: 3 } }),
        projector: mlp(),
      },
    })
  }, 600_000)
  afterAll(async () => {
    await model?.dispose()
    await llm?.dispose()
    await rm(root, { recursive: true, force: true })
  })

  const ffmpeg = skipWithout(ffmpegMissing)
  // Records, the fewest tokens that their media take (49 a picture, 36 a video, 6 a second of sound), and the projectors that they train.
  for (const [name, samples, mediaTokens, trained] of [
    ['mllm_demo', 6, 8 * 49, ['image']],
    ['mllm_audio_demo', 3, 3 * 6, ['audio']],
    ['mllm_video_demo', 3, 3 * 36, ['video']],
    ['mllm_video_audio_demo', 3, 3 * (36 + 6), ['audio', 'video']],
  ] as const) {
    ffmpeg.test(
      name,
      async () => {
        const rows: StepMetrics[] = []
        const output = join(root, name)
        const before = Object.entries(model.parameters).map(([key, { data }]) => ({ key, data: data.slice() }))
        const run = tune(model, messages(join(data, 'records', `${name}.json`)), {
          output,
          batchSize: 8,
          epochs: 3,
          learningRate: 1e-2,
          warmupRatio: 0,
        })
        let next = await run.next()
        for (; next.done !== true; next = await run.next()) rows.push(next.value)
        expect(next.value).toMatchObject({ samples, badRecords: 0, steps: 3 })
        expect(rows[0]?.tokens).toBeGreaterThan(mediaTokens)
        expect(rows[0]?.gradientNorm).toBeGreaterThan(0)
        expect(rows[2]?.loss).toBeLessThan(rows[0]?.loss ?? 0)
        const moved = before.filter(({ key, data }) => model.parameters[key]?.data.some((value, place) => value !== data[place]))
        expect(moved.map(({ key }) => key).sort()).toEqual(trained.flatMap((path) => weights.map((weight) => `${path}.${weight}`)))
      },
      600_000,
    )
  }
})
