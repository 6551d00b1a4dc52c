/** Media whose encoder is trained: a step takes its units, pictures or windows of sound, and features come out of its layers. */
import { ModalignError, unreachable } from '../errors.ts'
import { gatherNd } from '../graph/operators/gather-nd.ts'
import { mul } from '../graph/operators/mul.ts'
import { unsqueeze } from '../graph/operators/unsqueeze.ts'
import { input, type Tensor } from '../graph/tensor.ts'
import { float32Tensor, int64Tensor } from '../tensors.ts'
import type { EncoderUnit, Modality, TrainedEncoder } from './contracts.ts'
import { marks, type StackedFeatures, stackedPlaces } from './media-feeds.ts'
import type { MediaPath } from './splice.ts'

/** What takes the place of a path's features. */
export type TrainedLayers = Pick<TrainedEncoder, 'declared' | 'graph'>

export interface EncodedMedia {
  readonly inputs: readonly Tensor[]
  /** Of the shape of the input `<modality>.features` that a frozen encoder has. */
  readonly features: Tensor
}

/**
 * The features that a trained encoder makes of its units. Inputs: `<modality>.<name>` for each input of the encoder; int64 `<modality>.features.places` [..., 2], the unit and
 * the token of it that stand at each place; float32 `<modality>.features.kept` [...], 0 at places of padding.
 */
export function encodedMedia(modality: Modality, { graph }: TrainedLayers, shape: Tensor['shape']): EncodedMedia {
  const units = graph.inputs.map((one) => input(unitInput(modality, one), one.dtype, one.shape))
  const places = input(`${modality}.features.places`, 'int64', [...shape.slice(0, -1), 2])
  const kept = input(`${modality}.features.kept`, 'float32', shape.slice(0, -1))
  const features = mul(gatherNd(graph.build(units), places), unsqueeze(kept, [shape.length - 1]))
  return { inputs: [...units, places, kept], features }
}

/**
 * Stacks the units of media, which have one size, and says where their features go.
 *
 * @throws BATCH_FEATURES if a medium has other features than its path says, BATCH_UNITS if units differ in size.
 */
export function stackUnits(path: MediaPath, { graph }: TrainedLayers, media: readonly (readonly EncoderUnit[])[]): StackedFeatures {
  const { modality } = path
  const units = media.flat()
  const sizes = new Set(units.map(({ value }) => value.dims.slice(1).join(' x ')))
  if (sizes.size > 1)
    throw new ModalignError({
      code: 'BATCH_UNITS',
      field: modality,
      got: `windows of ${[...sizes].join(', ')} numbers in one batch`,
      expected: 'windows of one size, which go through the trained encoder together',
      hint: 'give batchSize 1 and accumulation, or an encoder that fills its windows',
    })
  const lengths = media.map((own) => own.reduce((sum, { tokens }) => sum + tokens, 0))
  const { tokens, dims, feeds, tokensOut } = stackedPlaces(path, lengths)
  const places = new BigInt64Array(media.length * tokens * 2)
  let unit = 0
  for (const [medium, own] of media.entries()) {
    let place = medium * tokens
    for (const { tokens: count } of own) {
      for (let token = 0; token < count; token++, place++) places.set([BigInt(unit), BigInt(token)], 2 * place)
      unit++
    }
  }
  const values = Object.entries(graph.feeds(units)).map(([name, value]) => [`${modality}.${name}`, value] as const)
  return {
    feeds: {
      ...Object.fromEntries(values),
      [`${modality}.features.places`]: int64Tensor(places, [...dims, 2]),
      [`${modality}.features.kept`]: float32Tensor(marks(lengths, tokens), dims),
      ...feeds,
    },
    tokensOut,
  }
}

function unitInput(modality: Modality, { node }: Tensor): string {
  return node.kind === 'input' ? `${modality}.${node.name}` : unreachable('an encoder takes inputs')
}
