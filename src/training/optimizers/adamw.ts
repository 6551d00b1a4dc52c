import { decaysByRank, type Optimizer, sameLength, zeros } from './optimizer.ts'

export interface AdamWOptions {
  /** Decay rates of the two moments; default [0.9, 0.999]. */
  readonly betas?: readonly [number, number]
  /** Added to the root of the second moment; default 1e-8. */
  readonly epsilon?: number
  /** Decoupled weight decay; default 0.01, as in PyTorch. */
  readonly weightDecay?: number
  /** Which trainables decay; default: those of at least two dimensions. */
  readonly decays?: (name: string, dims: readonly number[]) => boolean
}

/**
 * AdamW (Loshchilov and Hutter 2019, algorithm 2) as `torch.optim.AdamW` computes it: the bias correction of the second moment is applied before epsilon is
 * added. Values are stored in float32 and computed in float64, with the constants rounded to float32 as PyTorch's kernels round them: over a hundred steps
 * that rounding of beta2 alone would show in the sixth digit.
 *
 *     p <- p (1 - lr * decay)
 *     m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g^2
 *     p <- p - lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + epsilon)
 *
 * @example
 * const { init, update } = adamw({ weightDecay: 0 })
 * let state = init(trainables)
 * state = update(trainables, gradients, state, 1e-3)
 */
export function adamw({
  betas: [beta1, beta2] = [0.9, 0.999],
  epsilon = 1e-8,
  weightDecay = 0.01,
  decays = decaysByRank,
}: AdamWOptions = {}): Optimizer {
  return {
    name: 'adamw',
    init: (trainables) => ({ step: 0, slots: { exp_avg: zeros(trainables), exp_avg_sq: zeros(trainables) } }),
    update(trainables, gradients, state, learningRate) {
      const step = state.step + 1
      const work = Object.entries(trainables).map(([name, value]) => ({
        parameter: value.data,
        gradient: sameLength(gradients, 'gradient', name, value),
        first: sameLength(state.slots.exp_avg, 'exp_avg', name, value),
        second: sameLength(state.slots.exp_avg_sq, 'exp_avg_sq', name, value),
        keep: decays(name, value.dims) ? Math.fround(1 - learningRate * weightDecay) : 1,
      }))
      const stepSize = learningRate / (1 - beta1 ** step)
      const correction = 1 / Math.sqrt(1 - beta2 ** step)
      for (const { parameter, gradient, first, second, keep } of work) {
        updateOne(parameter, gradient, first, second, { beta1, beta2, epsilon, keep, stepSize, correction })
      }
      return { step, slots: state.slots }
    },
  }
}

interface Factors {
  readonly beta1: number
  readonly beta2: number
  readonly epsilon: number
  readonly keep: number
  readonly stepSize: number
  readonly correction: number
}

function updateOne(parameter: Float32Array, gradient: Float32Array, first: Float32Array, second: Float32Array, factors: Factors): void {
  const { beta1, beta2, epsilon, keep, stepSize, correction } = factors
  const fresh1 = Math.fround(1 - beta1)
  const keep2 = Math.fround(beta2)
  const fresh2 = Math.fround(1 - beta2)
  for (let i = 0; i < parameter.length; i++) {
    const g = gradient[i] ?? 0
    const old = first[i] ?? 0
    const m = old + fresh1 * (g - old)
    const v = keep2 * (second[i] ?? 0) + fresh2 * g * g
    first[i] = m
    second[i] = v
    parameter[i] = (parameter[i] ?? 0) * keep - (stepSize * m) / (Math.sqrt(v) * correction + epsilon)
  }
}
