/** A model's eyes and ears: for each modality an encoder and a projector. */
import { ModalignError } from '../errors.ts'
import type { Encoder, Modality, Projector } from './contracts.ts'
import type { MediaPath } from './splice.ts'
import { projectedGrid, separatorPlaces } from './token-grid.ts'

export interface Branch<M extends Modality = Modality> {
  readonly encoder: Encoder<M>
  readonly projector: Projector
}
export interface Branches {
  readonly image?: Branch<'image'>
  readonly audio?: Branch<'audio'>
  readonly video?: Branch<'video'>
}

export const modalities = ['image', 'audio', 'video'] as const satisfies readonly Modality[]

/** The modalities that there are branches for, always in one order. */
export function modalitiesOf(branches: Branches): readonly Modality[] {
  return modalities.filter((modality) => branches[modality] !== undefined)
}

/** @throws MODEL_MODALITY */
export function branchOf(branches: Branches, modality: Modality): Branch {
  const branch: Branch | undefined = branches[modality]
  if (branch !== undefined) return branch
  const known = modalitiesOf(branches)
  throw new ModalignError({
    code: 'MODEL_MODALITY',
    got: modality,
    expected: `${known.join(' or ')}: the model has no encoder for anything else`,
  })
}

/** Branches whose encoders may be of any modality, once each is known to stand in its own place. @throws MODEL_MODALITY */
export function checkedBranches({ image, audio, video }: Readonly<Partial<Record<Modality, Branch>>>): Branches {
  return {
    ...(image && { image: ofModality(image, 'image') }),
    ...(audio && { audio: ofModality(audio, 'audio') }),
    ...(video && { video: ofModality(video, 'video') }),
  }
}

function ofModality<M extends Modality>({ encoder, projector }: Branch, modality: M): Branch<M> {
  if (isOf(encoder, modality)) return { encoder, projector }
  throw new ModalignError({
    code: 'MODEL_MODALITY',
    field: `/${modality}/encoder`,
    got: `${encoder.label}, an encoder for ${encoder.modality}`,
    expected: `one for ${modality}`,
  })
}

function isOf<M extends Modality>(encoder: Encoder, modality: M): encoder is Encoder & Encoder<M> {
  return encoder.modality === modality
}

/** @throws MODEL_MODALITY for an encoder in another modality's place, or no encoder at all */
export function checkBranches(branches: Branches): void {
  const known = modalitiesOf(branches)
  if (known.length === 0) throw new ModalignError({ code: 'MODEL_MODALITY', got: 'no encoder', expected: 'at least one' })
  checkedBranches(branches)
}

/** Whether media of this encoder differ in their numbers of tokens, or have separators between them. */
export function gridVaries({ modality, gridVaries: varies }: Pick<Encoder, 'modality' | 'gridVaries'>): boolean {
  return varies ?? modality !== 'image'
}

export function mediaPath(modality: Modality, { encoder, projector }: Branch, embeddingRms: number): MediaPath {
  const grid = encoder.grid({})
  const separated = separatorPlaces(projectedGrid(projector, grid)).length > 0
  return {
    modality,
    projector,
    grid: separated || gridVaries(encoder) ? undefined : grid,
    width: encoder.width,
    embeddingRms,
    ...(separated && { separated }),
    ...(encoder.trained !== undefined && { trained: encoder.trained }),
  }
}
