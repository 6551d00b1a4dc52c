import { describe, expect, test } from 'vitest'
import fixtures from '../../test/fixtures/optimizers/schedules.json' with { type: 'json' }
import { constant, cosine, linear, type ScheduleOptions, schedules, warmupStepsOf } from './schedules.ts'

describe('schedules equal those of Transformers', () => {
  test.each(fixtures)('$kind, warmup $warmup of $total, floor $floor', ({ kind, floor, warmup, total, peak, rates }) => {
    const options: ScheduleOptions = { peak, warmupSteps: warmup, totalSteps: total }
    const schedule = kind === 'cosine' ? cosine({ ...options, floor }) : kind === 'linear' ? linear(options) : constant(options)
    expect(rates).toHaveLength(total + 1)
    rates.forEach((rate, step) => {
      expect(Math.abs(schedule(step) - rate), `step ${step}`).toBeLessThan(1e-18)
    })
  })

  test('past the end the rate stays', () => {
    const options = { peak: 1, warmupSteps: 2, totalSteps: 10 }
    expect([cosine({ ...options, floor: 0.1 })(15), linear(options)(15), constant(options)(15)]).toEqual([0.1, 0, 1])
  })

  test('the warmup of a ratio', () => {
    expect([warmupStepsOf(0.03, 2180), warmupStepsOf(0, 10), warmupStepsOf(0.03, 1)]).toEqual([66, 0, 1])
    expect(Object.keys(schedules)).toEqual(['cosine', 'linear', 'constant'])
  })

  test.each([
    [{ peak: -1, totalSteps: 10 }, '/peak'],
    [{ peak: Number.NaN, totalSteps: 10 }, '/peak'],
    [{ peak: 1, totalSteps: 0 }, '/totalSteps'],
    [{ peak: 1, totalSteps: 10, warmupSteps: 11 }, '/warmupSteps'],
    [{ peak: 1, totalSteps: 10, floor: 2 }, '/floor'],
  ])('%j is refused', (options, field) => {
    expect(() => cosine(options)).toThrow(
      expect.objectContaining({ code: 'SCHEDULE_OPTIONS', details: expect.objectContaining({ field }) }),
    )
  })
})
