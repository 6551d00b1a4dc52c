/** Datasets that are larger than memory: samples lie on disk while a run goes over them in any order. */
import { existsSync } from 'node:fs'
import { mkdtemp, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { linear } from '../projectors/linear.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import type { DatasetSource, Sample } from '../src/model/contracts.ts'
import { compose, type MultimodalModel } from '../src/model/multimodal-model.ts'
import { permutation } from '../src/random.ts'
import { prepareSamples } from '../src/training/samples.ts'
import { colours, openEncoder, writeLanguageModel } from './tune-tiny-pair.ts'

let root: string
let llm: LanguageModel
let model: MultimodalModel

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-many-'))
  await writeLanguageModel(join(root, 'llm'))
  llm = await loadLanguageModel(join(root, 'llm'), { device: 'cpu', threads: 1 })
  model = await compose({ llm, image: { encoder: await openEncoder(join(root, 'encoder.onnx')), projector: linear() } })
})
afterAll(async () => {
  await model?.dispose()
  await llm?.dispose()
  await rm(root, { recursive: true, force: true })
})

const names = Object.keys(colours)

function sampleOf(record: number): Sample {
  const name = names[record % names.length] ?? ''
  return {
    id: `record ${record}`,
    turns: [
      {
        role: 'user',
        content: [
          { type: 'image', source: `pictures/${record}/${name}.png` },
          { type: 'text', text: '\nWhat colour is this?' },
        ],
      },
      { role: 'assistant', content: [{ type: 'text', text: `It is ${name}. `.repeat(1 + (record % 3)) }] },
    ],
    origin: { file: 'records.json', record, fields: {} },
  }
}

/** Bytes in use behind a full collection. */
const collect: unknown = (() => {
  setFlagsFromString('--expose_gc')
  return runInNewContext('gc')
})()
function bytesInUse(): number {
  if (typeof collect === 'function') collect()
  const { heapUsed, arrayBuffers } = process.memoryUsage()
  return heapUsed + arrayBuffers
}

test('a sample on disk costs a few bytes of memory, however long it is, and is read in any order', async () => {
  const count = process.env.MODALIGN_LONG === '1' ? 100_000 : 4_000
  const marks: number[] = []
  const dataset: DatasetSource = {
    name: 'many',
    async *samples() {
      for (let record = 0; record < count; record++) {
        if (record % (count / 4) === 0) marks.push(bytesInUse())
        yield sampleOf(record)
      }
    },
  }
  const store = join(root, '.samples')
  {
    await using prepared = await prepareSamples(model, dataset, { store })
    marks.push(bytesInUse())
    expect(prepared.samples.length).toBe(count)
    const order = permutation(count, { seed: 3, stream: 'order' })
    const reads = Math.min(count, 20_000)
    for (let position = 0; position < reads; position++) {
      const record = order(position)
      const sample = await prepared.samples.at(record)
      expect([sample.id, sample.record, sample.media[0]?.part.source]).toEqual([
        `record ${record}`,
        record,
        `pictures/${record}/${names[record % names.length]}.png`,
      ])
    }
    marks.push(bytesInUse())
    const onDisk = (await stat(store)).size
    const [, first = 0, , , last = 0, read = 0] = marks
    console.info(
      `${count} samples, ${onDisk} bytes on disk; in memory ${((last - first) / (0.75 * count)).toFixed(1)} bytes for each, ${read - last} more after reading`,
    )
    // 8 bytes a sample in arrays that double, one block that is being written, and what the machine keeps besides.
    expect(last - first).toBeLessThan(32 * 0.75 * count + 3e6)
    // A sample that stayed would be more than a thousand bytes; other tests of the process leave some, too.
    expect(read - last).toBeLessThan(250 * Math.max(reads, 20_000))
    expect(onDisk).toBeGreaterThan(150 * count)
  }
  expect(existsSync(store)).toBe(false)
})
