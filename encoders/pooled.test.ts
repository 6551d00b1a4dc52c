import { expect, test } from 'vitest'
import type { DecodedImage, Encoder, Features, TokenGrid } from '../src/model/contracts.ts'
import { float32Tensor } from '../src/tensors.ts'
import { pooled } from './pooled.ts'

/** Two channels: the number of the token within its tile, and the picture's first value. */
function encoder(grid: TokenGrid, values: Partial<Encoder<'image'>> = {}): Encoder<'image'> {
  const tokens = grid.segments.flatMap(({ rows, columns }) => Array.from({ length: rows * columns }, (_, index) => index))
  const features = (pictures: readonly number[]): Features => ({
    count: pictures.length,
    tokens: tokens.length,
    width: 2,
    data: Float32Array.from(pictures.flatMap((picture) => tokens.flatMap((token) => [token, picture]))),
  })
  return {
    modality: 'image',
    fingerprint: 'tokens',
    label: 'tokens',
    recipe: { family: 'tiny', model: '/tiny.onnx', options: { a: 1 } },
    width: 2,
    grid: () => grid,
    preprocess: async ({ data }: DecodedImage) => ({ pixels: float32Tensor(Float32Array.of(data[0] ?? 0), [1]) }),
    preparation: {
      preprocessing: {},
      inputs: (tensor) => ({ pixels: tensor }),
      encodePictures: async (pictures) => features(pictures.map(({ data }) => data[0] ?? 0)),
    },
    encode: async (inputs) => features(inputs.map(({ pixels }) => Number(pixels?.data[0]))),
    dispose: async () => undefined,
    ...values,
  }
}
const map = (rows: number, columns: number) => ({ frames: 1, rows, columns })
const picture = (value: number): DecodedImage => ({ width: 1, height: 1, data: Uint8Array.of(value, 0, 0) })

test('averages every map as torch.nn.functional.adaptive_avg_pool2d does, whichever way pictures come', async () => {
  const small = pooled(encoder({ segments: [map(4, 3)] }), { grid: { rows: 2, columns: 2 } })
  expect(small.grid({})).toEqual({ segments: [map(2, 2)] })
  const one = await small.encode([await small.preprocess(picture(7)), await small.preprocess(picture(9))])
  expect(one).toMatchObject({ count: 2, tokens: 4, width: 2 })
  // Rows 0 and 1, then 2 and 3; columns 0 and 1, then 1 and 2.
  const means = [2, 3, 8, 9]
  expect([...one.data]).toEqual([7, 9].flatMap((value) => means.flatMap((mean) => [mean, value])))
  expect(await small.preparation?.encodePictures?.([picture(7), picture(9)])).toEqual(one)
})

test('of several tiles each alone', async () => {
  const tiles = pooled(encoder({ segments: [map(2, 2), { ...map(2, 4), separator: 'segment' }] }), { grid: { rows: 1, columns: 2 } })
  expect(tiles.grid({}).segments).toEqual([map(1, 2), { ...map(1, 2), separator: 'segment' }])
  const { data } = await tiles.encode([await tiles.preprocess(picture(5))])
  expect([...data].filter((_, at) => at % 2 === 0)).toEqual([1, 2, 2.5, 4.5])
})

test('is another encoder to a store, and knows how to be made again', () => {
  const own = encoder({ segments: [map(4, 4)] })
  const small = pooled(own, { grid: { rows: 2, columns: 2 } })
  expect(new Set([own, small, pooled(own, { grid: { rows: 2, columns: 1 } })].map(({ fingerprint }) => fingerprint)).size).toBe(3)
  expect(small.recipe).toEqual({
    family: 'pooled',
    options: { encoder: { family: 'tiny', model: '/tiny.onnx', options: { a: 1 } }, grid: { rows: 2, columns: 2 } },
  })
})

test.each([
  ['more rows than there are', {}, { rows: 5, columns: 1 }],
  ['no rows', {}, { rows: 0, columns: 1 }],
  ['grids that hang on the picture', { gridVaries: true }, { rows: 1, columns: 1 }],
])('refuses %s', (_, values, grid) => {
  expect(() => pooled(encoder({ segments: [map(4, 4)] }, values), { grid })).toThrow(expect.objectContaining({ code: 'ENCODER_OPTIONS' }))
})
