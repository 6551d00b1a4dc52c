import { ModalignError } from '../../errors.ts'
import type { DataType } from '../../tensors.ts'
import { at, forEachOffset, stridesOf } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { constant, fixedDim, isFloating, type Tensor } from '../tensor.ts'
import { spatialOf } from '../windows.ts'
import { matmul } from './matmul.ts'

export type ResizeMode = 'nearest' | 'linear' | 'cubic'
export type ResizeCoordinates = 'half_pixel' | 'align_corners' | 'asymmetric'
export interface ResizeOptions {
  /** `cubic` has two spatial axes and the coefficient -0.75, as PyTorch has it. */
  readonly mode: ResizeMode
  /**
   * Where output positions lie in the input. Default `half_pixel`: pixels are areas, the images' borders meet (PyTorch: align_corners=False);
   * `align_corners`: the centres of the corner pixels meet; `asymmetric`: position times scale (PyTorch's `nearest`).
   */
  readonly coordinates?: ResizeCoordinates
}
interface Attributes {
  readonly sizes: readonly number[]
  readonly mode: ResizeMode
  readonly coordinates: ResizeCoordinates
}

const cubicCoefficient = -0.75

const apply = defineOperator<Attributes>({
  name: 'Resize',
  shape(inputs, { sizes, mode }) {
    const x = required(inputs, 0, 'Resize')
    const spatial = spatialOf(x.shape).length
    if (!isFloating(x.dtype))
      throw new ModalignError({ code: 'GRAPH_DTYPE', field: 'Resize', got: x.dtype, expected: 'a floating-point tensor' })
    if (
      spatial > 2 ||
      sizes.length !== spatial ||
      sizes.some((size) => !Number.isInteger(size) || size < 1) ||
      (mode === 'cubic' && spatial !== 2)
    ) {
      throw new ModalignError({
        code: 'GRAPH_SHAPE',
        field: 'Resize',
        got: `sizes [${sizes.join(', ')}] for ${spatial} spatial axes, ${mode}`,
        expected: 'a size of at least 1 for each of 1 or 2 spatial axes (cubic: 2)',
      })
    }
    for (const axis of sizes.keys()) fixedDim(x.shape, axis + 2, 'Resize')
    return [{ dtype: x.dtype, shape: [...x.shape.slice(0, 2), ...sizes] }]
  },
  gradient({ inputs: [x], upstream: [g], needs, attributes }) {
    if (!needs[0] || x === undefined || g === undefined) return []
    // Y = R X C^T with one matrix an axis; so dX = R^T g C.
    const [first, second] = spatialOf(x.shape).map((_, axis) => interpolationOf(fixedDim(x.shape, axis + 2, 'Resize'), axis, attributes))
    if (first === undefined) throw new Error('internal: no spatial axis')
    if (second === undefined) return [matmul(g, matrix(first, x.dtype))]
    return [matmul(matmul(matrix(transposed(first), x.dtype), g), matrix(second, x.dtype))]
  },
  evaluate([x], attributes) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    return [
      attributes.sizes.reduce((image, size, axis) => {
        const rows = interpolationOf(at(image.dims, axis + 2), axis, attributes)
        const dims = image.dims.map((dim, a) => (a === axis + 2 ? size : dim))
        const strides = stridesOf(image.dims)
        const data = new Float64Array(dims.reduce((product, dim) => product * dim, 1))
        const step = at(strides, axis + 2)
        const views = [strides.map((stride, a) => (a === axis + 2 ? 0 : stride)), dims.map((_, a) => (a === axis + 2 ? 1 : 0))]
        forEachOffset(dims, views, (position, [base = 0, row = 0]) => {
          data[position] = (rows[row] ?? []).reduce(
            (sum, weight, column) => sum + (weight === 0 ? 0 : weight * at(image.data, base + column * step)),
            0,
          )
        })
        return { dtype: image.dtype, dims, data }
      }, x),
    ]
  },
  onnx: ({ sizes, mode, coordinates }, [x]) => ({
    attributes: {
      mode: { string: mode },
      coordinate_transformation_mode: { string: coordinates },
      nearest_mode: { string: coordinates === 'asymmetric' ? 'floor' : 'round_prefer_floor' },
      cubic_coeff_a: { float: cubicCoefficient },
    },
    operands: [undefined, undefined, x === undefined ? [] : [...x.shape.slice(0, 2), ...sizes]],
  }),
})

/**
 * Interpolates the spatial axes to new sizes.  X [N, C, L] or [N, C, H, W] with fixed L, H, W -> [N, C, ...sizes]. Nearest: halves round down;
 * with `asymmetric` coordinates everything does.
 *
 * @example
 * const positions = input('positions', 'float32', [1, 768, 14, 14])
 * const finer = resize(positions, [28, 28], { mode: 'linear' })
 */
export function resize(x: Tensor, sizes: readonly number[], { mode, coordinates = 'half_pixel' }: ResizeOptions): Tensor {
  return only(apply([x], { sizes, mode, coordinates }))
}

type Matrix = readonly (readonly number[])[]

/** How much each input position counts at each output position along one axis: [size, length]. */
function interpolationOf(length: number, axis: number, { sizes, mode, coordinates }: Attributes): Matrix {
  const size = at(sizes, axis)
  return Array.from({ length: size }, (_, output) => {
    const row = new Array<number>(length).fill(0)
    for (const [index, weight] of taps(sourceOf(output, length, size, coordinates), length, mode, coordinates)) {
      const clamped = Math.min(Math.max(index, 0), length - 1)
      row[clamped] = at(row, clamped) + weight
    }
    return row
  })
}

function sourceOf(output: number, length: number, size: number, coordinates: ResizeCoordinates): number {
  switch (coordinates) {
    case 'half_pixel':
      return ((output + 0.5) * length) / size - 0.5
    case 'align_corners':
      return size === 1 ? 0 : (output * (length - 1)) / (size - 1)
    case 'asymmetric':
      return (output * length) / size
  }
}

function taps(
  source: number,
  length: number,
  mode: ResizeMode,
  coordinates: ResizeCoordinates,
): readonly (readonly [index: number, weight: number])[] {
  if (mode === 'nearest') return [[coordinates === 'asymmetric' ? Math.floor(source) : Math.ceil(source - 0.5), 1]]
  if (mode === 'linear') {
    const clamped = Math.min(Math.max(source, 0), length - 1)
    const left = Math.floor(clamped)
    return [
      [left, 1 - (clamped - left)],
      [left + 1, clamped - left],
    ]
  }
  const left = Math.floor(source)
  return [-1, 0, 1, 2].map((step) => [left + step, cubicWeight(Math.abs(source - left - step))] as const)
}

/** Keys 1981 with a = -0.75. */
function cubicWeight(distance: number): number {
  const a = cubicCoefficient
  if (distance <= 1) return ((a + 2) * distance - (a + 3)) * distance * distance + 1
  return distance < 2 ? ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a : 0
}

function matrix(rows: Matrix, dtype: DataType): Tensor {
  const dims = [rows.length, rows[0]?.length ?? 0]
  if (dtype === 'float32') return constant({ dtype, dims, data: Float32Array.from(rows.flat()) })
  if (dtype === 'float64') return constant({ dtype, dims, data: Float64Array.from(rows.flat()) })
  throw new ModalignError({ code: 'GRAPH_DTYPE', field: 'Resize', got: dtype, expected: 'float32 or float64 for a gradient' })
}

function transposed(rows: Matrix): Matrix {
  return (rows[0] ?? []).map((_, column) => rows.map((row) => at(row, column)))
}
