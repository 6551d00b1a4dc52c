/** Fewer tokens, each the mean of a window of the map. */
import type { Features } from '../src/model/contracts.ts'

/**
 * Adaptive average pooling of each map, as torch.nn.functional.adaptive_avg_pool2d defines its windows.
 *
 * @param features one map each
 */
export function averaged(
  { count, width, data }: Features,
  from: { readonly rows: number; readonly columns: number },
  to: { readonly rows: number; readonly columns: number },
): Features {
  const tokens = to.rows * to.columns
  const result = new Float32Array(count * tokens * width)
  const size = from.rows * from.columns * width
  for (let frame = 0; frame < count; frame++) {
    for (let row = 0; row < to.rows; row++) {
      const [top, bottom] = span(row, from.rows, to.rows)
      for (let column = 0; column < to.columns; column++) {
        const [left, right] = span(column, from.columns, to.columns)
        const place = (frame * tokens + row * to.columns + column) * width
        const share = 1 / ((bottom - top) * (right - left))
        for (let y = top; y < bottom; y++) {
          for (let x = left; x < right; x++) {
            const start = frame * size + (y * from.columns + x) * width
            for (let channel = 0; channel < width; channel++)
              result[place + channel] = (result[place + channel] ?? 0) + share * (data[start + channel] ?? 0)
          }
        }
      }
    }
  }
  return { count, tokens, width, data: result }
}

function span(index: number, length: number, wanted: number): readonly [number, number] {
  return [Math.floor((index * length) / wanted), Math.ceil(((index + 1) * length) / wanted)]
}
