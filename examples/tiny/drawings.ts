/**
 * The emoji drawings of the demonstration: which concepts there are, and what each looks like in each style.
 *
 * A style is an Iconify JSON package of openly licensed SVG drawings; a concept is one emoji (without skin tones) that every style draws.
 */
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import sharp from 'sharp'
import { z } from 'zod'
import { ModalignError } from '../../src/errors.ts'
import type { DecodedImage } from '../../src/model/contracts.ts'

/** A drawing style: the npm package that holds it, who drew it and under which licence. */
export interface StyleDescription {
  readonly package: string
  readonly author: string
  readonly licence: string
}

export const styles = {
  fluent: { package: '@iconify-json/fluent-emoji-flat', author: 'Microsoft Corporation', licence: 'MIT' },
  noto: { package: '@iconify-json/noto', author: 'Google Inc', licence: 'Apache-2.0' },
  twemoji: { package: '@iconify-json/twemoji', author: 'Twitter', licence: 'CC-BY-4.0' },
} as const satisfies Readonly<Record<string, StyleDescription>>

export type Style = keyof typeof styles
/** The styles that the projector is tuned on. */
export const trainingStyles = ['noto', 'twemoji'] as const satisfies readonly Style[]
/** The style that no training step ever sees. */
export const heldOutStyle = 'fluent' satisfies Style

const conceptSchema = z.strictObject({
  id: z.string().regex(/^[0-9a-f]+(-[0-9a-f]+)*$/),
  character: z.string().min(1),
  name: z.string().min(1),
  group: z.string().min(1),
  subgroup: z.string().min(1),
  tags: z.array(z.string().min(1)),
  icons: z.strictObject({ fluent: z.string().min(1), noto: z.string().min(1), twemoji: z.string().min(1) }),
})

/**
 * One emoji. `id`: its code points in lower-case hexadecimal, joined by `-`, variation selectors left out. `name`: lower case, different from every
 * other's; the answer to "What is this?". `icons`: what each style's package calls its drawing.
 */
export interface Concept {
  readonly id: string
  readonly character: string
  readonly name: string
  readonly group: string
  readonly subgroup: string
  readonly tags: readonly string[]
  readonly icons: Readonly<Record<Style, string>>
}

/**
 * The concepts of `concepts.json`, in its order (the order of the Unicode emoji list).
 *
 * @throws ModalignError `DATASET_JSON` if the file is not JSON, `DATASET_RECORD` (with record and field) if it is not a list of concepts.
 * @example
 * const concepts = await readConcepts('examples/tiny/concepts.json')
 * concepts[0]?.name // 'grinning face'
 */
export async function readConcepts(file: string | URL): Promise<readonly Concept[]> {
  const path = file.toString()
  let value: unknown
  try {
    value = JSON.parse(await readFile(file, 'utf8'))
  } catch (cause) {
    throw new ModalignError({
      code: 'DATASET_JSON',
      file: path,
      got: cause instanceof Error ? cause.message : String(cause),
      expected: 'a JSON list of concepts',
      cause,
    })
  }
  const parsed = z.array(conceptSchema).safeParse(value)
  if (!parsed.success) {
    const [issue] = parsed.error.issues
    const [record, ...field] = issue?.path ?? []
    throw new ModalignError({
      code: 'DATASET_RECORD',
      file: path,
      record: typeof record === 'number' ? record : undefined,
      field: `/${field.map(String).join('/')}`,
      got: issue?.message ?? 'no list',
      expected: 'a concept',
      hint: 'run examples/tiny/build-dataset.ts again',
    })
  }
  return parsed.data
}

const box = { left: z.number().optional(), top: z.number().optional(), width: z.number().optional(), height: z.number().optional() }
const iconSetSchema = z.object({ icons: z.record(z.string(), z.object({ body: z.string(), ...box })), ...box })

/** One file of a style's package. Throws `DEPENDENCY_MISSING` if the package is not installed. */
export async function readStyleFile(style: Style, file: 'icons.json' | 'chars.json'): Promise<unknown> {
  const name = styles[style].package
  let path: string
  try {
    path = createRequire(import.meta.url).resolve(`${name}/${file}`)
  } catch (cause) {
    throw new ModalignError({
      code: 'DEPENDENCY_MISSING',
      got: `no package ${name}`,
      expected: 'the drawings',
      hint: `npm install ${name}`,
      cause,
    })
  }
  return JSON.parse(await readFile(path, 'utf8'))
}

/** The side of a drawing in pixels: what the tiny pair's encoder takes, so that nothing is resized after rasterising. */
export const drawingSize = 224

/** The drawings of one style. */
export interface Drawings {
  readonly style: Style
  /** The concept's drawing as a complete SVG document of `size` x `size` pixels. */
  svg(concept: Concept, size?: number): string
  /** The drawing on white, `size` x `size` (default 224) RGB pixels. */
  render(concept: Concept, size?: number): Promise<DecodedImage>
}

/**
 * Opens the drawings of one style. Rasterising is librsvg's (through sharp): about 2 to 3 ms for 224 x 224 on one core.
 *
 * @throws ModalignError `DEPENDENCY_MISSING` if the style's package is not installed; `DATASET_DRAWING` (from `svg` and `render`) if it lacks the drawing.
 * @example
 * const concepts = await readConcepts('examples/tiny/concepts.json')
 * const drawings = await openDrawings('noto')
 * const images = await Promise.all(concepts.slice(0, 2).map((concept) => drawings.render(concept)))
 * images[0]?.data.length // 224 * 224 * 3
 */
export async function openDrawings(style: Style): Promise<Drawings> {
  const parsed = iconSetSchema.safeParse(await readStyleFile(style, 'icons.json'))
  if (!parsed.success) {
    throw new ModalignError({
      code: 'DATASET_DRAWING',
      file: styles[style].package,
      got: parsed.error.issues[0]?.message ?? 'another format',
      expected: 'Iconify JSON',
      cause: parsed.error,
    })
  }
  const set = parsed.data

  function svg(concept: Concept, size = drawingSize): string {
    const icon = set.icons[concept.icons[style]]
    if (icon === undefined) {
      throw new ModalignError({
        code: 'DATASET_DRAWING',
        file: styles[style].package,
        got: `no icon '${concept.icons[style]}'`,
        expected: `the drawing of ${concept.name}`,
        hint: 'install the version named in package-lock.json, or run examples/tiny/build-dataset.ts again',
      })
    }
    const left = icon.left ?? set.left ?? 0
    const top = icon.top ?? set.top ?? 0
    const width = icon.width ?? set.width ?? 16
    const height = icon.height ?? set.height ?? 16
    return `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="${size}" height="${size}" viewBox="${left} ${top} ${width} ${height}">${icon.body}</svg>`
  }

  async function render(concept: Concept, size = drawingSize): Promise<DecodedImage> {
    const pixels = await sharp(Buffer.from(svg(concept, size)))
      .flatten({ background: '#ffffff' })
      .removeAlpha()
      .raw()
      .toBuffer()
    return { width: size, height: size, data: pixels }
  }

  return { style, svg, render }
}

/**
 * Renders many drawings in order, as many at once as there are cores.
 *
 * @example
 * for await (const { concept, image } of renderAll(await openDrawings('noto'), concepts)) console.log(concept.name, image.data.length)
 */
export async function* renderAll(
  drawings: Drawings,
  concepts: readonly Concept[],
  parallel = availableParallelism(),
): AsyncGenerator<{ readonly concept: Concept; readonly image: DecodedImage }> {
  for (let start = 0; start < concepts.length; start += parallel) {
    const slice = concepts.slice(start, start + parallel)
    const images = await Promise.all(slice.map(async (concept) => ({ concept, image: await drawings.render(concept) })))
    yield* images
  }
}
