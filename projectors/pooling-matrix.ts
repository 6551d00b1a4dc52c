import type { TokenGrid } from '../src/model/contracts.ts'
import type { TensorValue } from '../src/tensors.ts'

/**
 * Adaptive average pooling as a matrix: each row holds the weights of one output token over all input tokens. float32 [tokensOut, tokensIn], segments and frames
 * pooled each on their own.
 */
export function poolingMatrix(
  { segments }: TokenGrid,
  { rows, columns }: { readonly rows: number; readonly columns: number },
): TensorValue {
  const weights: Float32Array[] = []
  const total = segments.reduce((sum, segment) => sum + segment.frames * segment.rows * segment.columns, 0)
  let start = 0
  for (const { frames, rows: height, columns: width } of segments) {
    for (let frame = 0; frame < frames; frame++, start += height * width) {
      for (const [top, bottom] of windows(height, rows)) {
        for (const [left, right] of windows(width, columns)) {
          const row = new Float32Array(total)
          const share = 1 / ((bottom - top) * (right - left))
          for (let y = top; y < bottom; y++) row.fill(share, start + y * width + left, start + y * width + right)
          weights.push(row)
        }
      }
    }
  }
  const data = new Float32Array(weights.length * total)
  for (const [index, row] of weights.entries()) data.set(row, index * total)
  return { dtype: 'float32', dims: [weights.length, total], data }
}

/** Where the windows of adaptive pooling begin and end: floor(i n / k) to ceil((i + 1) n / k). */
function windows(length: number, wanted: number): readonly (readonly [number, number])[] {
  return Array.from(
    { length: wanted },
    (_, index) => [Math.floor((index * length) / wanted), Math.ceil(((index + 1) * length) / wanted)] as const,
  )
}
