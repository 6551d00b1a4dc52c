import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { findFfmpeg } from './ffmpeg.ts'
import { decodeImage } from './image.ts'

const fixture = z
  .object({
    pillow: z.string(),
    cases: z.array(
      z.object({
        label: z.string(),
        file: z.base64(),
        alpha: z.enum(['flatten', 'drop']),
        width: z.int(),
        height: z.int(),
        tolerance: z.int(),
        data: z.base64(),
        notes: z.array(z.string()).default([]),
        ffmpeg: z.boolean().default(false),
      }),
    ),
  })
  .parse(JSON.parse(readFileSync(new URL('../../test/fixtures/media/decode.json', import.meta.url), 'utf8')))

const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, 'base64'))
const hasFfmpeg = await findFfmpeg().then(
  () => true,
  () => false,
)

describe(`pixels as Pillow ${fixture.pillow} decodes them`, () => {
  const cases = fixture.cases.filter(({ ffmpeg }) => hasFfmpeg || !ffmpeg)
  test.each(cases)('$label', async ({ file, alpha, width, height, tolerance, data, notes }) => {
    const image = await decodeImage(bytes(file), { alpha })
    expect([image.width, image.height]).toEqual([width, height])
    const expected = bytes(data)
    const difference = Math.max(...image.data.map((value, i) => Math.abs(value - (expected[i] ?? 0))))
    expect(image.data.length).toBe(expected.length)
    expect(difference).toBeLessThanOrEqual(tolerance)
    expect(image.notes).toEqual(notes)
  })
})
