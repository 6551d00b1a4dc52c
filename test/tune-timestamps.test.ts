/** Films with their times as text between the frames: the same tokens in answers and in training. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type FramesOptions, frames } from '../encoders/frames.ts'
import { mlp } from '../projectors/mlp.ts'
import { stackedMlp } from '../projectors/stacked-mlp.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import type { DatasetSource, Part, Sample } from '../src/model/contracts.ts'
import { withTexts } from '../src/model/media-features.ts'
import { localReader } from '../src/model/media-reader.ts'
import { compose, type MultimodalModel } from '../src/model/multimodal-model.ts'
import { labelSpans, withMediaLengths } from '../src/text/label-spans.ts'
import { collate } from '../src/training/batch.ts'
import { tune } from '../src/training/tune.ts'
import { openEncoder, writeLanguageModel } from './tune-tiny-pair.ts'

let root: string
let llm: LanguageModel
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-timestamps-'))
  await writeLanguageModel(join(root, 'llm'), 0, 512)
  llm = await loadLanguageModel(join(root, 'llm'), { device: 'cpu', threads: 1 })
})
afterAll(async () => {
  await llm?.dispose()
  await rm(root, { recursive: true, force: true })
})

/** Two frames a second, from 0.25 s on; names say how many. */
const reader = {
  ...localReader,
  video: async (source: string | Uint8Array) => {
    const count = Number(String(source).split(' ')[0])
    const frame = (value: number) => ({ width: 16, height: 16, data: new Uint8Array(768).fill(value) })
    return {
      frames: Array.from({ length: count }, (_, index) => frame(index * 40)),
      timesSeconds: Array.from({ length: count }, (_, index) => 0.25 + index / 2),
      endSeconds: 0.25 + count / 2,
    }
  },
}

async function open(options: FramesOptions, projector = mlp({ depth: 1 })): Promise<MultimodalModel> {
  const encoder = frames(await openEncoder(join(root, 'encoder.onnx')), {
    sampling: { type: 'fps', fps: 2 },
    pooling: { rows: 1, columns: 2 },
    ...options,
  })
  return compose({ llm, video: { encoder, projector }, reader })
}

const question: readonly Part[] = [
  { type: 'video', source: '3 frames' },
  { type: 'text', text: '\nWhat colour is this?' },
]

/** Text as the model reads it, `#` for each token of a medium. */
const shown = (ids: ArrayLike<number>): string =>
  Array.from(ids).reduce<{ readonly text: string; readonly run: number[] }>(
    ({ text, run }, id, index) => {
      if (id >= 0 && index < ids.length - 1) return { text, run: [...run, id] }
      const whole = text + llm.tokenizer.decode(id >= 0 ? [...run, id] : run)
      return { text: id >= 0 ? whole : `${whole}#`, run: [] }
    },
    { text: '', run: [] },
  ).text

test('times stand before every frame, or behind them all', async () => {
  await using each = await open({ timestamps: 'each' })
  const [request] = await each.requests([[{ role: 'user', content: question }]])
  expect(shown(request?.ids ?? new Int32Array(0))).toContain('<0.3 seconds>##<0.8 seconds>##<1.3 seconds>##\nWhat')
  await using plain = await open({})
  plain.setParameters(each.parameters)
  const [without] = await plain.requests([[{ role: 'user', content: question }]])
  expect(request?.media).toEqual(without?.media)
  await using list = await open({ timestamps: 'list' })
  const [last] = await list.requests([[{ role: 'user', content: question }]])
  expect(shown(last?.ids ?? new Int32Array(0))).toContain(
    '######\nThe video lasts for 1.75 seconds, and 3 frames are uniformly sampled from it. These frames are located at 0.25s,0.75s,1.25s.Please answer the following questions related to this video.\nWhat',
  )
})

test('a step of training reads what an answer reads, and the media go where no text is', async () => {
  await using model = await open({ timestamps: 'each' })
  const sample: Sample = {
    id: '0',
    turns: [
      { role: 'user', content: question },
      { role: 'assistant', content: [{ type: 'text', text: 'It is red.' }] },
    ],
  }
  const planned = labelSpans(sample, { tokenizer: llm.tokenizer, template: llm.template, mediaTokens: (part) => model.plannedTokens(part) })
  const features = await model.encode(planned.media.map(({ part }) => part))
  const sized = withMediaLengths(
    planned,
    features.map(({ tokensOut }) => tokensOut),
    {},
  )
  const ids = withTexts(sized.ids, sized.media, features)
  const [request] = await model.requests([sample.turns.slice(0, 1)])
  expect(ids.slice(0, request?.ids.length)).toEqual(request?.ids)
  const { feeds } = collate([{ ...sized, ids, features }], { media: model.mediaPaths, headChunks: 1 })
  const media = Array.from(ids.keys()).filter((place) => (ids[place] ?? 0) < 0)
  expect(media).toHaveLength(6)
  expect(Array.from(feeds['video.rows']?.data ?? [], Number)).toEqual(media.flatMap((place) => [0, place]))
  expect(Array.from(feeds['video.places']?.data ?? [], Number)).toEqual([0, 1, 2, 3, 4, 5])
})

test('films of several lengths train together; a projector that joins frames is refused', async () => {
  await using model = await open({ timestamps: 'each' })
  const sample = (count: number): Sample => ({
    id: String(count),
    turns: [
      {
        role: 'user',
        content: [
          { type: 'video', source: `${count} frames` },
          { type: 'text', text: '\nWhat colour is this?' },
        ],
      },
      { role: 'assistant', content: [{ type: 'text', text: 'It is red.' }] },
    ],
  })
  const dataset: DatasetSource = {
    name: 'films',
    root,
    async *samples() {
      for (const count of [1, 2, 4]) yield sample(count)
    },
  }
  const losses: number[] = []
  for await (const { loss } of tune(model, dataset, {
    output: join(root, 'run'),
    epochs: 12,
    batchSize: 3,
    learningRate: 0.05,
    device: 'cpu',
  }))
    losses.push(loss)
  expect(losses).toHaveLength(12)
  expect(losses.at(-1)).toBeLessThan(losses[0] ?? 0)
  await using joined = await open({ timestamps: 'each' }, stackedMlp({ stack: 2 }))
  await expect(joined.encode([{ type: 'video', source: '3 frames' }])).rejects.toMatchObject({ code: 'PROJECTOR_LABELS' })
})
