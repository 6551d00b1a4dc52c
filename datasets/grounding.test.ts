/** Boxes in records: a rectangle is painted where the box says, the picture goes through real preprocessing, and the box that is written then surrounds the painted pixels. */
import { readFileSync } from 'node:fs'
import sharp from 'sharp'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { type ImagePreprocessing, preprocessImage } from '../src/media/preprocess.ts'
import { parsePreprocessorConfig } from '../src/media/preprocessor-config.ts'
import { viewsOf } from '../src/media/views.ts'
import type { DatasetSource, JsonObject, Part, Sample } from '../src/model/contracts.ts'
import { boxNotations, type GroundingOptions, grounded } from './grounding.ts'

const text = (value: string): Part => ({ type: 'text', text: value })
const png = async (width: number, height: number): Promise<Uint8Array> =>
  new Uint8Array(
    await sharp({ create: { width, height, channels: 3, background: 'black' } })
      .png()
      .toBuffer(),
  )

function dataset(content: readonly Part[], fields: JsonObject = {}, answer = 'Here.'): DatasetSource {
  const sample: Sample = {
    id: '0',
    turns: [
      { role: 'user', content },
      { role: 'assistant', content: [text(answer)] },
    ],
    origin: { file: 'refs.json', record: 3, fields },
  }
  return {
    name: 'refs',
    async *samples() {
      yield sample
    },
  }
}

async function texts(source: DatasetSource, options: GroundingOptions): Promise<readonly string[]> {
  const found: string[] = []
  for await (const { turns } of grounded(source, options).samples())
    for (const { content } of turns) for (const part of content) if (part.type === 'text') found.push(part.text)
  return found
}

const size = async () => ({ width: 400, height: 200 })
const image: Part = { type: 'image', source: 'a.png' }
const objects = (bbox: readonly (readonly number[])[], rest: JsonObject = {}): JsonObject => ({
  objects: { bbox: bbox.map((one) => [...one]), ...rest },
})

const processors = z
  .object({ configs: z.record(z.string(), z.json()) })
  .parse(JSON.parse(readFileSync(new URL('../test/fixtures/preprocess/cases.json', import.meta.url), 'utf8'))).configs

describe('what a processor shows where the written box is', () => {
  test.each(Object.entries(processors))('%s', async (_, config) => {
    const { rescaleFactor: __, normalize: ___, padToSquare, ...geometry } = parsePreprocessorConfig(config)
    const preprocessing: ImagePreprocessing = { ...geometry, ...(padToSquare !== undefined && { padToSquare: [0, 0, 0] }) }
    const [width, height] = [83, 61]
    const [x1, y1, x2, y2] = [22, 12, 58, 51]
    const data = Uint8Array.from({ length: 3 * width * height }, (____, at) => {
      const [x, y] = [Math.floor(at / 3) % width, Math.floor(at / 3 / width)]
      return x >= x1 && x < x2 && y >= y1 && y < y2 ? 255 : 0
    })
    const views = viewsOf({ width, height }, preprocessing)
    const whole = views.findIndex(({ tile }) => tile === undefined)
    const view = views[whole] ?? { width: 0, height: 0 }
    const source = dataset([{ type: 'image', source: await png(width, height) }, text('Where?')], objects([[x1, y1, x2, y2]]), '<bbox>')
    const notation = { template: 'x1 y1 x2 y2', unit: 'pixel' as const, digits: 2 }
    const [, answer = ''] = await texts(source, { boxes: notation, preprocessing })
    const [left = 0, top = 0, right = 0, bottom = 0] = answer.split(' ').map(Number)
    const tensor = preprocessImage({ width, height, data }, preprocessing)
    const plane = Array.from(tensor.data.subarray(3 * whole * view.width * view.height), Number).slice(0, view.width * view.height)
    const white = plane.flatMap((value, at) => (value > 127 ? [{ x: at % view.width, y: Math.floor(at / view.width) }] : []))
    const [xs, ys] = [white.map(({ x }) => x), white.map(({ y }) => y)]
    // Half of a pixel's light on either side of an edge, and the whole pixel that nearest neighbours take.
    expect(Math.abs(Math.min(...xs) - left)).toBeLessThan(1.01)
    expect(Math.abs(Math.max(...xs) + 1 - right)).toBeLessThan(1.01)
    expect(Math.abs(Math.min(...ys) - top)).toBeLessThan(1.01)
    expect(Math.abs(Math.max(...ys) + 1 - bottom)).toBeLessThan(1.01)
  })
})

test('placeholders take names and boxes in order, of the picture that each belongs to', async () => {
  const source = dataset(
    [image, image, text('<ref-object> at <bbox>, and <ref-object>?')],
    {
      ...objects(
        [
          [0.25, 0.5, 0.5, 1],
          [0, 0, 1, 1],
        ],
        { ref: ['a cat', 'a dog'], bbox_type: 'norm1', image_id: [1, 0] },
      ),
    },
    '<bbox>',
  )
  expect(await texts(source, { boxes: 'internvl', size })).toEqual([
    'a cat at <box>[[250, 500, 500, 1000]]</box>, and a dog?',
    '<box>[[0, 0, 1000, 1000]]</box>',
  ])
})

test('the padded square of LLaVA-1.5: from pixels, and to the pixels of a Qwen2.5-VL', async () => {
  const square: ImagePreprocessing = { padToSquare: [0, 0, 0], resize: { size: { height: 336, width: 336 }, filter: 'bicubic' } }
  const source = dataset([image, text('Where?')], objects([[100, 50, 300, 200]]), 'It is at <bbox>.')
  expect((await texts(source, { boxes: 'llava', preprocessing: square, size }))[1]).toBe('It is at [0.25, 0.38, 0.75, 0.75].')
  expect((await texts(source, { boxes: 'shikra', preprocessing: square, size }))[1]).toBe('It is at [0.250,0.375,0.750,0.750].')
  // And back again, for an encoder that keeps proportions.
  const wide: ImagePreprocessing = { resize: { size: { height: 100, width: 200 }, filter: 'bicubic' } }
  const inText = dataset([image, text('What is at [0.25, 0.375, 0.75, 0.75]?')], {}, 'A cat [1, 2], not a list.')
  const options: GroundingOptions = { boxes: 'qwen2.5-vl', preprocessing: wide, written: { notation: 'llava', of: 'square' }, size }
  expect(await texts(inText, options)).toEqual(['What is at [50, 25, 150, 100]?', 'A cat [1, 2], not a list.'])
})

test('every notation reads what it writes', async () => {
  for (const notation of Object.values(boxNotations)) {
    const source = dataset([image, text('Where?')], objects([[40, 20, 300, 200]]), '<bbox>')
    const [, first = ''] = await texts(source, { boxes: notation, size })
    const [, second] = await texts(dataset([image, text('Where?')], {}, first), { boxes: notation, written: { notation }, size })
    expect(second).toBe(first)
  }
})

describe('refused, with the record', () => {
  const crop: ImagePreprocessing = { centreCrop: { height: 200, width: 200 } }
  const cases: readonly (readonly [string, JsonObject, string, GroundingOptions, string, string])[] = [
    [
      'a box that a crop takes away',
      objects([[0, 0, 90, 90]]),
      '<bbox>',
      { boxes: 'llava', preprocessing: crop, size },
      'DATASET_BOX_LOST',
      '/objects/bbox/0',
    ],
    [
      'a box of which too little is left',
      objects([[0, 0, 120, 90]]),
      '<bbox>',
      { boxes: 'llava', preprocessing: crop, leastVisible: 0.5, size },
      'DATASET_BOX_LOST',
      '/objects/bbox/0',
    ],
    ['a box beyond the picture', objects([[0, 0, 900, 90]]), '<bbox>', { boxes: 'llava', size }, 'DATASET_BOX', '/objects/bbox/0'],
    ['edges the wrong way round', objects([[90, 0, 10, 90]]), '<bbox>', { boxes: 'llava', size }, 'DATASET_BOX', '/objects/bbox/0'],
    ['three numbers', objects([[90, 0, 10]]), '<bbox>', { boxes: 'llava', size }, 'DATASET_BOX', '/objects/bbox/0'],
    ['a box too few', objects([]), '<bbox>', { boxes: 'llava', size }, 'DATASET_BOX_COUNT', '/turns/1'],
    ['a box too many', objects([[0, 0, 1, 1]]), 'nothing', { boxes: 'llava', size }, 'DATASET_BOX_COUNT', '/objects/bbox'],
    [
      'a box of no picture',
      objects([[0, 0, 1, 1]], { image_id: [2] }),
      '<bbox>',
      { boxes: 'llava', size },
      'DATASET_BOX_IMAGE',
      '/objects/bbox/0',
    ],
  ]
  test.each(cases)('%s', async (_, fields, answer, options, code, field) => {
    const source = dataset([image, text('Where?')], fields, answer)
    await expect(texts(source, options)).rejects.toMatchObject({ code, details: { file: 'refs.json', record: 3, field } })
    const bad: unknown[] = []
    for await (const sample of grounded(source, options).samples({ onBad: (error) => bad.push(error.code) })) bad.push(sample)
    expect(bad).toEqual([code])
  })
})
