import { expect, test } from 'vitest'
import type { DecodedImage, Encoder } from '../src/model/contracts.ts'
import { float32Tensor } from '../src/tensors.ts'
import { frames } from './frames.ts'

/** 2 x 3 tokens of width 1: the first value of the picture, plus the number of the token. */
const pictures: Encoder<'image'> = {
  modality: 'image',
  fingerprint: 'pictures',
  label: 'pictures',
  recipe: { family: 'tiny', model: '/tiny.onnx', options: { a: 1 } },
  width: 1,
  grid: () => ({ segments: [{ frames: 1, rows: 2, columns: 3 }] }),
  preprocess: async ({ data }: DecodedImage) => ({ pixels: float32Tensor(Float32Array.of(data[0] ?? 0), [1]) }),
  encode: async (inputs) => ({
    count: inputs.length,
    tokens: 6,
    width: 1,
    data: Float32Array.from(inputs.flatMap(({ pixels }) => [0, 1, 2, 3, 4, 5].map((token) => Number(pixels?.data[0]) + token))),
  }),
  dispose: async () => undefined,
}
const film = (...values: readonly number[]) => ({
  frames: values.map((value) => ({ width: 1, height: 1, data: Uint8Array.of(value, 0, 0) })),
  timesSeconds: values.map((_, index) => index),
})

test('gives the features of every frame, in order, of several films at once', async () => {
  const encoder = frames(pictures, { sampling: { type: 'uniform', frames: 2 } })
  expect(encoder.grid({ frames: 2 })).toEqual({ segments: [{ frames: 2, rows: 2, columns: 3 }] })
  expect(encoder.grid({})).toEqual(encoder.grid({ frames: 2 }))
  const features = await encoder.encode([await encoder.preprocess(film(10, 20)), await encoder.preprocess(film(30, 40))])
  expect(features).toMatchObject({ count: 2, tokens: 12, width: 1 })
  expect(Array.from(features.data)).toEqual([10, 20, 30, 40].flatMap((value) => [0, 1, 2, 3, 4, 5].map((token) => value + token)))
  // More than ten frames stay in their order.
  const many = await encoder.encode([await encoder.preprocess(film(...Array.from({ length: 12 }, (_, index) => index * 10)))])
  expect(Array.from(many.data).filter((_, index) => index % 6 === 0)).toEqual(Array.from({ length: 12 }, (_, index) => index * 10))
  await expect(encoder.encode([await encoder.preprocess(film(1)), await encoder.preprocess(film(1, 2))])).rejects.toMatchObject({
    code: 'ENCODER_INPUT',
  })
})

test('pools each frame as torch.nn.functional.adaptive_avg_pool2d does', async () => {
  const encoder = frames(pictures, { pooling: { rows: 1, columns: 2 } })
  expect(encoder.grid({ frames: 1 })).toEqual({ segments: [{ frames: 1, rows: 1, columns: 2 }] })
  const { data } = await encoder.encode([await encoder.preprocess(film(0))])
  // Columns 0 and 1, then 1 and 2, of both rows.
  expect(Array.from(data)).toEqual([2, 3])
})

test('knows how to be made again, and is another with other frames', () => {
  const encoder = frames(pictures, { sampling: { type: 'fps', fps: 1, maxFrames: 4 } })
  expect(encoder.recipe).toEqual({
    family: 'frames',
    options: { encoder: { family: 'tiny', model: '/tiny.onnx', options: { a: 1 } }, sampling: { type: 'fps', fps: 1, maxFrames: 4 } },
  })
  expect(encoder.fingerprint).not.toBe(frames(pictures).fingerprint)
  expect(() => frames({ ...pictures, gridVaries: true })).toThrow('ENCODER_OPTIONS')
})

test('averages neighbouring frames, the last of what is left, and says when they lie', async () => {
  const encoder = frames(pictures, { sampling: { type: 'fps', fps: 2 }, neighbours: 2 })
  expect(encoder.grid({ frames: 3 }).segments).toEqual([{ frames: 2, rows: 2, columns: 3, time: [0, 1] }])
  expect(encoder.gridVaries).toBe(true)
  const { count, tokens, data } = await encoder.encode([
    await encoder.preprocess(film(10, 20, 40)),
    await encoder.preprocess(film(50, 70, 0)),
  ])
  expect([count, tokens]).toEqual([2, 12])
  expect(Array.from(data)).toEqual([15, 40, 60, 0].flatMap((value) => [0, 1, 2, 3, 4, 5].map((token) => value + token)))
  expect(encoder.recipe?.options).toMatchObject({ neighbours: 2 })
  expect(() => frames(pictures, { neighbours: 0 })).toThrow(expect.objectContaining({ code: 'ENCODER_OPTIONS' }))
  expect(frames(pictures, { sampling: { type: 'times', seconds: [1, 3] } }).grid({}).segments[0]?.time).toEqual([1, 3])
})
