/** Run files: YAML 1.2 (of which JSON is a part), read strictly. */
import { readFile, stat } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { type Document, isAlias, isCollection, isMap, isPair, isScalar, LineCounter, parseDocument, visit } from 'yaml'
import { type ErrorData, ModalignError } from '../errors.ts'
import { fileError } from '../io/file-error.ts'
import { jsonPointer } from '../io/json-syntax.ts'
import { ConfigurationError } from './configuration-error.ts'
import { decimalNumber } from './numbers.ts'

export interface RunFile {
  /** Absolute. */
  readonly file: string
  readonly folder: string
  readonly data: Readonly<Record<string, unknown>>
  /** The line, counted from 1, on which the value of a path (or its nearest parent that exists) stands. */
  lineOf(path: readonly (string | number)[]): number | undefined
}

const largestBytes = 1_048_576
const mostAliases = 100

/**
 * Reads a run file. The core schema of YAML 1.2 (`no` is a word, `012` is twelve), no tags, no key twice, at most 100 expanded aliases.
 *
 * @throws ModalignError `CONFIG_SYNTAX`, `CONFIG_ROOT`, `FILE_MISSING`, and {@link ConfigurationError} where there are several problems
 * @example
 * const { data } = await readRunFile('run.yaml')
 */
export async function readRunFile(path: string): Promise<RunFile> {
  const file = resolve(path)
  try {
    const { size } = await stat(file)
    if (size > largestBytes)
      throw new ModalignError({
        code: 'CONFIG_SYNTAX',
        file: path,
        got: `${size} bytes`,
        expected: `a run file of at most ${largestBytes}`,
      })
    return parseRunFile(new TextDecoder('utf-8', { fatal: true }).decode(await readFile(file)), file)
  } catch (error) {
    if (error instanceof TypeError)
      throw new ModalignError({ code: 'CONFIG_SYNTAX', file: path, got: 'bytes that are not UTF-8', expected: 'text' })
    throw fileError(error, path, 'a run file in YAML')
  }
}

/** The same from text; `file` is absolute. */
export function parseRunFile(text: string, file: string): RunFile {
  const lines = new LineCounter()
  const document = parseDocument(text, {
    version: '1.2',
    schema: 'core',
    strict: true,
    uniqueKeys: true,
    merge: false,
    prettyErrors: false,
    lineCounter: lines,
  })
  const at = (offset: number | undefined): number | undefined => (offset === undefined ? undefined : lines.linePos(offset).line)
  const syntax = [...document.errors, ...document.warnings].map(
    ({ message, pos }): ErrorData => ({ code: 'CONFIG_SYNTAX', file, line: at(pos[0]), got: message, expected: 'YAML 1.2' }),
  )
  const problems = syntax.length > 0 ? syntax : strictnessProblems(document, file, at)
  if (problems.length > 0) throw new ConfigurationError(problems)
  const data = expanded(document, file)
  if (!isMap(document.contents) && document.contents !== null) {
    throw new ModalignError({
      code: 'CONFIG_ROOT',
      file,
      line: 1,
      got: Array.isArray(data) ? 'a list' : typeof data,
      expected: 'names and values',
    })
  }
  return {
    file,
    folder: dirname(file),
    data: isRecord(data) ? data : {},
    lineOf(path) {
      for (let length = path.length; length > 0; length--) {
        const offset = offsetOf(document, path.slice(0, length))
        if (offset !== undefined) return at(offset)
      }
      return undefined
    },
  }
}

/** What YAML allows and a run file should not say: numbers that are none in decimal, and keys that are no names. */
function strictnessProblems(
  document: Document,
  file: string,
  at: (offset: number | undefined) => number | undefined,
): readonly ErrorData[] {
  const problems: ErrorData[] = []
  visit(document, {
    Scalar(_, { value, source, range }) {
      if (typeof value === 'number' && source !== undefined && decimalNumber(source.replace(/^\+/, '')) === undefined)
        problems.push({ code: 'CONFIG_VALUE', file, line: at(range?.[0]), got: source, expected: 'a decimal number, such as 16 or 2e-3' })
    },
    Pair(_, { key }) {
      const name = isScalar(key) ? key.value : undefined
      if (typeof name === 'string' && name !== '__proto__') return
      const range = isScalar(key) || isCollection(key) || isAlias(key) ? key.range : undefined
      problems.push({ code: 'CONFIG_SYNTAX', file, line: at(range?.[0]), got: `the key ${String(key)}`, expected: 'a name' })
    },
  })
  return problems
}

function expanded(document: Document, file: string): unknown {
  try {
    return document.toJS({ maxAliasCount: mostAliases })
  } catch (error) {
    throw new ModalignError({
      code: 'CONFIG_SYNTAX',
      file,
      got: error instanceof Error ? error.message : String(error),
      expected: `at most ${mostAliases} expanded aliases`,
      cause: error,
    })
  }
}

/** The key's place where it has one: an unknown name is what one looks for. */
function offsetOf(document: Document, path: readonly (string | number)[]): number | undefined {
  const parent: unknown = path.length === 1 ? document.contents : document.getIn(path.slice(0, -1), true)
  const last = path.at(-1)
  if (isMap(parent)) {
    const pair = parent.items.find((item) => isPair(item) && isScalar(item.key) && item.key.value === last)
    return isScalar(pair?.key) ? pair.key.range?.[0] : undefined
  }
  const node: unknown = document.getIn(path, true)
  return isScalar(node) || isCollection(node) ? node.range?.[0] : undefined
}

export function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** `/data/path` for `['data', 'path']`. */
export function fieldOf(path: readonly PropertyKey[]): string {
  return jsonPointer(path.map((part) => (typeof part === 'symbol' ? String(part) : part)))
}
