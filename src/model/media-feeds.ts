/** Features of several media as the inputs of a graph that projects them. */
import { ModalignError } from '../errors.ts'
import { float32Tensor, type NamedTensors } from '../tensors.ts'
import type { MediaPath } from './splice.ts'
import { gridTokens, paddedTokens, projectedTokens, rowGrid } from './token-grid.ts'

/** What the inputs of one modality look like. */
export interface StackedFeatures {
  /** `<modality>.features`, and where media differ `<modality>.mask`. */
  readonly feeds: NamedTensors
  /** Tokens that the projector makes of every medium, padding included. */
  readonly tokensOut: number
}

/**
 * Stacks features float32 [tokens, width], filled up with zeros to one length.
 *
 * @throws BATCH_FEATURES if a medium has other features than its path says.
 */
export function stackFeatures(path: MediaPath, media: readonly Float32Array[]): StackedFeatures {
  const { modality, width } = path
  const { tokens, dims, feeds, tokensOut } = stackedPlaces(
    path,
    media.map((data) => data.length / width),
  )
  const data = new Float32Array(media.length * tokens * width)
  for (const [index, one] of media.entries()) data.set(one, index * tokens * width)
  return { feeds: { [`${modality}.features`]: float32Tensor(data, [...dims, width]), ...feeds }, tokensOut }
}

export interface StackedPlaces extends StackedFeatures {
  /** Places for features that every medium has, padding included. */
  readonly tokens: number
  /** The sizes of the features' tensor before the last, and of the mask. */
  readonly dims: readonly number[]
}

/** How media of so many features are stacked; `feeds`: the mask, where media differ. @throws BATCH_FEATURES if a medium has other features than its path says. */
export function stackedPlaces(path: MediaPath, lengths: readonly number[]): StackedPlaces {
  const { modality, projector, grid, width } = path
  const own = grid === undefined ? undefined : gridTokens(grid)
  const wrong = lengths.find((length) => (own === undefined ? !Number.isInteger(length) || length < 1 : length !== own))
  if (wrong !== undefined) {
    throw new ModalignError({
      code: 'BATCH_FEATURES',
      field: modality,
      got: `${wrong * width} numbers`,
      expected: own === undefined ? `a multiple of ${width}` : `${own * width}`,
    })
  }
  const tokens = paddedTokens(projector, own ?? Math.max(1, ...lengths))
  if (grid !== undefined) return { tokens, dims: [lengths.length, tokens], feeds: {}, tokensOut: projectedTokens(projector, grid) }
  const group = paddedTokens(projector, 1)
  const dims = [lengths.length, tokens / group, group]
  return {
    tokens,
    dims,
    feeds: { [`${modality}.mask`]: float32Tensor(marks(lengths, tokens), dims) },
    tokensOut: projectedTokens(projector, rowGrid(tokens)),
  }
}

/** 1 at the first so many places of each row, 0 behind them. */
export function marks(lengths: readonly number[], places: number): Float32Array {
  const mask = new Float32Array(lengths.length * places)
  for (const [index, length] of lengths.entries()) mask.fill(1, index * places, index * places + length)
  return mask
}
