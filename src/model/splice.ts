/** Projected media take the places of their placeholders among the token embeddings. */

import { ModalignError } from '../errors.ts'
import { type Dim, dimsEqual, multiplyDims, size } from '../graph/dim.ts'
import { concat } from '../graph/operators/concat.ts'
import { gather } from '../graph/operators/gather.ts'
import { reshape } from '../graph/operators/reshape.ts'
import { scatterNd } from '../graph/operators/scatter-nd.ts'
import { unsqueeze } from '../graph/operators/unsqueeze.ts'
import { normal, ParameterScope } from '../graph/parameters.ts'
import { dimAt, input, type Tensor } from '../graph/tensor.ts'
import type { Modality, Projector, TokenGrid } from './contracts.ts'
import { gridTokens, paddedTokens, projectedTokens } from './token-grid.ts'
import { type EncodedMedia, encodedMedia, type TrainedLayers } from './trained-media.ts'

/** One modality's way into the language model, as far as shapes go. */
export interface MediaPath {
  readonly modality: Modality
  readonly projector: Projector
  /** The grid of every medium; undefined where media differ in their numbers of tokens. */
  readonly grid: TokenGrid | undefined
  /** Channels of a feature. */
  readonly width: number
  /** Of the language model's token embeddings. Default 1. */
  readonly embeddingRms?: number
  /** Whether media have separators among their tokens: one embedding is learned for all of them. Only where media differ. Default false. */
  readonly separated?: boolean
  /** Where the encoder is trained: its layers, which training steps have in place of the features. */
  readonly trained?: TrainedLayers
}

export interface ProjectedMedia {
  readonly modality: Modality
  /** One grid: `<modality>.features` [media, tokens, width]. Else also `<modality>.mask`, and the tokens counted in groups: [media, groups, group, width]. A trained encoder has its own in place of the features: see {@link encodedMedia}. */
  readonly inputs: readonly Tensor[]
  /** [media, tokensOut, hiddenSize]; where media differ, the tokens of padding are among them. */
  readonly embeddings: Tensor
  /** [hiddenSize], where media have separators. */
  readonly separator?: Tensor
  readonly scope: ParameterScope
}

/**
 * Adds a projector to a graph. Parameters are named `<modality>.<name>`; that of separators is `<modality>.separator`, LLaVA's `image_newline`.
 *
 * @param through `encoder`: features come from the layers of a trained encoder, if it is one; `features` (default): they are inputs.
 * @throws PROJECTOR_SHAPE if the projector gives other sizes than it declares.
 */
export function project(path: MediaPath, outputWidth: number, through: 'encoder' | 'features' = 'features'): ProjectedMedia {
  const { modality, projector, grid, embeddingRms = 1, separated = false } = path
  const { definition, options } = projector
  const scope = new ParameterScope(modality)
  const { inputs, features, mask } = mediaInputs(path, through === 'encoder' ? path.trained : undefined)
  const embeddings = definition.build({ features: [features], ...(mask && { mask }) }, scope, {
    outputWidth,
    embeddingRms,
    grid,
    options,
  })
  const media = dimAt(features.shape, 0)
  const tokens = grid === undefined ? dimAt(embeddings.shape, 1) : projectedTokens(projector, grid)
  const expected = [media, tokens, outputWidth]
  if (embeddings.shape.length !== 3 || !expected.every((dim, axis) => dimsEqual(dim, dimAt(embeddings.shape, axis)))) {
    throw new ModalignError({
      code: 'PROJECTOR_SHAPE',
      field: definition.name,
      got: `[${embeddings.shape.join(', ')}]`,
      expected: `[${expected.join(', ')}]`,
      hint: '`tokens` and `build` of the projector must agree',
    })
  }
  const separator = separated ? scope.parameter('separator', [outputWidth], normal(embeddingRms)) : undefined
  return { modality, inputs, embeddings, scope, ...(separator && { separator }) }
}

function mediaInputs(
  { modality, projector, grid, width }: MediaPath,
  trained: TrainedLayers | undefined,
): {
  readonly inputs: readonly Tensor[]
  readonly features: Tensor
  readonly mask?: Tensor
} {
  const media = size(`${modality}_count`)
  const given = (shape: Tensor['shape']): EncodedMedia => {
    if (trained !== undefined) return encodedMedia(modality, trained, shape)
    const features = input(`${modality}.features`, 'float32', shape)
    return { inputs: [features], features }
  }
  if (grid !== undefined) return given([media, paddedTokens(projector, gridTokens(grid)), width])
  // A size such as 8*groups must be read off an input where `groups` stands alone.
  const [groups, group] = [size(`${modality}_groups`), paddedTokens(projector, 1)]
  const { inputs, features } = given([media, groups, group, width])
  const mask = input(`${modality}.mask`, 'float32', [media, groups, group])
  const tokens: Dim = multiplyDims(groups, group)
  return { inputs: [...inputs, mask], features: reshape(features, [media, tokens, width]), mask: reshape(mask, [media, tokens]) }
}

/** What `splice` takes of one modality. */
export interface SplicedMedia {
  readonly embeddings: Tensor
  /** int64 [..., 2]: batch row and position of every token. */
  readonly rows: Tensor
  /** Graph inputs that belong to it. */
  readonly inputs: readonly Tensor[]
}

/**
 * One grid: graph input `<modality>.rows` int64 [media, tokensOut, 2], the batch row and position of every projected token. Where media differ, `<modality>.places` int64 [n]
 * chooses the tokens that are no padding, counted through [media, tokensOut], and `<modality>.rows` is [n, 2]. The separator is the last of them.
 */
export function placed(path: Pick<MediaPath, 'grid'>, { modality, embeddings, inputs, separator }: ProjectedMedia): SplicedMedia {
  const [media, tokens, width] = [dimAt(embeddings.shape, 0), dimAt(embeddings.shape, 1), dimAt(embeddings.shape, 2)]
  if (path.grid !== undefined) {
    const rows = input(`${modality}.rows`, 'int64', [media, tokens, 2])
    return { embeddings, rows, inputs: [...inputs, rows] }
  }
  const count = size(`${modality}_tokens`)
  const places = input(`${modality}.places`, 'int64', [count])
  const rows = input(`${modality}.rows`, 'int64', [count, 2])
  const flat = reshape(embeddings, [multiplyDims(media, tokens), width])
  const table = separator === undefined ? flat : concat([flat, unsqueeze(separator, [0])], 0)
  return { embeddings: gather(table, places, 0), rows, inputs: [...inputs, places, rows] }
}

/** inputsEmbeds [batch, tokens, hiddenSize] with the media's rows in place. */
export function splice(inputsEmbeds: Tensor, media: readonly Pick<SplicedMedia, 'embeddings' | 'rows'>[]): Tensor {
  return media.reduce((embeds, { embeddings, rows }) => scatterNd(embeds, rows, embeddings), inputsEmbeds)
}
