import { execFile } from 'node:child_process'
import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { build } from 'esbuild'
import { afterAll, beforeAll, expect, test } from 'vitest'

const long = process.env.MODALIGN_LONG === '1'
const count = long ? 2_000_000 : 200_000
/** What the ids themselves take, some twenty bytes for each row, V8's table of them, and a few MiB for everything else; an object for each row does not fit in. */
const heapMiB = long ? 420 : 56

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-many-'))
  await build({
    entryPoints: [join(dirname(fileURLToPath(import.meta.url)), 'caption-many-child.ts')],
    bundle: true,
    platform: 'node',
    format: 'esm',
    outfile: join(folder, 'child.mjs'),
    logLevel: 'error',
  })
})
afterAll(() => rm(folder, { recursive: true }))

test('what a job knows of its rows is small, and rows that were written in another order are put in theirs', {
  timeout: 600_000,
}, async () => {
  const output = join(folder, 'captions.jsonl')
  const args = [`--max-old-space-size=${heapMiB}`, join(folder, 'child.mjs'), String(count), output]
  const { stdout } = await promisify(execFile)(process.execPath, args)
  const [first, again] = stdout
    .trim()
    .split('\n')
    .map((line): unknown => JSON.parse(line))
  expect(first).toMatchObject({ status: 'finished', total: count, captioned: count, resumed: 0, missing: 0 })
  expect(again).toMatchObject({ status: 'finished', total: count + 1, captioned: count + 1, resumed: count, missing: 0 })
  const file = await open(output)
  try {
    const { buffer } = await file.read(Buffer.alloc(1000), 0, 1000, 0)
    const ids = Array.from(buffer.toString().matchAll(/"id":"([^"]*)"/g), ([, id]) => id)
    expect(ids.slice(0, 3)).toEqual([
      'folder--1/a-picture-with-a-name--1.jpg',
      'folder-0/a-picture-with-a-name-0.jpg',
      'folder-0/a-picture-with-a-name-1.jpg',
    ])
  } finally {
    await file.close()
  }
})
