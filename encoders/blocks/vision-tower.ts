/** What a family of vision models gives: functions that add its layers to a graph. One tower serves a frozen session and a training step. */
import { ModalignError } from '../../src/errors.ts'
import { concat } from '../../src/graph/operators/concat.ts'
import { expand } from '../../src/graph/operators/expand.ts'
import { slice } from '../../src/graph/operators/slice.ts'
import { dimAt, type Tensor } from '../../src/graph/tensor.ts'
import type { FamilyWeights, NameVariants } from '../../src/llm/family-weights.ts'

export interface Size {
  readonly height: number
  readonly width: number
}

/**
 * Which hidden state is taken. A number is Transformers' index among `hidden_states`: 0 after the embeddings, n after layer n; negative ones count from the end, so
 * that -1 is what the last layer gives and -2 what the one before it gives. `last`: `last_hidden_state`, with the final norm where the model has one.
 */
export type LayerChoice = number | 'last'

export interface VisionTower {
  /** Hidden states after the embeddings. */
  readonly layers: number
  /** Channels of a hidden state. */
  widthAt(layer: number | 'last'): number
  /** Pixels that one token of it stands for. */
  patchAt(layer: number | 'last'): Size
  /** Tokens before the picture's own. */
  readonly prefixTokens: number
  readonly names: NameVariants
  /** pixels float32 [images, 3, height, width] of fixed height and width -> [images, prefixTokens + rows * columns, width]. `layer` counts from 0. */
  forward(pixels: Tensor, weights: FamilyWeights, layer: number | 'last'): Tensor
}

/**
 * The layer counted from 0.
 *
 * @throws {ModalignError} `ENCODER_LAYER`
 */
export function layerIndex(layer: LayerChoice, layers: number): number | 'last' {
  if (layer === 'last') return layer
  const index = layer < 0 ? layer + layers + 1 : layer
  if (Number.isInteger(layer) && index >= 0 && index <= layers) return index
  throw new ModalignError({
    code: 'ENCODER_LAYER',
    field: '/layer',
    got: String(layer),
    expected: `"last", or ${-layers - 1} to ${layers}: the model has ${layers} layers`,
  })
}

/** Rows and columns of the tokens of a picture. Pixels beyond the last whole patch are not seen. @throws {ModalignError} `ENCODER_PREPROCESSING` */
export function tokenGridOf({ height, width }: Size, patch: Size): { readonly rows: number; readonly columns: number } {
  const [rows, columns] = [Math.floor(height / patch.height), Math.floor(width / patch.width)]
  if (rows >= 1 && columns >= 1) return { rows, columns }
  throw new ModalignError({
    code: 'ENCODER_PREPROCESSING',
    got: `pictures of ${height} x ${width} (height x width)`,
    expected: `at least one patch of ${patch.height} x ${patch.width}`,
  })
}

/** Tokens that every picture begins with, [1, count, width], before x [images, tokens, width]. */
export function withPrefix(prefix: readonly Tensor[], x: Tensor): Tensor {
  const images = dimAt(x.shape, 0)
  return concat([...prefix.map((tokens) => expand(tokens, [images, dimAt(tokens.shape, 1), dimAt(tokens.shape, 2)])), x], 1)
}

/** The picture's own tokens. */
export function withoutPrefix(x: Tensor, prefixTokens: number): Tensor {
  return prefixTokens === 0 ? x : slice(x, [{ axis: 1, start: prefixTokens }])
}
