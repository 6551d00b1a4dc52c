import { appendFile, mkdir, mkdtemp, readdir, readFile, rm, stat, truncate, unlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { type ErrorData, ModalignError } from '../errors.ts'
import { crashNth, failNth } from '../io/fs-faults.ts'
import {
  type CaptionFormat,
  type CaptionItem,
  type CaptionJobOptions,
  type CaptionOutcome,
  type CaptionSummary,
  captionJob,
} from './caption.ts'

const long = process.env.MODALIGN_LONG === '1'
let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-caption-'))
})
afterEach(() => rm(folder, { recursive: true }))

const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  )
const notAnImage: ErrorData = { code: 'IMAGE_EMPTY', got: '0 bytes', expected: 'an image' }

async function* itemsOf(ids: readonly string[], sources = new Map<string, CaptionItem>()): AsyncGenerator<CaptionItem> {
  for (const id of ids) yield sources.get(id) ?? { id, source: `${id}.jpg` }
}
const numbered = (count: number) => Array.from({ length: count }, (_, i) => `item-${String(i).padStart(3, '0')}`)
const trap = 'a "quoted", caption\r\nof two lines, é 😀\u2028'

/** Ids that contain `bad` are bad; the caption depends on nothing but the item. */
async function describeItems(batch: readonly CaptionItem[]): Promise<readonly CaptionOutcome[]> {
  return batch.map(({ id }) => (id.includes('bad') ? { error: { ...notAnImage, file: id } } : { caption: `${id}: ${trap}` }))
}
function job(ids: readonly string[], options: Partial<CaptionJobOptions<CaptionItem>> = {}): Promise<CaptionSummary> {
  return captionJob({
    items: itemsOf(ids),
    caption: describeItems,
    output: { path: join(folder, 'out.jsonl'), format: 'jsonl' },
    spec: { prompt: 'Describe.', model: { name: 'tiny', fingerprint: 'abc' } },
    batchSize: 4,
    onBad: 'skip',
    ...options,
  })
}
const rows = async (name = 'out.jsonl'): Promise<{ id: string; caption: string | null; error: ErrorData | null }[]> =>
  (await readFile(join(folder, name), 'utf8'))
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line))
const doneIds = async () => (await rows()).map(({ id }) => id)

describe('rows', () => {
  test('one an item, in order, errors among them', async () => {
    const summary = await job(['a', 'bad-1', 'b'])
    expect(summary).toEqual({
      status: 'finished',
      total: 3,
      captioned: 2,
      bad: 1,
      resumed: 0,
      left: 0,
      missing: 0,
      missingIds: [],
      byCode: { IMAGE_EMPTY: 1 },
      tornBytes: 0,
    })
    expect(await readFile(join(folder, 'out.jsonl'), 'utf8')).toBe(
      [
        { id: 'a', source: 'a.jpg', caption: `a: ${trap}`, error: null },
        { id: 'bad-1', source: 'bad-1.jpg', caption: null, error: { ...notAnImage, file: 'bad-1' } },
        { id: 'b', source: 'b.jpg', caption: `b: ${trap}`, error: null },
      ]
        .map((row) => `${JSON.stringify(row)}\n`)
        .join(''),
    )
    expect((await readdir(folder)).sort()).toEqual(['out.jsonl', 'out.jsonl.job.json'])
    expect(JSON.parse(await readFile(join(folder, 'out.jsonl.job.json'), 'utf8'))).toEqual({
      version: 1,
      job: 'caption',
      spec: { format: 'jsonl', prompt: 'Describe.', model: { name: 'tiny', fingerprint: 'abc' } },
    })
  })

  test('CSV', async () => {
    await job(['a', 'bad-1'], { output: { path: join(folder, 'out.csv'), format: 'csv' } })
    expect(await readFile(join(folder, 'out.csv'), 'utf8')).toBe(
      `id,source,caption,error\r\na,a.jpg,"a: ${trap.replaceAll('"', '""')}",\r\nbad-1,bad-1.jpg,,"${JSON.stringify({ ...notAnImage, file: 'bad-1' }).replaceAll('"', '""')}"\r\n`,
    )
    const again = await job(['a', 'bad-1', 'b'], { output: { path: join(folder, 'out.csv'), format: 'csv' } })
    expect(again).toMatchObject({ captioned: 2, bad: 1, resumed: 2 })
  })

  test('text files, beside a log of the rows', async () => {
    const output = { path: join(folder, 'texts'), format: 'txt' } as const
    const ids = ['cats/1.jpg', 'cats/2.tar.gz', 'bad.png', 'dog']
    expect(await job(ids, { output })).toMatchObject({ captioned: 3, bad: 1 })
    expect((await readdir(join(folder, 'texts'), { recursive: true })).sort()).toEqual(['cats', 'cats/1.txt', 'cats/2.tar.txt', 'dog.txt'])
    expect(await readFile(join(folder, 'texts/cats/1.txt'), 'utf8')).toBe(`cats/1.jpg: ${trap}\n`)
    expect((await rows('texts.rows.jsonl')).map(({ id }) => id)).toEqual(ids)
    await unlink(join(folder, 'texts/dog.txt'))
    await writeFile(join(folder, 'texts/cats/1.txt'), 'edited by hand')
    expect(await job(ids, { output })).toMatchObject({ resumed: 4 })
    expect(await readFile(join(folder, 'texts/dog.txt'), 'utf8')).toBe(`dog: ${trap}\n`)
    expect(await readFile(join(folder, 'texts/cats/1.txt'), 'utf8')).toBe('edited by hand')
  })

  test('text files never replace somebody else’s, never leave the folder, never share a name', async () => {
    const output = { path: join(folder, 'texts'), format: 'txt' } as const
    await mkdir(join(folder, 'texts'))
    await writeFile(join(folder, 'texts/b.txt'), 'mine')
    expect(await failure(job(['a.jpg', 'b.jpg'], { output, batchSize: 1 }))).toMatchObject({
      code: 'JOB_OUTPUT_EXISTS',
      details: { file: join(folder, 'texts/b.txt') },
    })
    expect(await readFile(join(folder, 'texts/b.txt'), 'utf8')).toBe('mine')
    await unlink(join(folder, 'texts/b.txt'))
    expect(await failure(job(['a.jpg', 'a.png'], { output }))).toMatchObject({ code: 'JOB_OUTPUT_COLLISION' })
    for (const id of ['../x', '/x', 'a/../../x', 'a\\b', 'C:x', 'x\0', ''])
      expect(await failure(job(['a.jpg', id], { output }))).toMatchObject({ code: 'JOB_ID_NOT_A_PATH' })
    expect((await readdir(folder)).sort()).toEqual(['texts', 'texts.job.json', 'texts.rows.jsonl'])
  })

  test('items that are known to be bad never reach the model', async () => {
    const broken: CaptionItem = { id: 'line:2', source: 'list.jsonl', error: { code: 'JSONL_MALFORMED', line: 2 } }
    const asked: string[] = []
    await job([], {
      items: itemsOf(['a', 'line:2', 'b'], new Map([['line:2', broken]])),
      caption: (batch) => {
        asked.push(...batch.map(({ id }) => id))
        return describeItems(batch)
      },
    })
    expect(asked).toEqual(['a', 'b'])
    expect((await rows())[1]).toEqual({ id: 'line:2', source: 'list.jsonl', caption: null, error: { code: 'JSONL_MALFORMED', line: 2 } })
  })

  test('rows are there as soon as their batch is done', async () => {
    const lengths: number[] = []
    await job(numbered(10), {
      caption: async (batch) => {
        lengths.push((await rows()).length)
        return describeItems(batch)
      },
    })
    expect(lengths).toEqual([0, 4, 8])
  })

  test('an id twice ends the job; what was done is kept', async () => {
    expect(await failure(job(['a', 'b', 'c', 'd', 'a']))).toMatchObject({ code: 'JOB_ITEM_TWICE', details: { got: 'a' } })
    expect(await doneIds()).toEqual(['a', 'b', 'c', 'd'])
  })
})

describe('going on', () => {
  test.each([
    ['jsonl', 'out.jsonl'],
    ['csv', 'out.csv'],
  ] as const)('%s: cut anywhere, the end is the same as without the cut', async (format, name) => {
    const ids = ['a', 'bad-1', 'é "x"', 'b', 'c']
    const output = { path: join(folder, name), format }
    await job(ids, { output })
    const whole = await readFile(output.path)
    for (let length = 0; length < whole.length; length += long ? 1 : 5 + (length % 23)) {
      await truncate(output.path, length)
      const summary = await job(ids, { output })
      expect(await readFile(output.path)).toEqual(whole)
      expect(summary.captioned).toBe(4)
      expect(summary.resumed).toBeLessThan(5)
    }
    let calls = 0
    const summary = await job(ids, { output, caption: async () => Promise.reject(new Error(`call ${calls++}`)) })
    expect(summary).toMatchObject({ resumed: 5, captioned: 4, bad: 1, tornBytes: 0 })
    expect(calls).toBe(0)
    expect(await readFile(output.path)).toEqual(whole)
  })

  test('a torn row is reported', async () => {
    await job(['a'])
    await appendFile(join(folder, 'out.jsonl'), '{"id":"b')
    expect(await job(['a', 'b'])).toMatchObject({ tornBytes: 8, resumed: 1, captioned: 2 })
  })

  test('new items come in their place, rows of items that are gone are kept and counted', async () => {
    await job(['b', 'd', 'f'])
    const summary = await job(['a', 'b', 'c', 'bad-d', 'f', 'g'])
    expect(summary).toMatchObject({ status: 'finished', total: 6, captioned: 5, bad: 1, resumed: 2, missing: 1, missingIds: ['d'] })
    expect(await doneIds()).toEqual(['a', 'b', 'c', 'bad-d', 'f', 'g', 'd'])
    const fresh = await readFile(join(folder, 'out.jsonl'), 'utf8')
    expect(await job(['a', 'b', 'c', 'bad-d', 'f', 'g'])).toMatchObject({ resumed: 6 })
    expect(await readFile(join(folder, 'out.jsonl'), 'utf8')).toBe(fresh)
  })

  test('bad rows are kept once, and tried again on request', async () => {
    await job(['a', 'bad-1', 'b'])
    let calls = 0
    const fixed = async (batch: readonly CaptionItem[]) => {
      calls += batch.length
      return batch.map(({ id }) => ({ caption: id }))
    }
    expect(await job(['a', 'bad-1', 'b'], { caption: fixed })).toMatchObject({ bad: 1, resumed: 3 })
    expect(await job(['a', 'bad-1', 'b'], { caption: fixed, retryBad: true })).toMatchObject({ bad: 0, captioned: 3, resumed: 2 })
    expect(calls).toBe(1)
    expect(await doneIds()).toEqual(['a', 'bad-1', 'b'])
  })

  test('another job’s results are refused, with every difference', async () => {
    await job(['a'])
    const before = await readFile(join(folder, 'out.jsonl'), 'utf8')
    const error = await failure(job(['a', 'b'], { spec: { prompt: 'Name it.', model: { name: 'tiny', fingerprint: 'abc', width: 4 } } }))
    expect(error).toMatchObject({
      code: 'JOB_SPEC_CHANGED',
      details: {
        file: join(folder, 'out.jsonl.job.json'),
        field: '/model/width',
        hint: expect.stringContaining('/model/width was absent, now 4; /prompt was "Describe.", now "Name it."'),
      },
    })
    expect(await readFile(join(folder, 'out.jsonl'), 'utf8')).toBe(before)
    expect((await readdir(folder)).sort()).toEqual(['out.jsonl', 'out.jsonl.job.json'])
    expect(await job(['a', 'b'], { spec: { model: { fingerprint: 'abc', name: 'tiny' }, prompt: 'Describe.' } })).toMatchObject({
      resumed: 1,
    })
  })

  test.each([
    ['{"id":"a"}\n', 'JOB_ROW_MALFORMED'],
    ['{"id":"a","source":"","caption":null,"error":null}\n', 'JOB_ROW_MALFORMED'],
    ['nonsense\n', 'JSONL_MALFORMED'],
    ['{"id":"a","source":"","caption":"","error":null}\n{"id":"a","source":"","caption":"","error":null}\n', 'JOB_ROW_TWICE'],
  ])('a file that this job did not write is left alone: %s', async (text, code) => {
    await writeFile(join(folder, 'out.jsonl'), text)
    expect(await failure(job(['b']))).toMatchObject({ code: 'JOB_OUTPUT_EXISTS' })
    await unlink(join(folder, 'out.jsonl'))
    await job([])
    await writeFile(join(folder, 'out.jsonl'), text)
    expect(await failure(job(['b']))).toMatchObject({ code, details: { file: join(folder, 'out.jsonl') } })
    expect(await readFile(join(folder, 'out.jsonl'), 'utf8')).toBe(text)
  })

  test('outputs that cannot be are refused before any work', async () => {
    const never = async () => Promise.reject(new Error('called'))
    await mkdir(join(folder, 'taken'))
    expect(await failure(job(['a'], { caption: never, output: { path: join(folder, 'taken'), format: 'jsonl' } }))).toMatchObject({
      code: 'FILE_NOT_REGULAR',
    })
    await writeFile(join(folder, 'file'), '')
    expect(await failure(job(['a'], { caption: never, output: { path: join(folder, 'file/out'), format: 'jsonl' } }))).toBeInstanceOf(
      ModalignError,
    )
    expect(await failure(job(['a'], { caption: never, batchSize: 0 }))).toMatchObject({ code: 'JOB_BATCH_SIZE' })
    expect((await readdir(folder)).sort()).toEqual(['file', 'taken'])
  })

  test('two at once: the second is refused', async () => {
    let second: unknown
    await job(['a'], {
      caption: async (batch) => {
        second = await failure(job(['a']))
        return describeItems(batch)
      },
    })
    expect(second).toMatchObject({ code: 'OUTPUT_LOCKED' })
    expect(await doneIds()).toEqual(['a'])
  })
})

describe('bad items', () => {
  test('fail: ends with the first one’s error; the rows before it are kept, and it is met again', async () => {
    const ids = ['a', 'b', 'c', 'd', 'e', 'bad-1', 'f']
    expect(await failure(job(ids, { onBad: 'fail' }))).toMatchObject({ code: 'IMAGE_EMPTY', details: { file: 'bad-1' } })
    expect(await doneIds()).toEqual(['a', 'b', 'c', 'd', 'e'])
    expect(await failure(job(ids, { onBad: 'fail' }))).toMatchObject({ code: 'IMAGE_EMPTY' })
    await job(ids)
    expect(await doneIds()).toEqual(ids)
    expect(await failure(job(ids, { onBad: 'fail' }))).toMatchObject({ code: 'IMAGE_EMPTY', details: { file: 'bad-1' } })
  })

  const mostly = (bad: number, total: number) =>
    Array.from({ length: total }, (_, i) => (i % 2 === 1 && i < 2 * bad ? `bad-${i}` : `item-${i}`))

  test('half of the first 500 bad: the job stops at that item, and again after a restart', async () => {
    const error = await failure(job(mostly(250, 1000)))
    expect(error).toMatchObject({ code: 'JOB_MOSTLY_BAD', details: { got: '250 bad items among the first 500, 250 of them IMAGE_EMPTY' } })
    const whole = await readFile(join(folder, 'out.jsonl'))
    expect(await rows()).toHaveLength(500)
    await truncate(join(folder, 'out.jsonl'), 20_000)
    expect(await failure(job(mostly(250, 1000), { batchSize: 7 }))).toMatchObject({ code: 'JOB_MOSTLY_BAD' })
    expect(await readFile(join(folder, 'out.jsonl'))).toEqual(whole)
  })

  test('one fewer, or later ones, or a small input: the job goes on', async () => {
    expect(await job(mostly(249, 1000), { batchSize: 50 })).toMatchObject({ status: 'finished', bad: 249 })
    const late = { path: join(folder, 'late.jsonl'), format: 'jsonl' } as const
    expect(
      await job([...numbered(251), ...Array.from({ length: 400 }, (_, i) => `bad-${i}`)], { output: late, batchSize: 50 }),
    ).toMatchObject({ bad: 400 })
    expect(await job(['bad-1', 'bad-2'], { output: { path: join(folder, 'few.jsonl'), format: 'jsonl' } })).toMatchObject({
      status: 'finished',
      bad: 2,
    })
  })

  test('a model that fails as a whole ends the job; a wrong number of captions is our defect', async () => {
    const broken = new ModalignError({ code: 'DEVICE_LOST' })
    let calls = 0
    const failing = (batch: readonly CaptionItem[]) => (calls++ === 1 ? Promise.reject(broken) : describeItems(batch))
    expect(await failure(job(numbered(10), { caption: failing }))).toBe(broken)
    expect(await rows()).toHaveLength(4)
    expect(await failure(job(numbered(10), { caption: async () => [] }))).toMatchObject({
      message: expect.stringContaining('0 captions for 4 items'),
    })
    expect(await job(numbered(10))).toMatchObject({ resumed: 4, captioned: 10 })
  })
})

describe('stopping', () => {
  test('the batch at work is finished and kept; what is left is counted', async () => {
    const stop = new AbortController()
    const summary = await job(numbered(22), {
      signal: stop.signal,
      caption: async (batch, { signal }) => {
        stop.abort()
        expect(signal.aborted).toBe(false)
        return describeItems(batch)
      },
    })
    expect(summary).toMatchObject({ status: 'stopped', total: 22, captioned: 4, left: 18, missing: 0 })
    expect(await doneIds()).toEqual(numbered(4))
    expect((await readdir(folder)).sort()).toEqual(['out.jsonl', 'out.jsonl.job.json'])
    expect(await job(numbered(22))).toMatchObject({ status: 'finished', resumed: 4, captioned: 22, left: 0 })
  })

  test('stopped before it began', async () => {
    expect(await job(numbered(5), { signal: AbortSignal.abort() })).toMatchObject({ status: 'stopped', captioned: 0, left: 5 })
  })

  test('abort: at once, without the batch at work, even if the model does not listen', async () => {
    const abort = new AbortController()
    let calls = 0
    const summary = await job(numbered(12), {
      abort: abort.signal,
      caption: async (batch) => {
        if (calls++ === 0) return describeItems(batch)
        abort.abort()
        return new Promise(() => undefined)
      },
    })
    expect(summary).toMatchObject({ status: 'stopped', captioned: 4 })
    expect(await doneIds()).toEqual(numbered(4))
    expect(await job(numbered(12))).toMatchObject({ status: 'finished', captioned: 12 })
  })

  test('progress counts up to the end', async () => {
    await job(numbered(6))
    const seen: number[] = []
    await job(numbered(10), { onProgress: ({ captioned, resumed }) => seen.push(captioned * 100 + resumed) })
    expect(seen).toEqual([606, 1006])
  })
})

describe('a disk that fails or stops', () => {
  const ids = ['a', 'b', 'bad-1', 'c', 'd', 'e']
  /** Share of the last write that arrives. */
  const crashes: readonly (readonly [CaptionFormat, number])[] = [
    ['jsonl', 0],
    ['jsonl', 0.5],
    ['csv', 0.5],
    ['txt', 0.5],
  ]

  async function contents(root: string): Promise<Record<string, string>> {
    const found: [string, string][] = []
    for (const name of (await readdir(root, { recursive: true })).sort()) {
      // Marks of a lock being taken carry the id of a process that, here, still runs; they are removed once it does not.
      if (/\.lock(\.[0-9a-f]{8})*\.tmp-\d+-/.test(name)) continue
      if ((await stat(join(root, name))).isFile()) found.push([name, await readFile(join(root, name), 'utf8')])
    }
    return Object.fromEntries(found)
  }
  /** The process of the simulated crash is this one: what marks its lock as a dead process's is another start of the machine. */
  async function buryHolder(): Promise<void> {
    for (const name of await readdir(folder)) {
      if (!/\.lock(\.[0-9a-f]{8})*$/.test(name)) continue
      const path = join(folder, name)
      await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, 'utf8')), bootId: 'another' }))
    }
  }
  async function reset(): Promise<void> {
    await rm(folder, { recursive: true })
    await mkdir(folder)
  }

  test.each(crashes)(
    '%s: a crash at every operation (share of the write that arrives: %f); run again, it ends as if undisturbed',
    async (format, torn) => {
      const output = { path: join(folder, 'out'), format }
      await job(ids, { output })
      const undisturbed = await contents(folder)
      let count = 0
      for (let n = 1; ; n++) {
        await reset()
        const fs = crashNth(n, { torn })
        await failure(job(ids, { output, fs, syncIntervalMs: 0 }))
        if (!fs.hit) break
        count++
        await buryHolder()
        // Half of the restarts crash as well.
        if (n % 2 === 0) {
          await failure(job(ids, { output, fs: crashNth(1 + ((n * 7) % 23), { torn }) }))
          await buryHolder()
        }
        const summary = await job(ids, { output })
        expect(summary).toMatchObject({ status: 'finished', captioned: 5, bad: 1 })
        expect(await contents(folder), `crash at operation ${n}`).toEqual(undisturbed)
      }
      expect(count).toBeGreaterThan(20)
    },
  )

  test.each(['ENOSPC', 'EIO'] as const)('%s at every operation: a typed error; run again, it ends as if undisturbed', async (errno) => {
    const output = { path: join(folder, 'out'), format: 'jsonl' as const }
    await job(ids, { output })
    const undisturbed = await contents(folder)
    for (let n = 1; ; n++) {
      await reset()
      const fs = failNth(n, errno)
      const error = await failure(job(ids, { output, fs, syncIntervalMs: 0 }))
      if (!fs.hit) break
      expect(error).toMatchObject({ code: errno === 'ENOSPC' ? 'DISK_FULL' : 'DISK_FAILED' })
      // Where the failing operation was the lock's own removal, the lock stays; its holder is then a process that has ended.
      await buryHolder()
      await job(ids, { output })
      expect(await contents(folder)).toEqual(undisturbed)
    }
  })

  test('a crash at every operation of a run that puts new items in their place', async () => {
    const output = { path: join(folder, 'out'), format: 'jsonl' as const }
    await job(ids, { output })
    const undisturbed = await readFile(output.path, 'utf8')
    for (let n = 1; ; n++) {
      await reset()
      await job(['b', 'd'], { output })
      const fs = crashNth(n, { torn: 0.5 })
      await failure(job(ids, { output, fs, syncIntervalMs: 0 }))
      if (!fs.hit) break
      await buryHolder()
      await job(ids, { output })
      expect(await readFile(output.path, 'utf8')).toBe(undisturbed)
    }
  })
})
