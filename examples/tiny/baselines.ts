/** What the same features can do without a language model: nearest neighbour and a linear probe, both over mean-pooled features. */
import { size } from '../../src/graph/dim.ts'
import { matmul } from '../../src/graph/operators/matmul.ts'
import { swapLastAxes } from '../../src/graph/operators/transpose.ts'
import { input } from '../../src/graph/tensor.ts'
import { lower } from '../../src/onnx/lower.ts'
import { createSession } from '../../src/runtime/node.ts'
import type { Session } from '../../src/runtime/session.ts'
import { float32Tensor } from '../../src/tensors.ts'

/** Pictures as vectors, row-major, each of unit length after its mean over training pictures is taken off; `labels[i]` is picture i's concept. */
export interface LabelledFeatures {
  readonly width: number
  readonly data: Float32Array
  readonly labels: readonly number[]
}

/** Mean over a picture's tokens. features float32 [tokens, width] -> [width]. */
export function meanPooled(features: Float32Array, width: number): Float32Array {
  const mean = new Float32Array(width)
  const tokens = features.length / width
  for (let token = 0; token < tokens; token++)
    for (let channel = 0; channel < width; channel++)
      mean[channel] = (mean[channel] ?? 0) + (features[token * width + channel] ?? 0) / tokens
  return mean
}

/** Centres both sets by the training set's mean and scales every row to length 1: what cosine similarity and ridge regression start from. */
export function normalised(train: readonly Float32Array[], test: readonly Float32Array[]): readonly [Float32Array, Float32Array] {
  const width = train[0]?.length ?? 0
  const mean = new Float64Array(width)
  for (const row of train) for (let i = 0; i < width; i++) mean[i] = (mean[i] ?? 0) + (row[i] ?? 0) / train.length
  const prepare = (rows: readonly Float32Array[]): Float32Array => {
    const data = new Float32Array(rows.length * width)
    for (const [index, row] of rows.entries()) {
      let norm = 0
      for (let i = 0; i < width; i++) norm += ((row[i] ?? 0) - (mean[i] ?? 0)) ** 2
      for (let i = 0; i < width; i++) data[index * width + i] = ((row[i] ?? 0) - (mean[i] ?? 0)) / Math.sqrt(norm + 1e-12)
    }
    return data
  }
  return [prepare(train), prepare(test)]
}

/** Share of test pictures whose most similar training picture (cosine) is of the same concept. */
export async function nearestNeighbour(train: LabelledFeatures, test: LabelledFeatures): Promise<number> {
  const scores = await product(test.data, test.labels.length, train.data, train.labels.length, test.width)
  return accuracy(scores, train.labels.length, test.labels, (column) => train.labels[column] ?? -1)
}

/**
 * A linear classifier fitted in closed form: ridge regression to one-hot labels (Hoerl & Kennard 1970), with penalty `ridge`.
 * scores = X_test (X^T X + ridge I)^-1 X^T Y.
 */
export async function linearProbe(
  train: LabelledFeatures,
  test: LabelledFeatures,
  { ridge = 0.75 }: { readonly ridge?: number } = {},
): Promise<number> {
  const { width, labels } = train
  const classes = Math.max(...labels) + 1
  const columns = transposed(train.data, labels.length, width)
  const gram = await product(columns, width, columns, width, labels.length)
  for (let i = 0; i < width; i++) gram[i * width + i] = (gram[i * width + i] ?? 0) + ridge
  const inverse = symmetricInverse(gram, width)
  // Sums of each class's features: X^T Y, transposed.
  const sums = new Float32Array(classes * width)
  for (const [row, label] of labels.entries())
    for (let i = 0; i < width; i++) sums[label * width + i] = (sums[label * width + i] ?? 0) + (train.data[row * width + i] ?? 0)
  const weights = await product(sums, classes, inverse, width, width)
  const scores = await product(test.data, test.labels.length, weights, classes, width)
  return accuracy(scores, classes, test.labels, (column) => column)
}

function accuracy(scores: Float32Array, columns: number, labels: readonly number[], labelOf: (column: number) => number): number {
  let right = 0
  for (const [row, label] of labels.entries()) {
    let best = 0
    for (let column = 1; column < columns; column++)
      if ((scores[row * columns + column] ?? 0) > (scores[row * columns + best] ?? 0)) best = column
    if (labelOf(best) === label) right++
  }
  return right / labels.length
}

/** A B^T for row-major A [m, k], B [n, k], by ONNX Runtime. */
async function product(a: Float32Array, m: number, b: Float32Array, n: number, k: number): Promise<Float32Array> {
  const [left, right] = [input('a', 'float32', [size('m'), size('k')]), input('b', 'float32', [size('n'), size('k')])]
  const { bytes } = lower({ outputs: { y: matmul(left, swapLastAxes(right)) }, inputs: [left, right] })
  await using session: Session = await createSession({ bytes }, { device: 'cpu' })
  const { y } = await session.run({ a: float32Tensor(a, [m, k]), b: float32Tensor(b, [n, k]) })
  if (y?.dtype !== 'float32') throw new Error('internal: a product of float32 is float32')
  return y.data
}

function transposed(data: Float32Array, rows: number, columns: number): Float32Array {
  const result = new Float32Array(data.length)
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) result[column * rows + row] = data[row * columns + column] ?? 0
  return result
}

/** Inverse of a symmetric positive definite matrix by its Cholesky factor L: A^-1 = L^-T L^-1. */
export function symmetricInverse(matrix: Float32Array, n: number): Float32Array {
  const lower = Float64Array.from(matrix)
  for (let j = 0; j < n; j++) {
    const rowJ = lower.subarray(j * n, j * n + j)
    let diagonal = lower[j * n + j] ?? 0
    for (let k = 0; k < j; k++) diagonal -= (rowJ[k] ?? 0) ** 2
    const root = Math.sqrt(diagonal)
    lower[j * n + j] = root
    for (let i = j + 1; i < n; i++) {
      let sum = lower[i * n + j] ?? 0
      const rowI = i * n
      for (let k = 0; k < j; k++) sum -= (lower[rowI + k] ?? 0) * (rowJ[k] ?? 0)
      lower[rowI + j] = sum / root
    }
  }
  // L^-1, row by row; rows hold zeros behind the diagonal.
  const inverse = new Float64Array(n * n)
  for (let i = 0; i < n; i++) {
    inverse[i * n + i] = 1
    for (let k = 0; k < i; k++) {
      const factor = lower[i * n + k] ?? 0
      for (let j = 0; j <= k; j++) inverse[i * n + j] = (inverse[i * n + j] ?? 0) - factor * (inverse[k * n + j] ?? 0)
    }
    const diagonal = lower[i * n + i] ?? 1
    for (let j = 0; j <= i; j++) inverse[i * n + j] = (inverse[i * n + j] ?? 0) / diagonal
  }
  const result = new Float32Array(n * n)
  const sums = new Float64Array(n)
  for (let a = 0; a < n; a++) {
    sums.fill(0)
    for (let k = a; k < n; k++) {
      const factor = inverse[k * n + a] ?? 0
      for (let b = 0; b <= a; b++) sums[b] = (sums[b] ?? 0) + factor * (inverse[k * n + b] ?? 0)
    }
    for (let b = 0; b <= a; b++) {
      const value = sums[b] ?? 0
      result[a * n + b] = value
      result[b * n + a] = value
    }
  }
  return result
}
