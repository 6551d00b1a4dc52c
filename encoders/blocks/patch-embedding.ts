/** From pixels to tokens: patches and where they lie. */
import { conv } from '../../src/graph/operators/conv.ts'
import { matmul } from '../../src/graph/operators/matmul.ts'
import { reshape } from '../../src/graph/operators/reshape.ts'
import { resize } from '../../src/graph/operators/resize.ts'
import { transpose } from '../../src/graph/operators/transpose.ts'
import { constant, dimAt, fixedDim, type Tensor } from '../../src/graph/tensor.ts'
import type { FamilyWeights } from '../../src/llm/family-weights.ts'
import { type KernelFilter, kernels, taps } from '../../src/media/resize-kernels.ts'
import { type Size, tokenGridOf } from './vision-tower.ts'

/** pixels [images, 3, height, width] -> [images, rows * columns, width]: one product for each patch. Weight `<module>.weight` [width, 3, patch, patch]. */
export function patchEmbedding(
  pixels: Tensor,
  weights: FamilyWeights,
  module: string,
  { width, patch, bias }: { readonly width: number; readonly patch: Size; readonly bias: boolean },
): Tensor {
  const kernel = weights.tensor(`${module}.weight`, [width, 3, patch.height, patch.width])
  const offset = bias ? weights.tensor(`${module}.bias`, [width]) : undefined
  return mapAsTokens(conv(pixels, kernel, offset, { strides: [patch.height, patch.width] }))
}

/** [images, channels, rows, columns] -> [images, rows * columns, channels]. */
export function mapAsTokens(map: Tensor): Tensor {
  const [images, channels] = [dimAt(map.shape, 0), dimAt(map.shape, 1)]
  const places = fixedDim(map.shape, 2, 'feature map') * fixedDim(map.shape, 3, 'feature map')
  return transpose(reshape(map, [images, channels, places]), [0, 2, 1])
}

/** Height and width of a picture's tensor. */
export function pixelSize(pixels: Tensor): Size {
  return { height: fixedDim(pixels.shape, 2, 'pixels'), width: fixedDim(pixels.shape, 3, 'pixels') }
}

export interface PositionRequest {
  /** Positions along an edge of the square table. */
  readonly side: number
  readonly patch: Size
  /** The picture's. */
  readonly size: Size
  /** As the reference interpolates: PyTorch's bicubic (coefficient -0.75), or its antialiased kernels (coefficient -0.5). */
  readonly interpolation: 'bicubic' | 'antialiased bicubic'
}

/**
 * Position embeddings for pictures of another size than the table was made for: table [side * side, width] -> [rows * columns, width]. As the reference does it, the
 * table itself is used where the picture is square and gives as many patches, and interpolated otherwise.
 */
export function positionsFor(table: Tensor, { side, patch, size, interpolation }: PositionRequest): Tensor {
  const { rows, columns } = tokenGridOf(size, patch)
  if (rows * columns === side * side && size.height === size.width) return table
  const width = fixedDim(table.shape, 1, 'position embeddings')
  if (interpolation === 'antialiased bicubic') return antialiasedPositions(table, side, { rows, columns }, 'bicubic')
  const map = reshape(transpose(table, [1, 0]), [1, width, side, side])
  return transpose(reshape(resize(map, [rows, columns], { mode: 'cubic' }), [width, rows * columns]), [1, 0])
}

/** One product an axis: rows, then columns. */
export function antialiasedPositions(
  table: Tensor,
  side: number,
  { rows, columns }: { readonly rows: number; readonly columns: number },
  filter: KernelFilter,
): Tensor {
  const width = fixedDim(table.shape, 1, 'position embeddings')
  const down = matmul(interpolationMatrix(side, rows, filter), reshape(table, [side, side * width]))
  const across = matmul(interpolationMatrix(side, columns, filter), reshape(down, [rows, side, width]))
  return reshape(across, [rows * columns, width])
}

/** float32 [newSize, size]. */
function interpolationMatrix(size: number, newSize: number, filter: KernelFilter): Tensor {
  const data = new Float32Array(newSize * size)
  const { stride, starts, counts, weights } = taps(size, newSize, kernels[filter], 0, newSize)
  for (let row = 0; row < newSize; row++) {
    for (let tap = 0; tap < (counts[row] ?? 0); tap++) data[row * size + (starts[row] ?? 0) + tap] = weights[row * stride + tap] ?? 0
  }
  return constant({ dtype: 'float32', dims: [newSize, size], data })
}
