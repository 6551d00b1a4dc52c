import { expect, onTestFinished, test } from 'vitest'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import { linear } from '../graph/composites/linear.ts'
import { size } from '../graph/dim.ts'
import { initialValues } from '../graph/initial-values.ts'
import { mul } from '../graph/operators/mul.ts'
import { input } from '../graph/tensor.ts'
import { lower } from '../onnx/lower.ts'
import { createLocalSession } from '../runtime/local.ts'
import { float32Tensor, int64Tensor } from '../tensors.ts'
import { defineProjector } from './projector.ts'
import { type MediaPath, placed, project, splice } from './splice.ts'
import { imageGrid } from './token-grid.ts'

const doubled = defineProjector({
  name: 'doubled',
  options: z.strictObject({ factor: z.number().default(2) }),
  tokens: (grid) => grid,
  build: ({ features: [x] }, _, { options }) => mul(x ?? input('never', 'float32', []), options.factor),
})

test('projected media take their places, whatever the row, and leave the others alone', async () => {
  const embeds = input('embeds', 'float32', [size('batch'), size('tokens'), 3])
  const path: MediaPath = { modality: 'image', projector: doubled({ factor: 10 }), grid: imageGrid(1, 2), width: 3 }
  const { bytes } = lower({ outputs: { y: splice(embeds, [placed(path, project(path, 3))]) } })
  const session = await createLocalSession({ bytes }, { device: 'cpu', threads: 1 })
  onTestFinished(() => session.dispose())
  const feeds = (rows: readonly number[], values: readonly number[]) => ({
    embeds: float32Tensor(
      Float32Array.from({ length: 24 }, (_, index) => -1 - index),
      [2, 4, 3],
    ),
    'image.features': float32Tensor(Float32Array.from(values), [values.length / 6, 2, 3]),
    'image.rows': int64Tensor(rows, [values.length / 6, 2, 2]),
  })
  const { y } = await session.run(feeds([1, 0, 1, 3, 0, 2, 0, 1], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]))
  const expected = Array.from({ length: 24 }, (_, index) => -1 - index)
  for (const [place, values] of [
    [4, [10, 20, 30]],
    [7, [40, 50, 60]],
    [2, [70, 80, 90]],
    [1, [100, 110, 120]],
  ] as const)
    expected.splice(place * 3, 3, ...values)
  expect(Array.from(y?.data ?? [], Number)).toEqual(expected)
  const none = await session.run(feeds([], []))
  expect(none.y?.data).toEqual(Float32Array.from({ length: 24 }, (_, index) => -1 - index))
})

test('a projector that gives other sizes than it declares is refused', () => {
  const liar = defineProjector({
    name: 'liar',
    options: z.strictObject({}),
    tokens: () => imageGrid(1, 1),
    build: ({ features: [x] }, scope, { outputWidth }) => linear(x ?? input('never', 'float32', []), scope, outputWidth),
  })
  const act = (): unknown => project({ modality: 'image', projector: liar(), grid: imageGrid(2, 2), width: 3 }, 8)
  expect(act).toThrow(ModalignError)
  expect(act).toThrow('PROJECTOR_SHAPE: liar: got [image_count, 4, 8], expected [image_count, 1, 8]')
})

test('parameters are named by the modality, and drawn by their names and the seed alone', () => {
  const two = defineProjector({
    name: 'two',
    options: z.strictObject({}),
    tokens: (grid) => grid,
    build: ({ features: [x] }, scope, { outputWidth }) =>
      linear(linear(x ?? input('never', 'float32', []), scope.child('0'), 4), scope.child('2'), outputWidth),
  })
  const { scope } = project({ modality: 'image', projector: two(), grid: imageGrid(2, 2), width: 3 }, 8)
  expect(scope.parameters.map(({ name, shape }) => [name, shape])).toEqual([
    ['image.0.weight', [4, 3]],
    ['image.0.bias', [4]],
    ['image.2.weight', [8, 4]],
    ['image.2.bias', [8]],
  ])
  const values = initialValues(scope.parameters, 3)
  expect(initialValues([...scope.parameters].reverse(), 3)).toEqual(values)
  expect(initialValues(scope.parameters, 4)).not.toEqual(values)
  // U(-1/sqrt(in), 1/sqrt(in)), as torch.nn.Linear.
  for (const [name, { data }] of Object.entries(values)) {
    const bound = 1 / Math.sqrt(name.startsWith('image.0') ? 3 : 4)
    expect(data.every((value) => Math.abs(value) <= bound)).toBe(true)
    expect(new Set(data).size).toBe(data.length)
  }
})

test('options are checked where the projector is made', () => {
  expect(doubled().options).toEqual({ factor: 2 })
  expect(() => doubled(JSON.parse('{"factor":"x"}'))).toThrow('PROJECTOR_OPTIONS: doubled, /factor: got {"factor":"x"}')
  expect(() => doubled(JSON.parse('{"factr":1}'))).toThrow('PROJECTOR_OPTIONS: doubled')
})
