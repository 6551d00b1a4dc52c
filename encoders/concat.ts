/** Several image encoders as one: their features side by side in channels (DINOv2 + SigLIP, as Prismatic fuses them) or one after another in tokens. */
import { ModalignError } from '../src/errors.ts'
import type { Encoder, EncoderRecipe, Features, MediaSize, TokenGrid } from '../src/model/contracts.ts'
import { gridTokens, sameGrid } from '../src/model/token-grid.ts'
import type { NamedTensors } from '../src/tensors.ts'
import { requireFrozen } from './blocks/frozen-parts.ts'
import { digest } from './onnx-file.ts'

export interface ConcatOptions {
  /**
   * `channel` (default): token by token, widths add up; the encoders must give equal grids. `token`: all tokens of the first, then all of the second, and so on; the
   * encoders must be of equal width.
   */
  readonly by?: 'channel' | 'token' | undefined
}

/**
 * Fuses encoders. They run one after another on the same picture, each with its own preprocessing; disposing of the result disposes of them.
 *
 * @throws {ModalignError} `ENCODER_FUSION` (fewer than two encoders; grids or widths that do not fit)
 *
 * @example
 * const encoder = concat([await dinov2('models/dinov2-large'), await siglip('models/siglip-so400m-patch14-384')])
 */
export function concat(encoders: readonly Encoder<'image'>[], { by = 'channel' }: ConcatOptions = {}): Encoder<'image'> {
  const [first] = encoders
  if (first === undefined || encoders.length < 2)
    throw new ModalignError({ code: 'ENCODER_FUSION', got: `${encoders.length} encoders`, expected: 'at least two' })
  for (const encoder of encoders) requireFrozen(encoder)
  requireFit(encoders, by, {})
  const recipe = recipeOf(encoders, by)
  return {
    modality: 'image',
    label: encoders.map(({ label }) => label).join(' + '),
    fingerprint: digest({ kind: 'concat 1', by, encoders: encoders.map(({ fingerprint }) => fingerprint) }),
    ...(recipe !== undefined && { recipe }),
    width: by === 'token' ? first.width : encoders.reduce((sum, { width }) => sum + width, 0),
    gridVaries: encoders.some(({ gridVaries }) => gridVaries === true),
    grid(size) {
      requireFit(encoders, by, size)
      return by === 'channel' ? first.grid(size) : { segments: encoders.flatMap((encoder) => encoder.grid(size).segments) }
    },
    async preprocess(image) {
      const parts: Record<string, NamedTensors[string]> = {}
      for (const [index, encoder] of encoders.entries())
        for (const [name, value] of Object.entries(await encoder.preprocess(image))) parts[`${index}.${name}`] = value
      return parts
    },
    async encode(inputs, options) {
      const features: Features[] = []
      for (const [index, encoder] of encoders.entries())
        features.push(
          await encoder.encode(
            inputs.map((named) => partOf(named, index)),
            options,
          ),
        )
      return by === 'channel' ? sideBySide(features) : oneAfterAnother(features)
    },
    async dispose() {
      await Promise.all(encoders.map((encoder) => encoder.dispose()))
    },
  }
}

/** @throws {ModalignError} `ENCODER_FUSION` */
function requireFit(encoders: readonly Encoder<'image'>[], by: 'channel' | 'token', size: MediaSize): void {
  const [first] = encoders
  if (first === undefined) return
  const refuse = (encoder: Encoder, own: string, other: string): ModalignError =>
    new ModalignError({ code: 'ENCODER_FUSION', got: `${other} (${encoder.label})`, expected: `${own}, as ${first.label} gives` })
  for (const encoder of encoders.slice(1)) {
    if (by === 'token' && encoder.width !== first.width) throw refuse(encoder, `width ${first.width}`, `width ${encoder.width}`)
    const [grid, own] = [encoder.grid(size), first.grid(size)]
    if (by === 'channel' && !sameGrid(grid, own)) throw refuse(encoder, shown(own), shown(grid))
  }
}

function shown(grid: TokenGrid): string {
  const [only] = grid.segments
  return grid.segments.length === 1 && only !== undefined
    ? `${only.rows} x ${only.columns} tokens`
    : `${gridTokens(grid)} tokens in ${grid.segments.length} tiles`
}

function partOf(named: NamedTensors, index: number): NamedTensors {
  const prefix = `${index}.`
  return Object.fromEntries(
    Object.entries(named).flatMap(([name, value]) => (name.startsWith(prefix) ? [[name.slice(prefix.length), value]] : [])),
  )
}

function sideBySide(features: readonly Features[]): Features {
  const [{ count, tokens } = { count: 0, tokens: 0 }] = features
  const width = features.reduce((sum, part) => sum + part.width, 0)
  const data = new Float32Array(count * tokens * width)
  let offset = 0
  for (const part of features) {
    for (let row = 0; row < count * tokens; row++)
      data.set(part.data.subarray(row * part.width, (row + 1) * part.width), row * width + offset)
    offset += part.width
  }
  return { count, tokens, width, data }
}

function oneAfterAnother(features: readonly Features[]): Features {
  const [{ count, width } = { count: 0, width: 0 }] = features
  const tokens = features.reduce((sum, part) => sum + part.tokens, 0)
  const data = new Float32Array(count * tokens * width)
  let offset = 0
  for (const part of features) {
    const each = part.tokens * width
    for (let input = 0; input < count; input++)
      data.set(part.data.subarray(input * each, (input + 1) * each), input * tokens * width + offset)
    offset += each
  }
  return { count, tokens, width, data }
}

/** Known if all parts know theirs. */
function recipeOf(encoders: readonly Encoder<'image'>[], by: 'channel' | 'token'): EncoderRecipe | undefined {
  const parts = encoders.flatMap(({ recipe }) =>
    recipe === undefined
      ? []
      : [{ family: recipe.family, ...(recipe.model !== undefined && { model: recipe.model }), options: recipe.options }],
  )
  return parts.length === encoders.length ? { family: 'concat', options: { by, encoders: parts } } : undefined
}
