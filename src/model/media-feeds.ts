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
  const { modality, projector, grid, width } = path
  const lengths = media.map((data) => data.length / width)
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
  const data = new Float32Array(media.length * tokens * width)
  for (const [index, one] of media.entries()) data.set(one, index * tokens * width)
  const name = `${modality}.features`
  if (grid !== undefined) {
    return { feeds: { [name]: float32Tensor(data, [media.length, tokens, width]) }, tokensOut: projectedTokens(projector, grid) }
  }
  const mask = new Float32Array(media.length * tokens)
  for (const [index, length] of lengths.entries()) mask.fill(1, index * tokens, index * tokens + length)
  const group = paddedTokens(projector, 1)
  return {
    feeds: {
      [name]: float32Tensor(data, [media.length, tokens / group, group, width]),
      [`${modality}.mask`]: float32Tensor(mask, [media.length, tokens / group, group]),
    },
    tokensOut: projectedTokens(projector, rowGrid(tokens)),
  }
}
