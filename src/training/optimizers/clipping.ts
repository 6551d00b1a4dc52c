import { ModalignError } from '../../errors.ts'
import type { NamedArrays } from './optimizer.ts'

/**
 * The Euclidean norm of all gradients taken as one vector, summed in float64.
 *
 * @throws ModalignError `GRADIENT_NOT_FINITE`, naming the first tensor that holds NaN or infinity
 * @example
 * gradientNorm({ a: Float32Array.of(3), b: Float32Array.of(4) }) // 5
 */
export function gradientNorm(gradients: NamedArrays): number {
  let total = 0
  for (const [name, gradient] of Object.entries(gradients)) {
    let sum = 0
    for (let i = 0; i < gradient.length; i++) {
      const g = gradient[i] ?? 0
      sum += g * g
    }
    if (!Number.isFinite(sum)) {
      const index = gradient.findIndex((value) => !Number.isFinite(value))
      throw new ModalignError({
        code: 'GRADIENT_NOT_FINITE',
        got: `${gradient[index]} in the gradient of ${name} at index ${index}`,
        expected: 'finite gradients',
        hint: 'lower the learning rate, or look for a bad record in this batch',
      })
    }
    total += sum
  }
  return Math.sqrt(total)
}

/**
 * Scales all gradients in place so that their common norm is at most `maxNorm`, as `torch.nn.utils.clip_grad_norm_` does: by maxNorm / (norm + 1e-6) where that is
 * below 1. Returns the norm before scaling.
 *
 * @throws ModalignError `GRADIENT_NOT_FINITE`; then nothing has been changed
 * @example
 * const norm = clipGradientNorm(gradients, 1)
 */
export function clipGradientNorm(gradients: NamedArrays, maxNorm: number): number {
  const norm = gradientNorm(gradients)
  const factor = maxNorm / (norm + 1e-6)
  if (factor < 1) {
    for (const gradient of Object.values(gradients)) {
      for (let i = 0; i < gradient.length; i++) gradient[i] = (gradient[i] ?? 0) * factor
    }
  }
  return norm
}
