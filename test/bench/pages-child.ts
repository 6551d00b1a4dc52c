/**
 * One side of `pages.ts`: `pages-child.js fp32|q4 FOLDER` opens a generator over random weights, which it writes into FOLDER, and for every message generates once and answers
 * with the middle milliseconds of a token.
 */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { createGenerator } from '../../src/llm/generation/generator.ts'
import { tokenTimes } from './generate.ts'
import { median } from './median.ts'
import { quantisedSmollm2, randomSmollm2 } from './smollm2.ts'

const [kind = '', folder = ''] = process.argv.slice(2)
const full = await randomSmollm2(folder)
const blocks = join(folder, 'blocks')
await mkdir(blocks)
const decoder = kind === 'fp32' ? full : (await quantisedSmollm2(folder, blocks)).decoder
const generator = createGenerator({ decoder, stopTokenIds: [], defaults: {} }, { device: 'cpu', threads: 2, batchSize: 1 })
let round = 0
process.on('message', async () => {
  const times = await tokenTimes(generator, 1, round++)
  process.send?.(median(times.slice(1).map((time, index) => time - (times[index] ?? 0))))
})
process.send?.(0)
