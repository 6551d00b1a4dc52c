import { z } from 'zod'
import { linear } from '../src/graph/composites/linear.ts'
import { gelu } from '../src/graph/operators/gelu.ts'
import { layerNormalization } from '../src/graph/operators/layer-normalization.ts'
import { matmul } from '../src/graph/operators/matmul.ts'
import { filled } from '../src/graph/parameters.ts'
import { constant, fixedDim } from '../src/graph/tensor.ts'
import { defineProjector, onlyFeatures } from '../src/model/projector.ts'

/**
 * Pools each picture's grid to fewer tokens, normalises them, and maps them by an MLP: cheap where a picture needs few words.
 * Pooling is adaptive averaging (torch.nn.functional.adaptive_avg_pool2d). Parameters `norm.weight`, `norm.bias`, `0.weight`, `0.bias`, `2.weight`, ...
 */
export const pooledMlp = defineProjector({
  name: 'pooledMlp',
  options: z.strictObject({
    /** Tokens left along each side of a picture's grid. Default 1: one token a picture. */
    rows: z.int().min(1).default(1),
    columns: z.int().min(1).default(1),
    depth: z.int().min(1).default(2),
    /** Width between the layers; default the language model's. */
    hiddenWidth: z.int().min(1).optional(),
  }),
  tokens: (grid, { rows, columns }) => ({
    segments: grid.segments.map((segment) => ({
      ...segment,
      rows: Math.min(rows, segment.rows),
      columns: Math.min(columns, segment.columns),
    })),
  }),
  build(input, scope, { outputWidth, grid, options }) {
    const features = onlyFeatures(input, 'pooledMlp')
    const width = fixedDim(features.shape, -1, 'features')
    const pooled = matmul(constant(poolingMatrix(grid.segments, options)), features)
    const norm = scope.child('norm')
    let x = layerNormalization(pooled, norm.parameter('weight', [width], filled(1)), norm.parameter('bias', [width], filled(0)))
    for (let layer = 0; layer < options.depth; layer++) {
      if (layer > 0) x = gelu(x)
      const last = layer === options.depth - 1
      x = linear(x, scope.child(`${2 * layer}`), last ? outputWidth : (options.hiddenWidth ?? outputWidth))
    }
    return x
  },
})

interface Grid {
  readonly frames: number
  readonly rows: number
  readonly columns: number
}

/** Each output token's mean as a row of weights over the input tokens: [tokensOut, tokensIn]. */
function poolingMatrix(segments: readonly Grid[], { rows, columns }: { readonly rows: number; readonly columns: number }) {
  const weights: Float32Array[] = []
  const total = segments.reduce((sum, segment) => sum + segment.frames * segment.rows * segment.columns, 0)
  let start = 0
  for (const { frames, rows: height, columns: width } of segments) {
    for (let frame = 0; frame < frames; frame++, start += height * width) {
      for (const [top, bottom] of windows(height, rows)) {
        for (const [left, right] of windows(width, columns)) {
          const row = new Float32Array(total)
          for (let y = top; y < bottom; y++)
            row.fill(1 / ((bottom - top) * (right - left)), start + y * width + left, start + y * width + right)
          weights.push(row)
        }
      }
    }
  }
  const data = new Float32Array(weights.length * total)
  for (const [index, row] of weights.entries()) data.set(row, index * total)
  return { dtype: 'float32' as const, dims: [weights.length, total], data }
}

/** Where the windows of adaptive pooling begin and end: floor(i n / k) to ceil((i + 1) n / k). */
function windows(length: number, wanted: number): readonly (readonly [number, number])[] {
  const count = Math.min(length, wanted)
  return Array.from(
    { length: count },
    (_, index) => [Math.floor((index * length) / count), Math.ceil(((index + 1) * length) / count)] as const,
  )
}
