/** Arrangement of tiles' features against Transformers' `pack_image_features`. Fixture: test/fixtures/vision/make_tiles.py. */
import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import type { DecodedImage } from '../src/model/contracts.ts'
import { gridFeatures, gridTokens, separatorPlaces } from '../src/model/token-grid.ts'
import type { ImageEncoder } from './blocks/graph-image.ts'
import { concat } from './concat.ts'
import { tiled } from './tiled.ts'

const { transformers, cases } = z
  .object({
    transformers: z.string(),
    cases: z.array(
      z.object({ height: z.int(), width: z.int(), maxTiles: z.int().nullable(), views: z.int(), packed: z.array(z.number()) }),
    ),
  })
  .parse(JSON.parse(readFileSync(new URL('../test/fixtures/vision/tiles.json', import.meta.url), 'utf8')))

/** An encoder of 8 x 8 pictures that numbers its tokens: 16 a picture, counted on through a batch. */
function counting(first = 0, width = 1): ImageEncoder {
  return {
    modality: 'image',
    fingerprint: `counting ${first} ${width}`,
    label: `counting from ${first}`,
    width,
    preprocessing: { resize: { size: { height: 8, width: 8 }, filter: 'bicubic' } },
    device: 'cpu',
    grid: () => ({ segments: [{ frames: 1, rows: 4, columns: 4 }] }),
    preprocess: async ({ width: columns, height }) => ({ size: { dtype: 'int32', dims: [2], data: Int32Array.of(height, columns) } }),
    async encode(inputs) {
      for (const { size } of inputs) expect(size?.data).toEqual(Int32Array.of(8, 8))
      const data = Float32Array.from({ length: inputs.length * 16 * width }, (_, index) => first + index)
      return { count: inputs.length, tokens: 16, width, data }
    },
    dispose: async () => {},
  }
}

const picture = (width: number, height: number): DecodedImage => ({ width, height, data: new Uint8Array(3 * width * height).fill(90) })
const resolutions = [1, 2, 3].flatMap((rows) => [1, 2, 3].map((columns) => ({ height: 8 * rows, width: 8 * columns })))

describe(`anyres, as Transformers ${transformers} packs it`, () => {
  test.each(cases)('$width x $height, at most $maxTiles tiles', async ({ width, height, maxTiles, views, packed }) => {
    const encoder = tiled(counting(), { tiling: { kind: 'anyres', resolutions }, ...(maxTiles !== null && { maxTiles }) })
    const grid = encoder.grid({ width, height })
    const input = await encoder.preprocess(picture(width, height))
    expect(Object.keys(input)).toHaveLength(1 + views)
    const { data, tokens } = await encoder.encode([input])
    // Where the reference has its newline, we leave a separator's place.
    const theirs = packed.filter((value) => value !== -1)
    expect(gridTokens(grid)).toBe(packed.length)
    expect(tokens).toBe(theirs.length)
    for (const [index, value] of theirs.entries()) expect(data[index]).toBeCloseTo(value, 3)
    expect(separatorPlaces(grid)).toEqual(packed.flatMap((value, index) => (value === -1 ? [index] : [])))
    expect(gridFeatures(grid)).toBe(theirs.length)
  })
})

test('dynamic tiles are segments of their own, the whole picture the last', async () => {
  const encoder = tiled(counting(), { tiling: { kind: 'dynamic', minTiles: 1, maxTiles: 6 } })
  expect(encoder.grid({ width: 30, height: 10 }).segments).toHaveLength(4)
  expect(encoder.grid({ width: 10, height: 10 }).segments).toHaveLength(1)
  const { tokens, data } = await encoder.encode([await encoder.preprocess(picture(30, 10))])
  expect([tokens, data.at(-1)]).toEqual([64, 63])
})

test('refuses pictures of different grids in one call, and resolutions that are no whole tiles', async () => {
  const encoder = tiled(counting(), { tiling: { kind: 'dynamic', minTiles: 1, maxTiles: 6 } })
  const inputs = [await encoder.preprocess(picture(30, 10)), await encoder.preprocess(picture(10, 10))]
  await expect(encoder.encode(inputs)).rejects.toThrow(expect.objectContaining({ code: 'ENCODER_INPUT' }))
  const ragged = { kind: 'anyres', resolutions: [{ height: 12, width: 8 }] } as const
  const cropping = { resize: { size: { shortestEdge: 9 }, filter: 'bicubic' }, centreCrop: { height: 8, width: 8 } } as const
  expect(() => tiled({ ...counting(), preprocessing: cropping }, { tiling: { kind: 'dynamic', minTiles: 1, maxTiles: 6 } })).toThrow(
    expect.objectContaining({ code: 'ENCODER_PREPROCESSING' }),
  )
  expect(() => tiled(counting(), { tiling: ragged })).toThrow(expect.objectContaining({ code: 'ENCODER_PREPROCESSING' }))
})

describe('concat', () => {
  test('by channel: token by token', async () => {
    const encoder = concat([counting(), counting(1000, 2)])
    expect([encoder.width, encoder.grid({}).segments.length]).toEqual([3, 1])
    const image = picture(8, 8)
    const { data, tokens } = await encoder.encode([await encoder.preprocess(image), await encoder.preprocess(image)])
    expect(tokens).toBe(16)
    expect([...data.subarray(0, 6)]).toEqual([0, 1000, 1001, 1, 1002, 1003])
    expect([...data.subarray(16 * 3, 16 * 3 + 3)]).toEqual([16, 1032, 1033])
  })

  test('by token: one after another', async () => {
    const encoder = concat([counting(), counting(1000)], { by: 'token' })
    expect([encoder.width, encoder.grid({}).segments.length]).toEqual([1, 2])
    const image = picture(8, 8)
    const { data, tokens } = await encoder.encode([await encoder.preprocess(image), await encoder.preprocess(image)])
    expect(tokens).toBe(32)
    expect([data[0], data[16], data[32], data[48]]).toEqual([0, 1000, 16, 1016])
  })

  test('refuses what does not fit', () => {
    const tiles = tiled(counting(), { tiling: { kind: 'dynamic', minTiles: 2, maxTiles: 6 } })
    expect(() => concat([counting()])).toThrow(expect.objectContaining({ code: 'ENCODER_FUSION' }))
    expect(() => concat([counting(), tiles])).toThrow(expect.objectContaining({ code: 'ENCODER_FUSION' }))
    expect(() => concat([counting(), counting(0, 2)], { by: 'token' })).toThrow(expect.objectContaining({ code: 'ENCODER_FUSION' }))
  })
})
