/** What Python makes of the values that templates compute with, where JavaScript makes something else of them. */

export interface Value {
  readonly type: string
  readonly value: unknown
}

const isValue = (value: unknown): value is Value => typeof value === 'object' && value !== null && 'type' in value && 'value' in value
const isMap = (value: unknown): value is ReadonlyMap<string, Value> => value instanceof Map
const isList = (value: unknown): value is readonly Value[] => Array.isArray(value) && value.every(isValue)

/** `str(value)`; undefined for what has no text of its own, such as functions. */
export function pythonText(value: Value): string | undefined {
  if (typeof value.value === 'string') return value.value
  return value.type === 'UndefinedValue' ? '' : pythonRepr(value)
}

/** `repr(value)`. */
function pythonRepr({ type, value }: Value): string | undefined {
  if (value === null || type === 'NullValue') return 'None'
  if (type === 'UndefinedValue') return 'Undefined'
  if (typeof value === 'string') return quoted(value)
  if (typeof value === 'boolean') return value ? 'True' : 'False'
  if (typeof value === 'number') return type === 'FloatValue' && Number.isInteger(value) ? value.toFixed(1) : String(value)
  if (isList(value)) {
    const items = value.map((item) => pythonRepr(item))
    if (items.includes(undefined)) return undefined
    const joined = items.join(', ')
    return type === 'TupleValue' ? `(${joined}${items.length === 1 ? ',' : ''})` : `[${joined}]`
  }
  if (!isMap(value)) return undefined
  const entries = [...value].map(([key, item]) => [quoted(key), pythonRepr(item)] as const)
  if (entries.some(([, item]) => item === undefined)) return undefined
  const joined = `{${entries.map(([key, item]) => `${key}: ${item}`).join(', ')}}`
  return type === 'NamespaceValue' ? `<Namespace ${joined}>` : joined
}

const escapes: Readonly<Record<string, string>> = { '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t' }

/** A string as Python writes it: in single quotes unless only those are in it; what cannot be printed by its number. */
function quoted(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'"
  const body = text.replace(/[\\\n\r\t'"]|[\p{C}\p{Z}]/gu, (character) => {
    if (character === ' ') return character
    if (character === '"' || character === "'") return character === quote ? `\\${character}` : character
    const known = escapes[character]
    if (known !== undefined) return known
    const code = character.codePointAt(0) ?? 0
    const hex = code.toString(16)
    return code < 0x100 ? `\\x${hex.padStart(2, '0')}` : code < 0x10000 ? `\\u${hex.padStart(4, '0')}` : `\\U${hex.padStart(8, '0')}`
  })
  return quote + body + quote
}

/** White space to `str.strip`: what JavaScript trims, with the information separators and the next line, without the byte order mark. */
const isSpace = (character: string): boolean => /^\p{White_Space}$/u.test(character) || separators.has(character.charCodeAt(0))
const separators = new Set([0x1c, 0x1d, 0x1e, 0x1f])

/** `text.strip(characters)`, of both ends or of one. */
export function pythonStrip(text: string, which: 'strip' | 'lstrip' | 'rstrip' = 'strip', characters?: string): string {
  const all = Array.from(text)
  const own = characters === undefined ? undefined : new Set(characters)
  const goes = (character = ''): boolean => (own === undefined ? isSpace(character) : own.has(character))
  let [start, end] = [0, all.length]
  if (which !== 'rstrip') while (start < end && goes(all[start])) start++
  if (which !== 'lstrip') while (end > start && goes(all[end - 1])) end--
  return all.slice(start, end).join('')
}

/** `==`. */
export function pythonEquals(left: Value, right: Value): boolean {
  const isNumber = (value: unknown) => typeof value === 'number' || typeof value === 'boolean'
  const isNothing = (value: unknown) => value === null || value === undefined
  const [a, b] = [left.value, right.value]
  if (a === b && !isNothing(a)) return true
  if (isNumber(a) && isNumber(b)) return Number(a) === Number(b)
  if (isNothing(a) && isNothing(b)) return left.type === right.type
  if (isList(a) && isList(b)) return a.length === b.length && a.every((item, i) => equalsOrMissing(item, b[i]))
  if (isMap(a) && isMap(b)) return a.size === b.size && [...a].every(([key, item]) => equalsOrMissing(item, b.get(key)))
  return false
}

const equalsOrMissing = (a: Value, b: Value | undefined): boolean => b !== undefined && pythonEquals(a, b)
