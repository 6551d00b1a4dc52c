import type { Dirent } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import { basename, dirname, extname, join, resolve } from 'node:path'
import { type ErrorData, ModalignError } from '../errors.ts'
import { containedPath } from '../io/contained-path.ts'
import { errnoOf, fileError } from '../io/file-error.ts'
import type { JsonValue } from '../io/json.ts'
import { type BadLine, type JsonlLine, readJsonl } from '../io/jsonl-log.ts'
import type { CaptionItem } from './caption.ts'
import { type Glob, hasGlobCharacters, parseGlob } from './glob.ts'

/** An item with the file to open: absolute, symbolic links followed. Empty where the item is bad. */
export interface InputItem extends CaptionItem {
  readonly path: string
}

export interface Inputs {
  readonly kind: 'folder' | 'glob' | 'jsonl' | 'file'
  /** Absolute. Ids are relative to it, and no item lies outside it. */
  readonly root: string
  /** Can be read again and again; each time the disk is looked at anew. In a fixed order. */
  readonly items: AsyncIterable<InputItem>
}

export interface InputOptions {
  /** With the dot, in lower case. Default: {@link imageExtensions}. */
  readonly extensions?: readonly string[] | undefined
  /** Where the items may lie. Default: the folder, the pattern's fixed part, or the folder of the JSONL file. */
  readonly root?: string | undefined
}

export const imageExtensions: readonly string[] = ['.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp', '.tif', '.tiff', '.avif']
export const audioExtensions: readonly string[] = ['.wav', '.flac', '.mp3', '.ogg', '.oga', '.opus', '.m4a', '.aac', '.aif', '.aiff']
export const videoExtensions: readonly string[] = ['.mp4', '.m4v', '.mov', '.mkv', '.webm', '.avi', '.mpg', '.mpeg', '.ogv']

/**
 * What to caption: a folder (with its folders; hidden files are passed over), a pattern such as `photos/**\/*.{jpg,png}`, a JSONL file of
 * `{"id"?, "source" | "image"}` with paths relative to that file, or one medium. Ids are paths relative to the root; JSONL records may bring their own.
 *
 * A malformed line, a missing file and a link out of the root become items with an `error`, so that they are recorded like any other bad item.
 *
 * @throws ModalignError `FILE_MISSING`, `FILE_PERMISSION`, `GLOB_MALFORMED`; while the items are read `INPUT_EMPTY`, `INPUT_ID_TWICE`
 * @example
 * const { items } = await inputItems('photos')
 * for await (const { id, path } of items) console.log(id, path)
 */
export async function inputItems(input: string, options: InputOptions = {}): Promise<Inputs> {
  const extensions = new Set(options.extensions ?? imageExtensions)
  const absolute = resolve(input)
  const found = await stat(absolute).catch((error: unknown) => {
    if (errnoOf(error) === 'ENOENT' && hasGlobCharacters(input)) return undefined
    throw fileError(error, input, 'a folder, a pattern, a JSONL file or a medium')
  })
  if (found === undefined) {
    const glob = parseGlob(input)
    const base = resolve(glob.base)
    await stat(base).catch((error: unknown) => {
      throw fileError(error, base, 'the folder that the pattern begins with')
    })
    const wanted = (path: string) => glob.matches(path)
    return {
      kind: 'glob',
      root: resolve(options.root ?? base),
      items: again(() => filesIn(base, { input, root: options.root ?? base, wanted, glob })),
    }
  }
  if (found.isDirectory()) {
    const wanted = (path: string) => extensions.has(extname(path).toLowerCase())
    return {
      kind: 'folder',
      root: resolve(options.root ?? absolute),
      items: again(() => filesIn(absolute, { input, root: options.root ?? absolute, wanted })),
    }
  }
  if (['.jsonl', '.ndjson'].includes(extname(absolute).toLowerCase())) {
    const root = resolve(options.root ?? dirname(absolute))
    return { kind: 'jsonl', root, items: again(() => records(absolute, root)) }
  }
  const root = resolve(options.root ?? dirname(absolute))
  return { kind: 'file', root, items: again(() => oneFile(absolute, root)) }
}

function again(items: () => AsyncIterable<InputItem>): AsyncIterable<InputItem> {
  return { [Symbol.asyncIterator]: () => items()[Symbol.asyncIterator]() }
}

async function* oneFile(path: string, root: string): AsyncGenerator<InputItem, void, undefined> {
  yield await located(basename(path), path, root)
}

interface Walk {
  readonly input: string
  readonly root: string
  /** `path`: relative to where the walk began. */
  readonly wanted: (path: string) => boolean
  readonly glob?: Glob
}

async function* filesIn(base: string, walk: Walk): AsyncGenerator<InputItem, void, undefined> {
  let any = false
  for await (const item of walkFolder(base, '', walk)) {
    any = true
    yield item
  }
  if (!any)
    throw new ModalignError({
      code: 'INPUT_EMPTY',
      file: walk.input,
      got: 'no file that fits',
      expected: walk.glob === undefined ? 'pictures in the folder' : 'files that match the pattern',
    })
}

/** Names are sorted by UTF-16 unit at each level, so the order is the same on every machine. */
async function* walkFolder(base: string, relative: string, walk: Walk): AsyncGenerator<InputItem, void, undefined> {
  const folder = join(base, relative)
  const entries = await readdir(folder, { withFileTypes: true }).catch((error: unknown): readonly Dirent[] => {
    throw fileError(error, folder)
  })
  // A plain file lies where its folder lies: only links have to be followed one by one. Of a folder that lies outside, each file says so.
  const real = await containedPath(walk.root, folder).catch(() => undefined)
  for (const entry of [...entries].sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = relative === '' ? entry.name : `${relative}/${entry.name}`
    if (entry.isDirectory()) {
      const hidden = entry.name.startsWith('.') && walk.glob === undefined
      if (!hidden && walk.glob?.mayContain(path) !== false) yield* walkFolder(base, path, walk)
    } else if ((walk.glob !== undefined || !entry.name.startsWith('.')) && walk.wanted(path)) {
      yield real !== undefined && entry.isFile()
        ? { id: path, source: path, path: join(real, entry.name) }
        : await located(path, join(base, path), walk.root)
    }
  }
}

async function located(id: string, path: string, root: string): Promise<InputItem> {
  try {
    return { id, source: id, path: await containedPath(root, path) }
  } catch (error) {
    return { id, source: id, path: '', error: itemError(error, { file: id }) }
  }
}

async function* records(file: string, root: string): AsyncGenerator<InputItem, void, undefined> {
  const lineOf = new Map<string, number>()
  let bad: BadLine[] = []
  function admit(item: InputItem, line: number): InputItem {
    const before = lineOf.get(item.id)
    if (before !== undefined) {
      const hint = 'give each record an "id" of its own'
      throw new ModalignError({
        code: 'INPUT_ID_TWICE',
        file,
        line,
        field: '/id',
        got: item.id,
        expected: `an id other than that of line ${before}`,
        hint,
      })
    }
    lineOf.set(item.id, line)
    return item
  }
  function* reported(): Generator<InputItem, void, undefined> {
    const waiting = bad
    bad = []
    for (const { error, line } of waiting)
      yield admit({ id: `line:${line}`, source: basename(file), path: '', error: { ...error.details, file: basename(file) } }, line)
  }
  for await (const line of readJsonl(file, { onBad: (found) => bad.push(found) })) {
    yield* reported()
    yield admit(await recordItem(line, file, root), line.line)
  }
  yield* reported()
  if (lineOf.size === 0)
    throw new ModalignError({ code: 'INPUT_EMPTY', file, got: 'no records', expected: 'one JSON object a line, with "source" or "image"' })
}

async function recordItem({ value, line, record }: JsonlLine, file: string, root: string): Promise<InputItem> {
  const place = { file: basename(file), line, record }
  let id = `line:${line}`
  let source = place.file
  try {
    const fields = objectFields(value)
    const ownId = fields.get('id')
    if (ownId !== undefined) id = idText(ownId)
    source = sourceText(fields)
    if (ownId === undefined) id = source
  } catch (error) {
    return { id, source, path: '', error: itemError(error, place) }
  }
  try {
    return { id, source, path: await containedPath(root, source) }
  } catch (error) {
    return { id, source, path: '', error: itemError(error, { ...place, field: '/source' }) }
  }
}

function objectFields(value: JsonValue): ReadonlyMap<string, JsonValue> {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) {
    throw new ModalignError({ code: 'INPUT_RECORD', got: JSON.stringify(value), expected: 'an object with "source" or "image"' })
  }
  return new Map(Object.entries(value))
}

function idText(id: JsonValue): string {
  if (typeof id === 'string' && id !== '') return id
  if (typeof id === 'number' && Number.isSafeInteger(id)) return String(id)
  throw new ModalignError({
    code: 'INPUT_ID',
    field: '/id',
    got: JSON.stringify(id),
    expected: 'a string, or a whole number up to 2^53 - 1',
  })
}

function sourceText(fields: ReadonlyMap<string, JsonValue>): string {
  const name = fields.has('image') && !fields.has('source') ? 'image' : 'source'
  const source = fields.get(name)
  if (typeof source === 'string') return source
  throw new ModalignError({
    code: 'INPUT_SOURCE',
    field: `/${name}`,
    got: source === undefined ? 'no "source" and no "image"' : JSON.stringify(source),
    expected: 'a path',
  })
}

/** Our place instead of the path that failed: rows must not depend on the machine they were made on. Failures that are not the item's own end the job. */
function itemError(
  error: unknown,
  place: { readonly file: string; readonly line?: number; readonly record?: number; readonly field?: string },
): ErrorData {
  if (!(error instanceof ModalignError) || /^(FILE_LIMIT|DISK_)/.test(error.code)) throw error
  return { ...error.details, ...place }
}
