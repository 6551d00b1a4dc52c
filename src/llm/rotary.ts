/** Rotation angles as constant tables.   Su et al. 2021; scaling as Transformers' modeling_rope_utils has it. */
import { constant, type Tensor } from '../graph/tensor.ts'

export interface RotaryTables {
  /** float32 [positions, headDim/2]. */
  readonly cos: Tensor
  readonly sin: Tensor
}

/** angle(p, i) = p theta^(-2i/headDim). */
export function rotaryTables(positions: number, headDim: number, theta: number): RotaryTables {
  const half = headDim / 2
  const cos = new Float32Array(positions * half)
  const sin = new Float32Array(positions * half)
  for (let channel = 0; channel < half; channel++) {
    // float32 frequencies and angles, as the reference computes them: at high positions the rounding is visible.
    const frequency = Math.fround(1 / Math.fround(theta ** Math.fround((2 * channel) / headDim)))
    for (let position = 0; position < positions; position++) {
      const angle = Math.fround(position * frequency)
      cos[position * half + channel] = Math.cos(angle)
      sin[position * half + channel] = Math.sin(angle)
    }
  }
  const dims = [positions, half]
  return { cos: constant({ dtype: 'float32', dims, data: cos }), sin: constant({ dtype: 'float32', dims, data: sin }) }
}
