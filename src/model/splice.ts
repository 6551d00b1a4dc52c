/** Projected media take the places of their placeholders among the token embeddings. */

import { ModalignError } from '../errors.ts'
import { size } from '../graph/dim.ts'
import { scatterNd } from '../graph/operators/scatter-nd.ts'
import { ParameterScope } from '../graph/parameters.ts'
import { dimAt, input, type Tensor } from '../graph/tensor.ts'
import type { Modality, Projector, TokenGrid } from './contracts.ts'
import { gridTokens } from './token-grid.ts'

/** One modality's way into the language model, as far as shapes go. */
export interface MediaPath {
  readonly modality: Modality
  readonly projector: Projector
  /** The grid of every medium of a batch. */
  readonly grid: TokenGrid
  /** Channels of a feature. */
  readonly width: number
  /** Of the language model's token embeddings. Default 1. */
  readonly embeddingRms?: number
}

export interface ProjectedMedia {
  readonly modality: Modality
  /** Graph input `<modality>.features` [media, tokens, width]. */
  readonly features: Tensor
  /** [media, tokensOut, hiddenSize]. */
  readonly embeddings: Tensor
  readonly scope: ParameterScope
}

/**
 * Adds a projector to a graph. Parameters are named `<modality>.<name>`.
 *
 * @throws PROJECTOR_SHAPE if the projector gives other sizes than it declares.
 */
export function project({ modality, projector, grid, width, embeddingRms = 1 }: MediaPath, outputWidth: number): ProjectedMedia {
  const { definition, options } = projector
  const scope = new ParameterScope(modality)
  const media = size(`${modality}_count`)
  const features = input(`${modality}.features`, 'float32', [media, gridTokens(grid), width])
  const embeddings = definition.build({ features: [features] }, scope, { outputWidth, embeddingRms, grid, options })
  const tokens = gridTokens(definition.tokens(grid, options))
  const expected = [media, tokens, outputWidth]
  if (String(embeddings.shape) !== String(expected)) {
    throw new ModalignError({
      code: 'PROJECTOR_SHAPE',
      field: definition.name,
      got: `[${embeddings.shape.join(', ')}]`,
      expected: `[${expected.join(', ')}]`,
      hint: '`tokens` and `build` of the projector must agree',
    })
  }
  return { modality, features, embeddings, scope }
}

/** Graph input `<modality>.rows` int64 [media, tokensOut, 2]: batch row and position of every projected token. */
export function mediaRows({ modality, embeddings }: Pick<ProjectedMedia, 'modality' | 'embeddings'>): Tensor {
  return input(`${modality}.rows`, 'int64', [dimAt(embeddings.shape, 0), dimAt(embeddings.shape, 1), 2])
}

/** inputsEmbeds [batch, tokens, hiddenSize] with the media's rows in place. */
export function splice(inputsEmbeds: Tensor, media: readonly { readonly embeddings: Tensor; readonly rows: Tensor }[]): Tensor {
  return media.reduce((embeds, { embeddings, rows }) => scatterNd(embeds, rows, embeddings), inputsEmbeds)
}
