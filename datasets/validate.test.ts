import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { llava } from './llava.ts'
import { validateDataset } from './validate.ts'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-validate-'))
  await mkdir(join(folder, 'images', 'coco', 'folder.jpg'), { recursive: true })
  await writeFile(join(folder, 'images', 'coco', 'ok.jpg'), 'x')
  await writeFile(join(folder, 'images', 'coco', 'empty.jpg'), '')
  await writeFile(join(folder, 'images', 'coco', 'CASE.JPG'), 'x')
})
afterAll(() => rm(folder, { recursive: true }))

const conversations = [
  { from: 'human', value: '<image>\nHi' },
  { from: 'gpt', value: 'a' },
]
const textOnly = { conversations: conversations.map((turn) => ({ ...turn, value: 'Hi' })) }

async function write(name: string, records: unknown): Promise<string> {
  const path = join(folder, name)
  await writeFile(path, typeof records === 'string' ? records : JSON.stringify(records))
  return path
}

describe('validateDataset', () => {
  test('reports every problem in file order, grouped by code and by folder', async () => {
    const path = await write('mixed.json', [
      { id: 'a', image: 'coco/ok.jpg', conversations },
      { id: 'b', image: 'coco/empty.jpg', conversations },
      { id: 'c', image: 'coco/case.jpg', conversations },
      { id: 'a', image: 'coco/ok.jpg', conversations: [] },
      { id: 'd', image: 'ocr_vqa/images/1.jpg', conversations },
      { id: 'e', image: 'ocr_vqa/images/2.jpg', conversations },
      { id: 'f', image: 'ocr_vqa/images/2.jpg', conversations },
      { id: 'a', image: 'coco/folder.jpg', conversations, model: '' },
      { id: 'a', ...textOnly, model: '' },
    ])
    const report = await validateDataset(llava(path, { root: join(folder, 'images') }), { concurrency: 2 })
    expect(report.problems.map(({ code, record, hint }) => [code, record, hint])).toEqual([
      ['IMAGE_EMPTY', 1, undefined],
      ['FILE_MISSING', 2, 'did you mean coco/CASE.JPG'],
      ['DATASET_CONVERSATIONS', 3, undefined],
      ['FILE_MISSING', 4, 'check the path'],
      ['FILE_MISSING', 5, 'check the path'],
      ['FILE_MISSING', 6, 'check the path'],
      ['FILE_NOT_REGULAR', 7, undefined],
    ])
    expect(report.problems.every(({ file }) => file === path)).toBe(true)
    expect(report).toMatchObject({
      records: 9,
      good: 2,
      textOnly: 1,
      turns: 16,
      files: 6,
      complete: true,
      problemCount: 7,
      media: { image: 7, audio: 0, video: 0 },
    })
    expect(report.byCode.map(({ code, count }) => [code, count])).toEqual([
      ['FILE_MISSING', 4],
      ['IMAGE_EMPTY', 1],
      ['DATASET_CONVERSATIONS', 1],
      ['FILE_NOT_REGULAR', 1],
    ])
    expect(report.byDirectory).toEqual([
      { directory: 'ocr_vqa/images', code: 'FILE_MISSING', count: 2 },
      { directory: 'coco', code: 'IMAGE_EMPTY', count: 1 },
      { directory: 'coco', code: 'FILE_MISSING', count: 1 },
      { directory: 'coco', code: 'FILE_NOT_REGULAR', count: 1 },
    ])
    expect(report.warnings.map(({ code, count, first }) => [code, count, first.record])).toEqual([
      ['DATASET_DUPLICATE_ID', 2, 7],
      ['DATASET_UNUSED_FIELD', 2, 7],
    ])
  })

  test('the limit bounds what is told, not what is counted', async () => {
    const path = await write(
      'many.json',
      Array.from({ length: 500 }, (_, i) => ({ image: `gone/${i}.jpg`, conversations })),
    )
    const report = await validateDataset(llava(path, { root: folder }), { limit: 3 })
    expect(report.problems.map(({ record }) => record)).toEqual([0, 1, 2])
    expect(report).toMatchObject({ problemCount: 500, records: 500, good: 0, byDirectory: [{ directory: 'gone', count: 500 }] })
  })

  test('without looking at files', async () => {
    const path = await write('nofiles.json', [{ image: 'gone.jpg', conversations }])
    expect(await validateDataset(llava(path), { checkFiles: false })).toMatchObject({ problemCount: 0, files: 0, good: 1 })
  })

  test('a file that cannot be read to its end is said to be incomplete', async () => {
    const path = await write('broken.json', `[${JSON.stringify(textOnly)}, {"a": [1}, ${JSON.stringify(textOnly)}]`)
    expect(await validateDataset(llava(path))).toMatchObject({
      complete: false,
      records: 2,
      good: 1,
      problems: [{ code: 'JSON_SYNTAX', record: 1 }],
    })
    expect(await validateDataset(llava(join(folder, 'absent.json')))).toMatchObject({
      complete: false,
      records: 0,
      problems: [{ code: 'FILE_MISSING' }],
    })
  })

  test('aborting throws', async () => {
    const path = await write('abort.json', [textOnly])
    await expect(validateDataset(llava(path), { signal: AbortSignal.abort() })).rejects.toMatchObject({ name: 'AbortError' })
  })
})
