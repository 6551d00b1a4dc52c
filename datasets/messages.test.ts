import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { ModalignError } from '../src/errors.ts'
import type { DatasetSource, Sample } from '../src/model/contracts.ts'
import { skipWithout, testDataMissing } from '../test/skip.ts'
import { llava } from './llava.ts'
import { messages } from './messages.ts'
import { validateDataset } from './validate.ts'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-messages-'))
})
afterAll(() => rm(root, { recursive: true, force: true }))

async function read(source: DatasetSource): Promise<{ readonly samples: readonly Sample[]; readonly bad: readonly ModalignError[] }> {
  const samples: Sample[] = []
  const bad: ModalignError[] = []
  for await (const sample of source.samples({ onBad: (error) => bad.push(error) })) samples.push(sample)
  return { samples, bad }
}

async function fileOf(records: unknown): Promise<string> {
  const path = join(root, `${Math.random()}.json`)
  await writeFile(path, JSON.stringify(records))
  return path
}

/** What a turn holds, as text. */
const shown = (sample: Sample | undefined): readonly string[] =>
  (sample?.turns ?? []).map(({ role, content }) =>
    [role, ...content.map((part) => (part.type === 'text' ? part.text : `[${part.type} ${part.source}]`))].join('|'),
  )

const asks = (content: string) => ({ role: 'user', content })
const answers = (content: string) => ({ role: 'assistant', content })

test('media of every kind take the places of their placeholders, in whatever turn', async () => {
  const file = await fileOf([
    {
      id: 7,
      messages: [asks('<video><audio>What?<image>'), answers('a'), asks('and<image> <audio>?'), answers('<image> b')],
      images: ['1.jpg', '2.jpg'],
      audios: ['x/1.mp3', '2.wav'],
      videos: ['1.mp4'],
      rating: 3,
    },
    { messages: [asks('Does <audio> mean a tag?'), answers('yes')] },
  ])
  const { samples, bad } = await read(messages(file))
  expect(bad).toEqual([])
  expect(shown(samples[0])).toEqual([
    'user|[video 1.mp4]|[audio x/1.mp3]|What?|[image 1.jpg]',
    'assistant|a',
    'user|and|[image 2.jpg]| |[audio 2.wav]|?',
    'assistant|<image> b',
  ])
  expect(samples[0]?.origin?.fields).toEqual({ rating: 3 })
  expect(shown(samples[1])).toEqual(['user|Does <audio> mean a tag?', 'assistant|yes'])
})

test.each([
  [
    'a sound without a placeholder',
    { audios: ['a.wav'], messages: [asks('What?'), answers('a')] },
    '/audios',
    '1 (the record has 1 sound)',
  ],
  [
    'a placeholder too many',
    { videos: ['a.mp4'], messages: [asks('<video><video>'), answers('a')] },
    '/messages/0/content',
    '1 (the record has 1 video)',
  ],
  ['a picture that is missing', { messages: [asks('<image>'), answers('a')] }, '/messages/0/content', '0 (the record has 0 images)'],
])('%s is an error that names its place', async (_, record, field, expected) => {
  const { bad } = await read(messages(await fileOf([record])))
  expect(bad).toMatchObject([{ code: 'DATASET_PLACEHOLDER_COUNT', details: { record: 0, field, expected } }])
})

test('wrong types and the other format are named', async () => {
  const file = await fileOf([
    { audios: [7], messages: [asks('<audio>'), answers('a')] },
    { videos: ['../a.mp4'], messages: [asks('<video>'), answers('a')] },
    { conversations: [{ from: 'human', value: 'Hi' }] },
  ])
  const { bad } = await read(messages(file))
  expect(bad.map(({ code, details }) => [code, details.field, details.hint])).toEqual([
    ['DATASET_AUDIO_TYPE', '/audios/0', undefined],
    ['PATH_ESCAPE', '/videos/0', 'it climbs out of a folder'],
    ['DATASET_CONVERSATIONS', '/messages', 'the record has "conversations": this is another format'],
  ])
})

test('LLaVA records have sounds and videos too; a video may stand where <image> says', async () => {
  const talk = (value: string) => [
    { from: 'human', value },
    { from: 'gpt', value: 'a' },
  ]
  const file = await fileOf([
    { audio: 'a.wav', conversations: talk('<audio>\nWhat?') },
    { video: 'a.mp4', image: [], conversations: talk('<image>\nWhat?') },
    { video: 'a.mp4', conversations: talk('<image>\nWhat?') },
    { video: 'a.mp4', image: 'b.png', conversations: talk('<image><video>') },
  ])
  const { samples, bad } = await read(llava(file))
  expect(bad).toEqual([])
  expect(samples.map((sample) => shown(sample)[0])).toEqual([
    'user|[audio a.wav]|\nWhat?',
    'user|[video a.mp4]|\nWhat?',
    'user|[video a.mp4]|\nWhat?',
    'user|[image b.png]|[video a.mp4]',
  ])
})

skipWithout(process.env.MODALIGN_TEST_DATA === undefined ? testDataMissing : undefined).describe('the real records', () => {
  test.each([
    ['mllm_demo', 6, 'image', 8],
    ['mllm_audio_demo', 3, 'audio', 3],
    ['mllm_video_demo', 3, 'video', 3],
    ['mllm_video_audio_demo', 3, 'video', 6],
  ] as const)('%s', async (name, count, modality, media) => {
    const source = messages(join(process.env.MODALIGN_TEST_DATA ?? '', 'records', `${name}.json`))
    const { samples, bad } = await read(source)
    expect(bad).toEqual([])
    expect(samples).toHaveLength(count)
    const parts = samples.flatMap(({ turns }) => turns.flatMap(({ content }) => content.filter(({ type }) => type !== 'text')))
    expect(parts).toHaveLength(media)
    expect(parts.some(({ type }) => type === modality)).toBe(true)
    expect((await validateDataset(source)).problems).toEqual([])
  })
})

describe('the source', () => {
  test('takes its name and root from the file unless told', () => {
    expect(messages('data/talk.json')).toMatchObject({ name: 'talk', root: 'data', path: 'data/talk.json' })
    expect(messages('data/talk.json', { name: 'x', root: 'media' })).toMatchObject({ name: 'x', root: 'media' })
  })
})
