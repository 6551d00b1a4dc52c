import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { collectConcepts, formatConcepts } from './build-dataset.ts'
import { type Concept, drawingSize, openDrawings, readConcepts, renderAll, type Style, styles } from './drawings.ts'

const file = new URL('./concepts.json', import.meta.url)
const allStyles: readonly Style[] = ['fluent', 'noto', 'twemoji']

let folder = ''
let concepts: readonly Concept[] = []
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-drawings-'))
  concepts = await readConcepts(file)
})
afterAll(() => rm(folder, { recursive: true, force: true }))

function named(name: string): Concept {
  const concept = concepts.find((one) => one.name === name)
  if (concept === undefined) throw new Error(`no concept ${name}`)
  return concept
}

/** Mean colour of a drawing. */
async function meanColour(style: Style, name: string): Promise<readonly number[]> {
  const { data } = await (await openDrawings(style)).render(named(name), 32)
  const sums = [0, 0, 0]
  for (const [index, value] of data.entries()) sums[index % 3] = (sums[index % 3] ?? 0) + value
  return sums.map((sum) => (3 * sum) / data.length)
}

describe('concepts', () => {
  test('the committed file is what the script writes', async () => {
    expect(formatConcepts(await collectConcepts())).toBe(await readFile(file, 'utf8'))
  })

  test('there are enough, all different, none with a skin tone', () => {
    expect(concepts.length).toBeGreaterThanOrEqual(1500)
    for (const key of ['id', 'character', 'name'] as const)
      expect(new Set(concepts.map((concept) => concept[key])).size).toBe(concepts.length)
    for (const { id, name } of concepts) {
      expect(id).not.toMatch(/1f3f[b-f]/)
      expect(name).toBe(name.toLowerCase().trim())
    }
  })

  test('an id is the code points of its character', () => {
    for (const { id, character } of concepts) {
      const points = [...character].map((one) => one.codePointAt(0)?.toString(16).padStart(4, '0')).filter((point) => point !== 'fe0f')
      expect(points.join('-')).toBe(id)
    }
  })

  test.each([
    ['not JSON', 'DATASET_JSON', undefined],
    ['[{"id": "1f600"}]', 'DATASET_RECORD', '/character'],
    ['{}', 'DATASET_RECORD', undefined],
  ])('refuses %s', async (text, code, field) => {
    const path = join(folder, 'concepts.json')
    await writeFile(path, text)
    await expect(readConcepts(path)).rejects.toMatchObject({ code, details: { file: path, ...(field !== undefined && { field }) } })
  })
})

describe('drawings', () => {
  test.each(allStyles)('%s has its package’s licence and a drawing of every concept', async (style) => {
    const info: unknown = JSON.parse(
      await readFile(new URL(`../../node_modules/${styles[style].package}/info.json`, import.meta.url), 'utf8'),
    )
    expect(info).toMatchObject({ license: { spdx: styles[style].licence }, author: { name: expect.any(String) } })
    const drawings = await openDrawings(style)
    for (const concept of concepts) expect(drawings.svg(concept)).toMatch(/^<svg .*<\/svg>$/s)
  })

  test.each(allStyles)('%s: a tomato is red, a cucumber green, on white', async (style) => {
    const [red = 0, green = 0, blue = 0] = await meanColour(style, 'tomato')
    expect(red).toBeGreaterThan(green)
    expect(red).toBeGreaterThan(blue)
    const [r = 0, g = 0, b = 0] = await meanColour(style, 'cucumber')
    expect(g).toBeGreaterThan(r)
    expect(g).toBeGreaterThan(b)
    const { data, width, height } = await (await openDrawings(style)).render(named('tomato'))
    expect([width, height, data.length]).toEqual([drawingSize, drawingSize, 3 * drawingSize ** 2])
    expect([...data.subarray(0, 3)]).toEqual([255, 255, 255])
  })

  test('renderAll keeps the order', async () => {
    const drawings = await openDrawings('twemoji')
    const some = concepts.slice(0, 5)
    const rendered: (readonly [string, number])[] = []
    for await (const { concept, image } of renderAll(drawings, some)) rendered.push([concept.id, image.data.length])
    expect(rendered).toEqual(some.map(({ id }) => [id, 3 * drawingSize ** 2]))
  })

  test('a concept that the style does not draw is an error that names it', async () => {
    const drawings = await openDrawings('noto')
    const tomato = named('tomato')
    await expect(drawings.render({ ...tomato, icons: { ...tomato.icons, noto: 'no-such-icon' } })).rejects.toMatchObject({
      code: 'DATASET_DRAWING',
      details: { got: "no icon 'no-such-icon'", expected: 'the drawing of tomato' },
    })
  })
})
