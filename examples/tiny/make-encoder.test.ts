import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'
import { readOnnxFile } from '../../src/onnx/load.ts'
import { listTensors } from '../../src/onnx/surgery.ts'
import { skipWithout, testDataMissing } from '../../test/skip.ts'

const committed = fileURLToPath(new URL('encoder.onnx', import.meta.url))
const script = fileURLToPath(new URL('make-encoder.ts', import.meta.url))
const run = promisify(execFile)
const data = process.env.MODALIGN_TEST_DATA

test('encoder.onnx passes the check and holds only the way from pixels to the feature map', async () => {
  const { model, bytes } = await readOnnxFile(committed)
  expect(bytes.byteLength).toBeLessThan(5_000_000)
  expect(model.graph?.input.map(({ name }) => name)).toEqual(['t0'])
  expect(model.graph?.output.map(({ name }) => name)).toEqual(['t168'])
  const tensors = listTensors(model)
  expect(tensors.find(({ name }) => name === 't168')).toMatchObject({ dtype: 'float32', dims: ['N', 1280, 7, 7] })
  const read = new Set(model.graph?.node.flatMap(({ input }) => input))
  expect(tensors.filter(({ name }) => !read.has(name)).map(({ name }) => name)).toEqual(['t168'])
})

skipWithout(data === undefined ? testDataMissing : undefined).test('the script writes the committed file', async () => {
  const folder = await mkdtemp(path.join(tmpdir(), 'modalign-encoder-'))
  try {
    const output = path.join(folder, 'encoder.onnx')
    await run(process.execPath, ['--import', 'tsx', script, path.join(data ?? '', 'mobilenet_v2/model.onnx'), output])
    expect((await readFile(output)).equals(await readFile(committed))).toBe(true)
  } finally {
    await rm(folder, { recursive: true })
  }
})

test('without a model the script says how to call it', async () => {
  await expect(run(process.execPath, ['--import', 'tsx', script])).rejects.toMatchObject({
    code: 2,
    stderr: expect.stringContaining('usage:'),
  })
})
