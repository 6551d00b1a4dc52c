/** Boxes in what records say, carried to where an encoder's preprocessing moves the pixels. */
import { z } from 'zod'
import { ModalignError } from '../src/errors.ts'
import { imageSize } from '../src/media/image-size.ts'
import type { PictureSize } from '../src/media/picture-size.ts'
import type { ImagePreprocessing } from '../src/media/preprocess.ts'
import { type Box, remapBox, viewsOf } from '../src/media/views.ts'
import type { DatasetSource, MediaSource, Part, Sample, Turn } from '../src/model/contracts.ts'

/** How a box is written. Plain data. */
export interface BoxNotation {
  /** What stands around the numbers `x1`, `y1`, `x2`, `y2`: the left, upper, right and lower edge. */
  readonly template: string
  /** Parts of the width and height: of 1, or of 1000; or pixels. */
  readonly unit: 'fraction' | 'thousandth' | 'pixel'
  /** Decimals that are written. */
  readonly digits: number
  /** Zeros at the end are left out, but for one, as Python prints floats. */
  readonly short?: boolean
}

/** As the field's data write boxes. Their numbers are the picture's own, but LLaVA-1.5 and Shikra count from the picture padded to a square. */
export const boxNotations = {
  /** LLaVA-1.5's mixture (Visual Genome, RefCOCO): `[0.32, 0.0, 0.55, 1.0]`. */
  llava: { template: '[x1, y1, x2, y2]', unit: 'fraction', digits: 2, short: true },
  /** Shikra: `[0.320,0.000,0.550,1.000]`. */
  shikra: { template: '[x1,y1,x2,y2]', unit: 'fraction', digits: 3 },
  /** Qwen-VL: `<box>(320,0),(550,1000)</box>`. */
  'qwen-vl': { template: '<box>(x1,y1),(x2,y2)</box>', unit: 'thousandth', digits: 0 },
  /** InternVL: `<box>[[320, 0, 550, 1000]]</box>`. */
  internvl: { template: '<box>[[x1, y1, x2, y2]]</box>', unit: 'thousandth', digits: 0 },
  /** Qwen2.5-VL: pixels of the picture as it was resized, `[102, 0, 176, 448]`. */
  'qwen2.5-vl': { template: '[x1, y1, x2, y2]', unit: 'pixel', digits: 0 },
} as const satisfies Readonly<Record<string, BoxNotation>>
export type BoxNotationName = keyof typeof boxNotations

export interface GroundingOptions {
  /** How boxes are to be written. */
  readonly boxes: BoxNotationName | BoxNotation
  /** What the encoder does to pictures (`encoder.preprocessing`): numbers become those of what it sees. Of tiles, the view of the whole. Absent: those of the picture as it is. */
  readonly preprocessing?: ImagePreprocessing | undefined
  /**
   * Boxes that stand in the records' texts already: how they are written, and whether they count from the picture (default) or from it padded to a square. Absent: texts are left as they are, but
   * for placeholders.
   */
  readonly written?: { readonly notation: BoxNotationName | BoxNotation; readonly of?: 'picture' | 'square' } | undefined
  /** Records with a box of which a crop leaves less than this share are bad. Default 0: any part that can be seen is enough. */
  readonly leastVisible?: number | undefined
  /** The size of a picture. Default: its header says it. */
  readonly size?: ((source: MediaSource) => Promise<PictureSize>) | undefined
}

/**
 * A dataset whose boxes are written in one notation, in the coordinates of what the encoder sees: padded, cropped or squeezed as its pixels are.
 *
 * Records bring boxes in two ways. As `objects: { ref?: [name, ...], bbox: [[x1, y1, x2, y2], ...], bbox_type?: 'real' | 'norm1', image_id?: [number, ...] }` (ms-swift) beside the
 * conversation, whose k-th `<bbox>` and `<ref-object>` stand for the k-th of each; `real` (default) counts pixels, `norm1` parts of 1, and `image_id` says of which of the record's pictures,
 * from 0. Or in the texts themselves, as LLaVA's and Shikra's data have them (`written`): there a box is of the picture that stands before it.
 *
 * @throws ModalignError while iterating: `DATASET_BOX` (numbers that are no box of the picture), `DATASET_BOX_COUNT` (placeholders without boxes, or boxes without), `DATASET_BOX_IMAGE` (of no
 * picture), `DATASET_BOX_LOST` (a crop takes it away), `IMAGE_...` for a picture whose size cannot be told, and what the dataset throws
 * @example
 * const encoder = await clip('models/clip-vit-large-patch14-336')
 * const dataset = grounded(llava('refcoco.json', { root: 'coco' }), { boxes: 'llava', preprocessing: encoder.preprocessing })
 */
export function grounded(source: DatasetSource, options: GroundingOptions): DatasetSource {
  const size = options.size ?? ((medium: MediaSource) => imageSize(medium, { root: source.root }))
  return {
    ...source,
    async *samples(sampleOptions = {}) {
      const { onBad } = sampleOptions
      for await (const sample of source.samples(sampleOptions)) {
        let found: Sample | undefined
        try {
          found = await new Grounding(sample, options, size).sample()
        } catch (error) {
          if (!(error instanceof ModalignError) || onBad === undefined) throw error
          onBad(error)
        }
        if (found !== undefined) yield found
      }
    },
  }
}

const objectsSchema = z.object({
  ref: z.array(z.string()).default([]),
  bbox: z.array(z.tuple([z.number(), z.number(), z.number(), z.number()])),
  bbox_type: z.enum(['real', 'norm1']).default('real'),
  image_id: z.array(z.int().min(0)).optional(),
})

/** Left, upper, right and lower edge, in pixels of a picture. */
type Edges = readonly [x1: number, y1: number, x2: number, y2: number]

/** One sample on its way. */
class Grounding {
  private readonly given: Sample
  private readonly options: GroundingOptions
  private readonly size: (source: MediaSource) => Promise<PictureSize>
  /** Sources of its pictures. */
  private readonly images: readonly MediaSource[]
  private readonly sizes = new Map<number, Promise<PictureSize>>()
  private boxes = 0
  private names = 0

  constructor(given: Sample, options: GroundingOptions, size: (source: MediaSource) => Promise<PictureSize>) {
    this.given = given
    this.options = options
    this.size = size
    this.images = given.turns.flatMap(({ content }) => content.flatMap((part) => (part.type === 'image' ? [part.source] : [])))
  }

  async sample(): Promise<Sample> {
    const objects = this.objects()
    const turns = await this.turns(this.given.turns, objects)
    if (objects !== undefined) {
      const fault =
        this.boxes !== objects.bbox.length
          ? ['bbox', this.boxes, objects.bbox.length]
          : this.names !== objects.ref.length
            ? ['ref', this.names, objects.ref.length]
            : undefined
      if (fault !== undefined) {
        const [key, placeholders, listed] = fault
        throw this.fail(
          'DATASET_BOX_COUNT',
          `/objects/${key}`,
          `${placeholders} placeholders`,
          `${listed}, as many as objects.${key} lists`,
        )
      }
    }
    return { ...this.given, turns }
  }

  private objects(): z.infer<typeof objectsSchema> | undefined {
    const { objects } = this.given.origin?.fields ?? {}
    if (objects === undefined) return undefined
    const parsed = objectsSchema.safeParse(objects)
    if (parsed.success) return parsed.data
    const [issue] = parsed.error.issues
    throw this.fail('DATASET_BOX', `/objects/${issue?.path.join('/') ?? ''}`, issue?.message ?? 'something else', 'boxes [x1, y1, x2, y2]')
  }

  private async turns(turns: readonly Turn[], objects: z.infer<typeof objectsSchema> | undefined): Promise<readonly Turn[]> {
    const result: Turn[] = []
    let images = 0
    for (const [turn, { content, ...rest }] of turns.entries()) {
      const parts: Part[] = []
      for (const part of content) {
        if (part.type === 'image') images++
        parts.push(part.type === 'text' ? { type: 'text', text: await this.text(part.text, turn, Math.max(0, images - 1), objects) } : part)
      }
      result.push({ ...rest, content: parts })
    }
    return result
  }

  private async text(text: string, turn: number, image: number, objects: z.infer<typeof objectsSchema> | undefined): Promise<string> {
    const { written } = this.options
    const field = `/turns/${turn}`
    const moved =
      written === undefined
        ? text
        : await replaced(text, patternOf(notationOf(written.notation)), async (found) => {
            const { unit } = notationOf(written.notation)
            const picture = await this.sizeOf(image, field)
            const [x1, y1, x2, y2] = found.slice(1).map(Number)
            const edges: Edges = [x1 ?? 0, y1 ?? 0, x2 ?? 0, y2 ?? 0]
            return this.box(written.of === 'square' ? outOfSquare(edges, picture, unit) : inPixels(edges, picture, unit), image, field)
          })
    if (objects === undefined) return moved
    return replaced(moved, /<bbox>|<ref-object>/g, async ([placeholder]) => {
      if (placeholder === '<ref-object>') {
        const name = objects.ref[this.names++]
        if (name === undefined)
          throw this.fail('DATASET_BOX_COUNT', field, `${this.names} <ref-object>`, `${objects.ref.length}, as many as objects.ref lists`)
        return name
      }
      const index = this.boxes++
      const edges = objects.bbox[index]
      const at = `/objects/bbox/${index}`
      if (edges === undefined)
        throw this.fail('DATASET_BOX_COUNT', field, `${this.boxes} <bbox>`, `${objects.bbox.length}, as many as objects.bbox lists`)
      const own = objects.image_id?.[index] ?? 0
      return this.box(inPixels(edges, await this.sizeOf(own, at), objects.bbox_type === 'norm1' ? 'fraction' : 'pixel'), own, at)
    })
  }

  private async sizeOf(image: number, field: string): Promise<PictureSize> {
    const source = this.images[image]
    if (source === undefined)
      throw this.fail('DATASET_BOX_IMAGE', field, `a box of picture ${image}, counted from 0`, `one of ${this.images.length} pictures`)
    const known = this.sizes.get(image) ?? this.size(source)
    this.sizes.set(image, known)
    return known
  }

  /** Where the box lies in what the encoder sees, written. */
  private async box(edges: Edges, image: number, field: string): Promise<string> {
    const picture = await this.sizeOf(image, field)
    const { preprocessing, leastVisible = 0 } = this.options
    const notation = notationOf(this.options.boxes)
    const box = this.checked(edges, picture, field)
    if (preprocessing === undefined) return written(box, picture, notation)
    const views = viewsOf(picture, preprocessing)
    const whole = Math.max(
      0,
      views.findIndex(({ tile }) => tile === undefined),
    )
    const view = views[whole] ?? { ...picture, scaleX: 1, scaleY: 1, left: 0, top: 0 }
    const shown = remapBox(box, picture, preprocessing).find((one) => one.view === whole)
    if (shown === undefined || shown.visible < leastVisible) {
      throw this.fail(
        'DATASET_BOX_LOST',
        field,
        `a box of which ${Math.round((shown?.visible ?? 0) * 100)} % can be seen`,
        leastVisible > 0 ? `at least ${Math.round(leastVisible * 100)} %` : 'some of it',
        'preprocessing that pads or squeezes keeps all of a picture',
      )
    }
    return written(shown, view, notation)
  }

  private checked([x1, y1, x2, y2]: Edges, { width, height }: PictureSize, field: string): Box {
    // Data were rounded: what lies a little beyond the edge is meant to lie on it.
    const [slackX, slackY] = [1 + width / 100, 1 + height / 100]
    const within = x1 <= x2 && y1 <= y2 && x1 >= -slackX && y1 >= -slackY && x2 <= width + slackX && y2 <= height + slackY
    if (!within) {
      const shown = [x1, y1, x2, y2].map((value) => String(Math.round(value * 100) / 100)).join(', ')
      throw this.fail(
        'DATASET_BOX',
        field,
        `[${shown}] in pixels`,
        `x1 <= x2 and y1 <= y2 within ${width} x ${height}`,
        'see bbox_type, and `written.of`',
      )
    }
    const [left, top] = [Math.max(0, x1), Math.max(0, y1)]
    return { type: 'box', x: left, y: top, width: Math.min(width, x2) - left, height: Math.min(height, y2) - top }
  }

  private fail(code: string, field: string, got: string, expected: string, hint?: string): ModalignError {
    const { origin, id } = this.given
    return new ModalignError({ code, file: origin?.file ?? id, record: origin?.record, field, got, expected, hint })
  }
}

function notationOf(notation: BoxNotationName | BoxNotation): BoxNotation {
  return typeof notation === 'string' ? boxNotations[notation] : notation
}

const whole = (unit: BoxNotation['unit'], { width, height }: PictureSize): readonly [number, number] =>
  unit === 'fraction' ? [1, 1] : unit === 'thousandth' ? [1000, 1000] : [width, height]

function inPixels([x1, y1, x2, y2]: Edges, picture: PictureSize, unit: BoxNotation['unit']): Edges {
  const [across, down] = whole(unit, picture)
  const [x, y] = [picture.width / across, picture.height / down]
  return [x1 * x, y1 * y, x2 * x, y2 * y]
}

/** From the smallest square around the picture, the picture in its middle. Half a pixel of the padding's rounding is below what data write. */
function outOfSquare(edges: Edges, { width, height }: PictureSize, unit: BoxNotation['unit']): Edges {
  const side = Math.max(width, height)
  const [left, top] = [Math.floor((side - width) / 2), Math.floor((side - height) / 2)]
  const [x1, y1, x2, y2] = inPixels(edges, { width: side, height: side }, unit)
  return [x1 - left, y1 - top, x2 - left, y2 - top]
}

function written({ x, y, width, height }: Box, frame: PictureSize, notation: BoxNotation): string {
  const [across, down] = whole(notation.unit, frame)
  const numbers: Readonly<Record<string, string>> = {
    x1: shown((x / frame.width) * across, notation),
    y1: shown((y / frame.height) * down, notation),
    x2: shown(((x + width) / frame.width) * across, notation),
    y2: shown(((y + height) / frame.height) * down, notation),
  }
  return notation.template.replace(/[xy][12]/g, (name) => numbers[name] ?? name)
}

function shown(value: number, { digits, short = false }: BoxNotation): string {
  const fixed = value.toFixed(digits)
  return short && digits > 0 ? fixed.replace(/(\.\d+?)0+$/, '$1') : fixed
}

/** Finds what `written` writes, and other white space between the numbers. */
function patternOf({ template }: BoxNotation): RegExp {
  const parts = template.split(/[xy][12]/).map((part) =>
    part
      .split(/\s+/)
      .map((word) => word.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&'))
      .join('\\s*'),
  )
  return new RegExp(parts.join('\\s*(-?\\d+(?:\\.\\d+)?)\\s*'), 'g')
}

/** `String.replace` with replacements that have to be waited for, one after another. */
async function replaced(text: string, pattern: RegExp, replacement: (found: readonly string[]) => Promise<string>): Promise<string> {
  let result = ''
  let taken = 0
  for (const found of text.matchAll(pattern)) {
    result += text.slice(taken, found.index) + (await replacement(found))
    taken = found.index + found[0].length
  }
  return result + text.slice(taken)
}
