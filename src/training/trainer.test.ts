import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { size } from '../graph/dim.ts'
import { gradients } from '../graph/gradients.ts'
import { mul } from '../graph/operators/mul.ts'
import { reduceSum } from '../graph/operators/reduce-sum.ts'
import { sub } from '../graph/operators/sub.ts'
import { input } from '../graph/tensor.ts'
import { lower } from '../onnx/lower.ts'
import { createLocalSession } from '../runtime/local.ts'
import type { ModelSource, Session } from '../runtime/session.ts'
import type { NamedTensors } from '../tensors.ts'
import { adamw } from './optimizers/adamw.ts'
import { LocalTrainer, type Trainer } from './trainer.ts'
import { openTrainer } from './worker-trainer.ts'

/** loss = sum (x w - y)^2 over any number of rows; its gradient is 2 sum x (x w - y). */
function squares(): ModelSource {
  const rows = size('rows')
  const [x, y, w] = [input('x', 'float32', [rows]), input('y', 'float32', [rows]), input('w', 'float32', [1])]
  const error = sub(mul(x, w), y)
  const loss = reduceSum(mul(error, error), [0])
  const [gradient] = gradients(loss, [w])
  if (gradient === undefined) throw new Error('no gradient')
  return { bytes: lower({ outputs: { loss, 'gradient.w': gradient } }).bytes }
}

const feeds = (x: readonly number[], y: readonly number[]): NamedTensors => ({
  x: { dtype: 'float32', dims: [x.length], data: Float32Array.from(x) },
  y: { dtype: 'float32', dims: [y.length], data: Float32Array.from(y) },
})
const trainables = { w: { dims: [1], data: Float32Array.of(0.5) } }

let session: Session
beforeAll(async () => {
  session = await createLocalSession(squares(), { device: 'cpu', threads: 1 })
})
afterAll(() => session.dispose())

const trainer = (maxGradientNorm?: number): LocalTrainer =>
  new LocalTrainer({ session, trainables, optimizer: adamw({ weightDecay: 0 }), ...(maxGradientNorm !== undefined && { maxGradientNorm }) })

async function trainedValue(one: Trainer): Promise<number> {
  return (await one.snapshot()).parameters.w?.data[0] ?? Number.NaN
}

describe('a window', () => {
  test('is the sum of its passes over the sum of their weights', async () => {
    const one = trainer()
    await one.accumulate(feeds([1, 2], [0, 0]), 2)
    await one.accumulate(feeds([3], [0]), 0.5)
    const update = await one.update(0.1)
    // losses 0.25 + 1 + 2.25; gradients 2 * 0.5 * (1 + 4 + 9)
    expect(update).toEqual({ loss: 3.5 / 2.5, weight: 2.5, gradientNorm: expect.closeTo(14 / 2.5, 5) })
  })

  test('ends with the update: the next one begins at 0', async () => {
    const one = trainer()
    await one.accumulate(feeds([1], [0]), 1)
    await one.update(0)
    await one.accumulate(feeds([2], [0]), 1)
    expect((await one.update(0)).gradientNorm).toBeCloseTo(4, 5)
  })

  test('of nothing is refused', async () => {
    await expect(trainer().update(0.1)).rejects.toMatchObject({ code: 'TRAINING_WINDOW_EMPTY' })
  })

  test.each([
    [feeds([Number.NaN], [0]), 'TRAINING_LOSS_NOT_FINITE'],
    [feeds([1e30], [0]), 'TRAINING_LOSS_NOT_FINITE'],
    [feeds([0], [Number.NaN]), 'TRAINING_LOSS_NOT_FINITE'],
  ])('whose loss is not finite changes nothing', async (bad, code) => {
    const one = trainer()
    await one.accumulate(feeds([1], [1]), 1)
    await one.accumulate(bad, 1)
    await expect(one.update(0.1)).rejects.toMatchObject({ code })
    expect(await trainedValue(one)).toBe(0.5)
    await one.accumulate(feeds([1], [1]), 1)
    expect((await one.update(0.1)).loss).toBeCloseTo(0.25, 6)
  })
})

test('clipping leaves the reported norm as it was', async () => {
  const one = trainer(1)
  await one.accumulate(feeds([10], [0]), 1)
  expect((await one.update(0.1)).gradientNorm).toBeCloseTo(100, 3)
})

test('a loss alone trains nothing', async () => {
  const one = trainer()
  expect(await one.loss(feeds([2], [0]))).toBeCloseTo(1, 6)
  expect(await trainedValue(one)).toBe(0.5)
  await expect(one.update(0.1)).rejects.toMatchObject({ code: 'TRAINING_WINDOW_EMPTY' })
})

test('what is given and what is taken are copies', async () => {
  const one = trainer()
  const taken = await one.snapshot()
  await one.accumulate(feeds([1], [3]), 1)
  await one.update(0.1)
  expect(taken.parameters.w?.data[0]).toBe(0.5)
  expect(trainables.w.data[0]).toBe(0.5)
  const restored = await one.snapshot()
  const value = await trainedValue(one)
  const { exp_avg: moments } = restored.optimizer.slots
  const before = moments?.w?.[0]
  await one.restore(restored)
  await one.accumulate(feeds([1], [3]), 1)
  await one.update(0.1)
  expect(restored.parameters.w?.data[0]).toBe(value)
  await one.accumulate(feeds([1], [9]), 1)
  await one.update(0.1)
  expect(moments?.w?.[0]).toBe(before)
})

test('a worker trains as this thread does, and goes on from a snapshot as if nothing had been', async () => {
  const request = {
    model: squares(),
    session: { device: 'cpu' as const, threads: 1 },
    trainables,
    optimizer: { name: 'adamw' as const, weightDecay: 0 },
    maxGradientNorm: 1,
  }
  const local = trainer(1)
  await using worker = await openTrainer(request)
  const batches = [1, 2, 3, 4].map((value) => feeds([value], [2]))
  const [before, after] = [batches.slice(0, 2), batches.slice(2)]
  const train = async (one: Trainer, part: readonly NamedTensors[]): Promise<readonly unknown[]> => {
    const updates = []
    for (const batch of part) {
      await one.accumulate(batch, 1)
      updates.push(await one.update(0.05))
    }
    return updates
  }
  expect(await train(worker, before)).toEqual(await train(local, before))
  const middle = await worker.snapshot()
  expect(middle).toEqual(await local.snapshot())
  const end = await train(worker, after)
  const last = await worker.snapshot()
  await worker.restore(middle)
  expect(await train(worker, after)).toEqual(end)
  expect(await worker.snapshot()).toEqual(last)
  await expect(worker.update(0.1)).rejects.toMatchObject({ code: 'TRAINING_WINDOW_EMPTY' })
})

test('a suspended trainer goes on where it was, in the middle of a window too', async () => {
  let opened = 0
  const reopen = (): Promise<Session> => {
    opened++
    return createLocalSession(squares(), { device: 'cpu', threads: 1 })
  }
  await using one = new LocalTrainer({ session: await reopen(), reopen, trainables, optimizer: adamw({ weightDecay: 0 }) })
  const other = trainer()
  for (const each of [one, other]) await each.accumulate(feeds([1, 2], [3, 1]), 2)
  await one.suspend()
  await one.suspend()
  expect(opened).toBe(1)
  for (const each of [one, other]) await each.accumulate(feeds([3], [0]), 1)
  expect(await one.update(0.1)).toEqual(await other.update(0.1))
  await one.suspend()
  expect(await one.snapshot()).toEqual(await other.snapshot())
  expect(await one.loss(feeds([1], [0]))).toBe(await other.loss(feeds([1], [0])))
  expect(opened).toBe(3)
})
