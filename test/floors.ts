/** The rules of the house about which file may import what, and what no file may say. Pure functions of a file's path and text. */
import { posix } from 'node:path'

/** The floors of `src`; imports only go down. Folders of one floor do not know each other. */
const floors: readonly (readonly string[])[] = [
  ['errors.ts', 'tensors.ts', 'random.ts', 'webassembly.ts', 'io'],
  ['pixel-planes.ts'],
  ['graph'],
  ['onnx'],
  ['runtime', 'weights', 'text', 'media'],
  ['llm'],
  ['model'],
  ['training', 'evaluation'],
  ['jobs', 'server'],
  ['cli'],
  ['index.ts', 'web.ts'],
]
const catalogues = ['encoders', 'projectors', 'datasets']

/** Types alone, which every floor shares: they may be imported from anywhere, as types. */
const sharedTypes = 'src/model/contracts.ts'

export interface Import {
  readonly path: string
  /** Nothing is left of it at run time. */
  readonly typeOnly: boolean
}

/** What a file imports by relative path, resolved against its own place: statically, dynamically, and as the entry of a worker or child process. */
export function importsOf(file: string, text: string): readonly Import[] {
  const found: Import[] = []
  const add = (specifier: string | undefined, typeOnly: boolean): void => {
    if (specifier?.startsWith('.') === true) found.push({ path: posix.join(posix.dirname(file), specifier), typeOnly })
  }
  for (const [, kind, clause = '', specifier] of text.matchAll(/^(import|export)\b([^'"`;]*?)\bfrom '([^']+)'/gm)) {
    const named = /^\s*\{([^}]*)\}\s*$/.exec(clause)?.[1]
    const allTypes = named?.split(',').every((name) => name.trim() === '' || name.trim().startsWith('type ')) ?? false
    add(specifier, /^\s+type\b/.test(clause) || (kind === 'import' && allTypes))
  }
  for (const [, specifier] of text.matchAll(/^import '([^']+)'/gm)) add(specifier, false)
  for (const [, before = '', specifier] of text.matchAll(/^(.*?)\bimport\('([^']+)'\)/gm)) if (!isComment(before)) add(specifier, false)
  for (const [, before = '', specifier] of text.matchAll(/^(.*?)\bnew URL\(.*?'(\.\.?\/[^']+\.[jt]s)'/gm))
    if (!isComment(before)) add(specifier?.replace(/\.js$/, '.ts'), false)
  return found
}

/** Why an import is not allowed; undefined if it is. */
export function importFault(file: string, { path, typeOnly }: Import): string | undefined {
  const [from = '', to = ''] = [file.split('/')[0], path.split('/')[0]]
  if (from === 'test') return undefined
  if (to === 'test') return 'only tests import tests'
  if (from === 'examples') return undefined
  if (catalogues.includes(from)) {
    if (to === from) return undefined
    if (to !== 'src') return `a catalogue imports src alone, not ${to}`
    return floorOf(path) < floors.findIndex((names) => names.includes('cli')) ? undefined : 'a catalogue imports nothing above the jobs'
  }
  if (from !== 'src') return undefined
  if (to !== 'src') {
    const mayKnow = to === 'examples' ? file.startsWith('src/cli/') : file === 'src/index.ts' || file.startsWith('src/cli/')
    return mayKnow ? undefined : `the core does not know ${to}: only src/index.ts and src/cli do`
  }
  if (path === sharedTypes && typeOnly) return undefined
  const [own, other] = [floorOf(file), floorOf(path)]
  if (own === -1 || other === -1) return `src/${nameOf(own === -1 ? file : path)} stands on no floor: give it one in test/floors.ts`
  if (nameOf(file) === nameOf(path) || other < own || (own === 0 && other === 0)) return undefined
  return other > own
    ? `imports go down: ${nameOf(path)} stands above ${nameOf(file)}`
    : `${nameOf(path)} stands beside ${nameOf(file)}, not below it`
}

function nameOf(path: string): string {
  return path.split('/')[1] ?? ''
}

function floorOf(path: string): number {
  return floors.findIndex((names) => names.includes(nameOf(path)))
}

/** What `node:fs` offers that leaves the disk as it is. `open` counts where it is called to read. */
const reading = new Set([
  'access',
  'accessSync',
  'constants',
  'Dirent',
  'existsSync',
  'FileHandle',
  'lstat',
  'open',
  'opendir',
  'readdir',
  'readdirSync',
  'readFile',
  'readFileSync',
  'realpath',
  'stat',
])

/** Names that a file imports from `node:fs` and that could change the disk; `*` for everything. */
export function writesOf(text: string): readonly string[] {
  const names = [...text.matchAll(/^import\b([^'"`;]*?)\bfrom 'node:fs(?:\/promises)?'/gm)].flatMap(([, clause = '']) => {
    const named = /\{([^}]*)\}/.exec(clause)?.[1]
    return named === undefined
      ? ['*']
      : named.split(',').map((name) =>
          name
            .replace(/^\s*type\s/, '')
            .replace(/\sas\s.*$/, '')
            .trim(),
        )
  })
  if (/^(?!\s*(\*|\/\/)).*\bimport\('node:fs(?:\/promises)?'\)(?!\.FileHandle)/m.test(text)) names.push('*')
  const opensToRead = [...text.matchAll(/(?<![\w.])open\(([^)]*)\)/g)].every(([, call = '']) => /'r'|O_RDONLY/.test(call))
  return names.filter((name) => name !== '' && (!reading.has(name) || (name === 'open' && !opensToRead)))
}

const phrases: readonly { readonly what: string; readonly pattern: RegExp; readonly commentsToo: boolean }[] = [
  { what: 'any', pattern: /(?::|\bas|<|\|) ?any\b(?! of| function| other)/, commentsToo: false },
  { what: 'as unknown as', pattern: /\bas unknown as\b/, commentsToo: false },
  { what: 'a directive that silences the compiler', pattern: /@ts-(?:ignore|expect-error|nocheck)/, commentsToo: true },
  { what: 'a mark of unfinished work', pattern: /\b(?:TODO|FIXME|XXX)\b/, commentsToo: true },
  { what: 'a swallowed error', pattern: /catch(?: \(\w*\))? ?\{ ?\}|\.catch\(\(\) => \{ ?\}\)/, commentsToo: false },
]

/** Lines that say what no file may say, as `line: what`. */
export function forbiddenIn(text: string): readonly string[] {
  return text
    .split('\n')
    .flatMap((line, index) =>
      phrases
        .filter(({ pattern, commentsToo }) => pattern.test(commentsToo ? line : withoutComment(line)))
        .map(({ what }) => `${index + 1}: ${what}`),
    )
}

function withoutComment(line: string): string {
  return isComment(line) ? '' : line.replace(/(?<!:)\/\/ .*$/, '')
}

function isComment(line: string): boolean {
  return /^\s*(?:\*|\/\*|\/\/)/.test(line)
}
