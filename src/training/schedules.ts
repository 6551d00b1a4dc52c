/** Learning rate schedules, named and computed as in Transformers' `optimization.py`. */
import { ModalignError } from '../errors.ts'

/** Learning rate of update `step`, counted from 0. */
export type Schedule = (step: number) => number

export interface ScheduleOptions {
  /** The highest rate, reached when the warmup ends. */
  readonly peak: number
  /** Updates over which the rate rises linearly from 0; default 0. */
  readonly warmupSteps?: number
  /** Updates of the whole run. */
  readonly totalSteps: number
}

/**
 * `get_cosine_schedule_with_warmup`: linear warmup, then half a cosine down to `floor * peak` (default 0, LLaVA's; Prismatic and nanoVLM use 0.1), where it stays.
 *
 * @throws ModalignError `SCHEDULE_OPTIONS`
 * @example
 * const rate = cosine({ peak: 1e-3, warmupSteps: 66, totalSteps: 2180 })
 * rate(0) // 0
 */
export function cosine({ floor = 0, ...options }: ScheduleOptions & { readonly floor?: number }): Schedule {
  if (!(floor >= 0 && floor <= 1))
    throw new ModalignError({ code: 'SCHEDULE_OPTIONS', field: '/floor', got: String(floor), expected: 'a ratio in [0, 1]' })
  return withWarmup(options, (progress) => floor + (1 - floor) * 0.5 * (1 + Math.cos(Math.PI * progress)))
}

/**
 * `get_linear_schedule_with_warmup`: linear warmup, then a straight line down to 0.
 *
 * @throws ModalignError `SCHEDULE_OPTIONS`
 * @example
 * linear({ peak: 1e-3, totalSteps: 100 })(50) // 5e-4
 */
export function linear(options: ScheduleOptions): Schedule {
  return withWarmup(options, (_, remaining) => remaining)
}

/**
 * `get_constant_schedule_with_warmup`: linear warmup, then the peak.
 *
 * @throws ModalignError `SCHEDULE_OPTIONS`
 * @example
 * constant({ peak: 1e-3, totalSteps: 100 })(50) // 1e-3
 */
export function constant(options: ScheduleOptions): Schedule {
  return withWarmup(options, () => 1)
}

/** Schedule name, as a run file writes it -> schedule. */
export const schedules = { cosine, linear, constant } as const

/**
 * Warmup steps of a ratio, rounded up as Transformers' `TrainingArguments.get_warmup_steps` does.
 *
 * @example
 * warmupStepsOf(0.03, 2180) // 66
 */
export function warmupStepsOf(ratio: number, totalSteps: number): number {
  return Math.ceil(totalSteps * ratio)
}

/** `decay`: share of the peak after the warmup, given the part of the steps after it that is done and the part that remains. (Both are 0 where the warmup is the whole run.) */
function withWarmup(
  { peak, warmupSteps = 0, totalSteps }: ScheduleOptions,
  decay: (progress: number, remaining: number) => number,
): Schedule {
  const check = (field: string, value: number, holds: boolean, expected: string): void => {
    if (!holds) throw new ModalignError({ code: 'SCHEDULE_OPTIONS', field: `/${field}`, got: String(value), expected })
  }
  check('peak', peak, Number.isFinite(peak) && peak >= 0, 'a rate of at least 0')
  check('totalSteps', totalSteps, Number.isInteger(totalSteps) && totalSteps >= 1, 'a whole number of at least 1')
  check(
    'warmupSteps',
    warmupSteps,
    Number.isInteger(warmupSteps) && warmupSteps >= 0 && warmupSteps <= totalSteps,
    `a whole number in [0, ${totalSteps}]`,
  )
  return (step) => {
    if (step < warmupSteps) return (peak * step) / warmupSteps
    const span = Math.max(1, totalSteps - warmupSteps)
    return peak * decay(Math.min(1, (step - warmupSteps) / span), Math.max(0, (totalSteps - step) / span))
  }
}
