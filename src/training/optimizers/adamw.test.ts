import { describe, expect, test } from 'vitest'
import cases from '../../../test/fixtures/optimizers/adamw.json' with { type: 'json' }
import type { Trainables } from '../../graph/parameters.ts'
import { adamw } from './adamw.ts'
import { clipGradientNorm, gradientNorm } from './clipping.ts'
import type { NamedArrays, OptimizerState } from './optimizer.ts'

function unpack(text: string): Float32Array {
  const bytes = Buffer.from(text, 'base64')
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length))
}

const unpackAll = (arrays: Readonly<Record<string, string>>): NamedArrays =>
  Object.fromEntries(Object.entries(arrays).map(([name, text]) => [name, unpack(text)]))

/**
 * Largest difference, as a share of the tensor's largest element: terms cancel in moments and in parameters near zero, so rounding is not a share of each element.
 * (PyTorch's own square root on CPU is not correctly rounded, so equal bits cannot be asked for.)
 */
function relativeError(actual: Float32Array | undefined, packed: string): number {
  const expected = unpack(packed)
  const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0)
  return expected.reduce((worst, value, i) => Math.max(worst, Math.abs((actual?.[i] ?? Number.NaN) - value) / largest), 0)
}

describe('AdamW equals torch.optim.AdamW over 100 steps', () => {
  test.each(cases)('$label', ({ shapes, options, initial, gradients, norms, snapshots }) => {
    const [beta1 = 0, beta2 = 0] = options.betas
    const optimizer = adamw({ betas: [beta1, beta2], epsilon: options.eps, weightDecay: options.weight_decay })
    const dims: Readonly<Record<string, readonly number[]>> = shapes
    const trainables: Trainables = Object.fromEntries(
      Object.entries(initial).map(([name, text]) => [name, { dims: dims[name] ?? [], data: unpack(text) }]),
    )
    const expected: Readonly<Record<string, Readonly<Record<string, { value: string; exp_avg: string; exp_avg_sq: string }>>>> = snapshots
    let state: OptimizerState = optimizer.init(trainables)
    let compared = 0
    gradients.forEach((packed, i) => {
      const step = unpackAll(packed)
      if (options.clip !== null) {
        const norm = clipGradientNorm(step, options.clip)
        expect(Math.abs(norm / (norms[i] ?? Number.NaN) - 1)).toBeLessThan(1e-6)
      }
      state = optimizer.update(trainables, step, state, options.lr)
      for (const [name, { value, exp_avg, exp_avg_sq }] of Object.entries(expected[i + 1] ?? {})) {
        expect(relativeError(trainables[name]?.data, value), `${name} at step ${i + 1}`).toBeLessThan(1e-6)
        expect(relativeError(state.slots.exp_avg?.[name], exp_avg), `exp_avg of ${name}`).toBeLessThan(1e-6)
        expect(relativeError(state.slots.exp_avg_sq?.[name], exp_avg_sq), `exp_avg_sq of ${name}`).toBeLessThan(1e-6)
        compared++
      }
    })
    expect(compared).toBe(12)
    expect(state.step).toBe(100)
  })
})

describe('decay groups', () => {
  const run = (dims: readonly number[], options = {}) => {
    const trainables = { w: { dims, data: Float32Array.of(1, 1, 1, 1) } }
    const { init, update } = adamw({ weightDecay: 0.5, ...options })
    update(trainables, { w: new Float32Array(4) }, init(trainables), 0.1)
    return trainables.w.data[0]
  }

  test('matrices decay, vectors do not', () => {
    expect(run([2, 2])).toBeCloseTo(0.95, 6)
    expect(run([4])).toBe(1)
  })

  test('a rule by name replaces the default', () => {
    expect(run([4], { decays: (name: string) => name === 'w' })).toBeCloseTo(0.95, 6)
  })
})

describe('mismatches', () => {
  const trainables = { a: { dims: [2], data: Float32Array.of(1, 2) }, b: { dims: [2], data: Float32Array.of(3, 4) } }
  const { init, update } = adamw()
  const gradient = () => Float32Array.of(1, 1)

  test('a missing or short gradient or slot is refused before anything changes', () => {
    const state = init(trainables)
    const code = expect.objectContaining({ code: 'OPTIMIZER_STATE' })
    expect(() => update(trainables, { a: gradient() }, state, 1)).toThrow(code)
    expect(() => update(trainables, { a: gradient(), b: new Float32Array(3) }, state, 1)).toThrow(code)
    expect(() =>
      update(trainables, { a: gradient(), b: gradient() }, { step: 0, slots: { exp_avg: state.slots.exp_avg ?? {} } }, 1),
    ).toThrow(code)
    expect([...trainables.a.data, ...trainables.b.data]).toEqual([1, 2, 3, 4])
    expect([...(state.slots.exp_avg?.a ?? [])]).toEqual([0, 0])
  })
})

describe('clipping', () => {
  test('below the limit nothing changes', () => {
    const gradients = { a: Float32Array.of(0.3), b: Float32Array.of(0.4) }
    expect(clipGradientNorm(gradients, 1)).toBeCloseTo(0.5, 6)
    expect([...gradients.a, ...gradients.b]).toEqual([...Float32Array.of(0.3, 0.4)])
  })

  test('above it the norm becomes the limit', () => {
    const gradients = { a: Float32Array.of(30, 0), b: Float32Array.of(40) }
    expect(clipGradientNorm(gradients, 2)).toBe(50)
    expect(gradientNorm(gradients)).toBeCloseTo(2, 5)
  })

  test('squares beyond float32 do not overflow', () => {
    expect(gradientNorm({ a: Float32Array.of(3e38, 0) })).toBeCloseTo(3e38, -33)
  })

  test.each([Number.NaN, Number.POSITIVE_INFINITY])('%d is refused and named, and no gradient is scaled', (value) => {
    const gradients = { good: Float32Array.of(100), '0.weight': Float32Array.of(1, value) }
    expect(() => clipGradientNorm(gradients, 1)).toThrow(
      expect.objectContaining({ code: 'GRADIENT_NOT_FINITE', message: expect.stringContaining('the gradient of 0.weight at index 1') }),
    )
    expect(gradients.good[0]).toBe(100)
  })
})
