/**
 * Writes `concepts.json`: every emoji (without skin tones) that all styles draw, with its name, groups and tags.
 *
 *     npx tsx examples/tiny/build-dataset.ts [FILE]
 *
 * Needs the style packages and `emojibase-data` (names, tags, groups). Emoji are matched by code point through the packages' `chars.json`.
 */
import { readFile, rename, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { z } from 'zod'
import { type Concept, readStyleFile, type Style, styles } from './drawings.ts'

const emojiSchema = z.array(
  z.object({
    label: z.string(),
    hexcode: z.string(),
    group: z.int().optional(),
    subgroup: z.int().optional(),
    order: z.int().optional(),
    tags: z.array(z.string()).optional(),
  }),
)
const groupsSchema = z.object({ groups: z.record(z.string(), z.string()), subgroups: z.record(z.string(), z.string()) })
const charactersSchema = z.record(z.string(), z.string())

async function readJson<T>(specifier: string, schema: z.ZodType<T>): Promise<T> {
  return schema.parse(JSON.parse(await readFile(createRequire(import.meta.url).resolve(specifier), 'utf8')))
}

/** Code points without the variation selector that asks for the coloured form: the packages disagree about writing it. */
function codePoints(hexcode: string): string {
  return hexcode.toLowerCase().replaceAll('-fe0f', '')
}

/** Typewriter quotes, lower case: what the answers are written in. */
function plain(text: string): string {
  return text.toLowerCase().replaceAll('’', "'").replaceAll(/[“”]/g, '"')
}

/** `food-drink` -> `food and drink`. */
function groupName(key: string): string {
  return key.replaceAll('-', ' and ')
}

/** All concepts that every style draws, in the order of the Unicode emoji list. */
export async function collectConcepts(): Promise<readonly Concept[]> {
  const emoji = await readJson('emojibase-data/en/data.json', emojiSchema)
  const { groups, subgroups } = await readJson('emojibase-data/meta/groups.json', groupsSchema)
  const charactersOf = async (style: Style): Promise<ReadonlyMap<string, string>> => {
    const characters = charactersSchema.parse(await readStyleFile(style, 'chars.json'))
    return new Map(Object.entries(characters).map(([hexcode, icon]) => [codePoints(hexcode), icon]))
  }
  const fluent = await charactersOf('fluent')
  const noto = await charactersOf('noto')
  const twemoji = await charactersOf('twemoji')

  const concepts: Concept[] = []
  for (const { label, hexcode, group, subgroup, tags = [] } of emoji.toSorted((a, b) => (a.order ?? 0) - (b.order ?? 0))) {
    const id = codePoints(hexcode)
    const icons = { fluent: fluent.get(id), noto: noto.get(id), twemoji: twemoji.get(id) }
    const groupKey = groups[String(group)]
    const subgroupKey = subgroups[String(subgroup)]
    if (
      icons.fluent === undefined ||
      icons.noto === undefined ||
      icons.twemoji === undefined ||
      groupKey === undefined ||
      subgroupKey === undefined
    )
      continue
    concepts.push({
      id,
      character: String.fromCodePoint(...hexcode.split('-').map((point) => Number.parseInt(point, 16))),
      name: plain(label),
      group: groupName(groupKey),
      subgroup: subgroupKey.replaceAll('-', ' '),
      tags: [...new Set(tags.map(plain))],
      icons: { fluent: icons.fluent, noto: icons.noto, twemoji: icons.twemoji },
    })
  }
  const names = new Map<string, string>()
  for (const { id, name } of concepts) {
    const other = names.get(name)
    if (other !== undefined) throw new Error(`two concepts are named '${name}': ${other} and ${id}`)
    names.set(name, id)
  }
  return concepts
}

/** One concept a line, so that a change of the data is readable in a diff. */
export function formatConcepts(concepts: readonly Concept[]): string {
  return `[\n${concepts.map((concept) => JSON.stringify(concept)).join(',\n')}\n]\n`
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const file = process.argv[2] ?? fileURLToPath(new URL('./concepts.json', import.meta.url))
  const concepts = await collectConcepts()
  await writeFile(`${file}.part`, formatConcepts(concepts))
  await rename(`${file}.part`, file)
  process.stdout.write(`${concepts.length} concepts drawn in ${Object.keys(styles).length} styles: ${file}\n`)
}
