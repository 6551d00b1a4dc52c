import { copyFile, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { call, makeWorld, type World } from './cli-world.ts'

let world: World
beforeAll(async () => {
  world = await makeWorld()
})
afterAll(() => world[Symbol.asyncDispose]())

const encoder = (): string =>
  `{family: onnxImage, model: ${world.encoder}, output: map, preprocessing: {resize: {size: {height: 8, width: 8}, filter: bilinear}, rescaleFactor: 0.00392156862745098}}`
const place = ['--device', 'cpu', '--threads', '1', '--json']

test('encode fills a store, counts bad media, and goes on where it was; tune reads it and encodes nothing', async () => {
  const folder = world.path('encoded')
  await mkdir(folder)
  for (const name of ['red', 'green', 'blue']) await copyFile(join(world.pictures, `${name}.png`), join(folder, `${name}.png`))
  await writeFile(join(folder, 'empty.jpg'), '')
  const argv = ['encode', folder, '--cache', world.path('cache'), '--encoder', encoder(), '--batch-size', '2', ...place]

  const first = await call(argv)
  expect(first.records().map(({ type }) => type)).toEqual(['start', 'bad', 'summary'])
  // 4 tokens of 6 channels of 2 bytes.
  expect(first.records()[0]).toMatchObject({ total: 4, bytesEach: 48, bytesFree: expect.any(Number) })
  expect(first.stderr).toContain('4 pictures: 48 B each as float16')
  expect(first.records()[1]).toMatchObject({ id: 'empty.jpg', code: 'IMAGE_EMPTY' })
  expect(first.records()[2]).toMatchObject({
    status: 'finished',
    total: 4,
    encoded: 3,
    known: 0,
    bad: 1,
    byCode: { IMAGE_EMPTY: 1 },
    written: 3,
  })
  expect(first.code).toBe(1)

  await rm(join(folder, 'empty.jpg'))
  await copyFile(join(world.pictures, 'black.png'), join(folder, 'black.png'))
  const second = await call(argv)
  expect([second.code, second.records().at(-1)]).toEqual([0, expect.objectContaining({ total: 4, encoded: 1, known: 3, bad: 0 })])

  const run = ['tune', world.runFile, '--output', world.path('runs', 'cached'), '--cache', world.path('cache'), '--epochs', '1', '--json']
  const tuned = await call(run)
  expect(tuned.code).toBe(0)
  expect(tuned.records().find(({ type }) => type === 'cache')).toMatchObject({ hits: 4, misses: 0, written: 0 })

  // The same run with an empty store: the same rows.
  const fresh = await call([...run.slice(0, 3), world.path('runs', 'fresh'), '--cache', world.path('cache-2'), ...run.slice(6)])
  expect(fresh.records().find(({ type }) => type === 'cache')).toMatchObject({ hits: 0, misses: 4, written: 4 })
  const losses = async (name: string) => (await readFile(world.path('runs', name, 'metrics.jsonl'), 'utf8')).match(/"loss":[^,]*/g)
  expect(await losses('fresh')).toEqual(await losses('cached'))
})

test('--on-bad fail ends with the exit code of the bad medium; nothing is lost', async () => {
  const folder = world.path('failing')
  await mkdir(folder)
  await copyFile(join(world.pictures, 'red.png'), join(folder, 'a.png'))
  await writeFile(join(folder, 'b.png'), 'no picture')
  const argv = ['encode', folder, '--cache', world.path('cache-3'), '--encoder', encoder(), ...place]
  const failed = await call([...argv, '--on-bad', 'fail'])
  expect([failed.code, failed.stderr]).toEqual([3, expect.stringContaining('b.png')])
  const skipped = await call(argv)
  expect(skipped.records().at(-1)).toMatchObject({ encoded: 1, bad: 1 })
})

test('an interrupt finishes what is under way, says how to go on, and the next call does', async () => {
  const argv = ['encode', world.pictures, '--cache', world.path('cache-4'), '--encoder', encoder(), '--batch-size', '1', ...place]
  let sent = false
  const stopped = await call(argv, {
    onError(text, signal) {
      if (sent || !text.includes('free in')) return
      sent = true
      signal('SIGINT')
    },
  })
  expect([stopped.code, stopped.stderr]).toEqual([130, expect.stringContaining('Go on with: modalign encode')])
  const { encoded: before } = stopped.records().at(-1) ?? {}
  const rest = await call(argv)
  expect(rest.code).toBe(0)
  expect(rest.records().at(-1)).toMatchObject({ known: before, encoded: 4 - Number(before) })
})

test('tune trains an encoder too, says so, and takes no store for it; chat loads it', async () => {
  const model = fileURLToPath(new URL('./fixtures/vision/clip', import.meta.url))
  const argv = [
    'tune',
    world.runFile,
    '--image-encoder',
    `{family: clip, model: ${model}}`,
    '--image-trainable',
    '{lora: {rank: 2}}',
    '--json',
  ]
  const output = world.path('runs', 'trained')
  const refused = await call([...argv, '--output', output, '--cache', world.path('no-cache')])
  expect(refused.code).toBe(2)
  expect(refused.stderr).toContain('FEATURES_NOT_FROZEN')
  await expect(readdir(world.folder)).resolves.not.toContain('no-cache')
  const tuned = await call([...argv, '--output', output, '--max-steps', '2'])
  expect(tuned.code).toBe(0)
  expect(tuned.stderr).toContain('trained, too: lora of the encoder CLIP (clip)')
  expect(tuned.stderr).toContain('not trained: the encoder other weights of CLIP (clip)')
  const told = await call([
    'chat',
    '--model',
    join(output, 'model'),
    '--image',
    join(world.pictures, 'red.png'),
    'What is this?',
    '--max-new-tokens',
    '2',
    ...place,
  ])
  expect(told.code).toBe(0)
})
