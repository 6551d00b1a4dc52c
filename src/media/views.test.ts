/** Boxes go where the pixels go: a picture that is white inside a box and black outside is preprocessed, and the white is where the box says. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import type { DecodedImage } from '../model/contracts.ts'
import { type ImagePreprocessing, preprocessImage } from './preprocess.ts'
import { parsePreprocessorConfig } from './preprocessor-config.ts'
import { type Box, remapBox, viewsOf } from './views.ts'

const fixed = (size: number) => ({ size: { height: size, width: size }, filter: 'bilinear' as const })
const specs: Readonly<Record<string, ImagePreprocessing>> = {
  'as it is': {},
  'squeezed into a square': { resize: fixed(24) },
  'cropped from the middle': { resize: { size: { shortestEdge: 24 }, filter: 'bilinear' }, centreCrop: { height: 20, width: 20 } },
  'cropped with a border around it': { resize: { size: { shortestEdge: 12 }, filter: 'bilinear' }, centreCrop: { height: 40, width: 30 } },
  'padded to a square': { padToSquare: [0, 0, 0], resize: fixed(24) },
  anyres: {
    resize: fixed(16),
    tiling: {
      kind: 'anyres',
      resolutions: [
        { height: 16, width: 32 },
        { height: 32, width: 16 },
        { height: 32, width: 32 },
      ],
    },
  },
  'dynamic tiles': { resize: fixed(16), tiling: { kind: 'dynamic', minTiles: 1, maxTiles: 6 } },
  'pixel limits': { resize: { size: { minPixels: 256, maxPixels: 1024, multipleOf: 8 }, filter: 'bilinear' } },
  'floats, padded': { padToSquare: [0, 0, 0], resize: fixed(24), arithmetic: 'torchvision-float' },
}

/** The geometry of every processor in test/fixtures/preprocess, without its colours. */
const processors = z
  .object({ configs: z.record(z.string(), z.json()) })
  .parse(JSON.parse(readFileSync(new URL('../../test/fixtures/preprocess/cases.json', import.meta.url), 'utf8'))).configs
const published = Object.entries(processors).map(([name, config]): readonly [string, ImagePreprocessing] => {
  const { rescaleFactor: _, normalize: __, padToSquare, ...geometry } = parsePreprocessorConfig(config)
  return [name, { ...geometry, ...(padToSquare !== undefined && { padToSquare: [0, 0, 0] as const }) }]
})

const share = fc.double({ min: 0, max: 1, noNaN: true })
const scenes = fc
  .record({
    width: fc.integer({ min: 8, max: 70 }),
    height: fc.integer({ min: 8, max: 70 }),
    corners: fc.tuple(share, share, share, share),
  })
  .map(({ width, height, corners: [a, b, c, d] }): { readonly image: DecodedImage; readonly box: Box } => {
    const [left, right] = [Math.floor(Math.min(a, b) * width), Math.ceil(Math.max(a, b) * width)]
    const [top, bottom] = [Math.floor(Math.min(c, d) * height), Math.ceil(Math.max(c, d) * height)]
    const data = Uint8Array.from({ length: width * height * 3 }, (_, at) => {
      const [x, y] = [Math.floor(at / 3) % width, Math.floor(at / 3 / width)]
      return x >= left && x < right && y >= top && y < bottom ? 255 : 0
    })
    return { image: { width, height, data }, box: { type: 'box', x: left, y: top, width: right - left, height: bottom - top } }
  })

describe.each([...Object.entries(specs), ...published])('%s', (name, spec) => {
  test('the white area of every view is the area of the box in it', () => {
    fc.assert(
      fc.property(scenes, ({ image, box }) => {
        const { dims, data } = preprocessImage(image, spec)
        const views = viewsOf(image, spec)
        expect(views.map(({ width, height }) => [height, width])).toEqual(views.map(() => dims.slice(2)))
        expect(dims[0]).toBe(views.length)
        const boxes = remapBox(box, image, spec)
        for (const [index, { width, height }] of views.entries()) {
          const found = boxes.find(({ view }) => view === index)
          const plane = data.subarray(index * 3 * width * height, (index * 3 + 1) * width * height)
          let white = 0
          for (let y = 0; y < height; y++) {
            for (let x = 0; x < width; x++) {
              const value = Number(plane[y * width + x] ?? 0) / 255
              white += value
              if (found === undefined || value < 0.75) continue
              // A pixel that is mostly white has its centre in the box, give or take the filter.
              expect(x + 0.5).toBeGreaterThan(found.x - 1)
              expect(x + 0.5).toBeLessThan(found.x + found.width + 1)
              expect(y + 0.5).toBeGreaterThan(found.y - 1)
              expect(y + 0.5).toBeLessThan(found.y + found.height + 1)
            }
          }
          const area = found === undefined ? 0 : found.width * found.height
          const edgeLength = found === undefined ? 2 * (width + height) : 2 * (found.width + found.height) + 4
          expect(Math.abs(white - area)).toBeLessThan(edgeLength)
          if (found !== undefined) expect(found.visible).toBeLessThanOrEqual(1 + 1e-9)
        }
      }),
      { numRuns: name in specs ? 25 : 3 },
    )
  })
})

test('a box that a crop takes away is gone, one that it cuts keeps the visible part', () => {
  const spec: ImagePreprocessing = { centreCrop: { height: 10, width: 10 } }
  const picture = { width: 30, height: 10 }
  expect(remapBox({ type: 'box', x: 0, y: 0, width: 10, height: 10 }, picture, spec)).toEqual([])
  expect(remapBox({ type: 'box', x: 5, y: 2, width: 10, height: 4 }, picture, spec)).toEqual([
    { type: 'box', x: 0, y: 2, width: 5, height: 4, view: 0, visible: 0.5 },
  ])
})

test('tiles come with their place: InternVL ends with the whole, LLaVA begins with it', () => {
  const dynamic = viewsOf({ width: 60, height: 20 }, specs['dynamic tiles'] ?? {})
  expect(dynamic.map(({ tile }) => tile)).toEqual([{ row: 0, column: 0 }, { row: 0, column: 1 }, { row: 0, column: 2 }, undefined])
  const anyres = viewsOf({ width: 60, height: 20 }, specs.anyres ?? {})
  expect(anyres.map(({ tile }) => tile)).toEqual([undefined, { row: 0, column: 0 }, { row: 0, column: 1 }])
  expect(anyres[1]).toMatchObject({ scaleX: 32 / 60, top: 2, left: 0 })
})
