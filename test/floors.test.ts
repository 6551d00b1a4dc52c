import { readdirSync, readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { forbiddenIn, importFault, importsOf, writesOf } from './floors.ts'

/** Generated from the ONNX project's schema. */
const generated = 'src/onnx/onnx_pb.ts'
const rules = ['test/floors.ts', 'test/floors.test.ts']

const root = new URL('..', import.meta.url)
const files = new Map(
  ['src', 'encoders', 'projectors', 'datasets', 'examples', 'test'].flatMap((folder) =>
    readdirSync(new URL(folder, root), { recursive: true, encoding: 'utf8' })
      .map((name) => `${folder}/${name.replaceAll('\\', '/')}`)
      .filter((path) => path.endsWith('.ts') && path !== generated)
      .map((path) => [path, readFileSync(new URL(path, root), 'utf8')]),
  ),
)
const production = [...files].filter(([path]) => !path.endsWith('.test.ts') && !path.startsWith('test/'))

/** What stands against a rule for a reason. An entry that is no longer needed fails, too. */
const allowedImports: Readonly<Record<string, string>> = {
  'src/runtime/doctor.ts -> src/media/ffmpeg.ts': 'the diagnosis looks for every program that the package can use',
}
const allowedWrites: Readonly<Record<string, string>> = {
  'src/runtime/profile.ts: mkdtemp, rm': 'ONNX Runtime writes the profile itself, into a folder made for it',
  'src/training/checkpoint.ts: rm': 'removes checkpoints that a newer one has replaced',
  'src/cli/commands/demo.ts: mkdtemp': 'the demo works in a folder of its own',
}

describe('the house', () => {
  test.each(['src/runtime/session-worker.ts', 'src/llm/generation/worker.ts'])(
    '%s loads no schemas and nothing that builds graphs',
    (entry) => {
      const reached = new Set<string>()
      const waiting = [entry]
      for (let path = waiting.pop(); path !== undefined; path = waiting.pop()) {
        reached.add(path)
        // Only what is loaded with it: a line that begins with `import`, `export` or the end of their names.
        const text = (files.get(path) ?? '').replace(/\bimport\('/g, '')
        for (const imported of importsOf(path, text)) if (!imported.typeOnly && !reached.has(imported.path)) waiting.push(imported.path)
      }
      const heavy = [...reached].filter((path) => /^import (?!type\b).*from 'zod'|^} from 'zod'/m.test(files.get(path) ?? ''))
      expect(heavy).toEqual([])
      expect([...reached].filter((path) => /^src\/(onnx\/onnx_pb|graph\/operators|graph\/composites)/.test(path))).toEqual([])
      expect(reached.size).toBeGreaterThan(10)
    },
  )

  test('imports go down, and the core knows no catalogue', () => {
    const faults = production.flatMap(([path, text]) =>
      importsOf(path, text).flatMap((imported) => {
        const fault = importFault(path, imported)
        return fault === undefined ? [] : [[`${path} -> ${imported.path}`, fault] as const]
      }),
    )
    expect(Object.fromEntries(faults.filter(([place]) => allowedImports[place] === undefined))).toEqual({})
    expect(Object.keys(allowedImports).filter((place) => !faults.some(([found]) => found === place))).toEqual([])
  })

  test('imports lead to files of this repository', () => {
    const known = new Set([...files.keys(), generated])
    const missing = [...files].flatMap(([path, text]) =>
      path.startsWith('test/') || path.endsWith('.test.ts')
        ? []
        : importsOf(path, text)
            .filter((imported) => !known.has(imported.path))
            .map((imported) => `${path} -> ${imported.path}`),
    )
    expect(missing).toEqual([])
  })

  test('the disk is changed through src/io alone', () => {
    const faults = production
      .filter(([path]) => path.startsWith('src/') && !path.startsWith('src/io/'))
      .flatMap(([path, text]) => (writesOf(text).length === 0 ? [] : [`${path}: ${[...new Set(writesOf(text))].sort().join(', ')}`]))
    expect(faults.sort()).toEqual(Object.keys(allowedWrites).sort())
  })

  test('no file says what none may say', () => {
    const faults = [...files]
      .filter(([path]) => !rules.includes(path))
      .flatMap(([path, text]) => forbiddenIn(text).map((fault) => `${path}:${fault}`))
    expect(faults).toEqual([])
  })
})

describe('the rules can fail', () => {
  const faultsOf = (path: string, text: string) => importsOf(path, text).map((imported) => importFault(path, imported))

  test.each([
    ['src/graph/made-up.ts', "import { lower } from '../onnx/lower.ts'", 'imports go down: onnx stands above graph'],
    ['src/onnx/made-up.ts', "export { x } from '../runtime/session.ts'", 'imports go down: runtime stands above onnx'],
    ['src/io/made-up.ts', "import type { Dim } from '../graph/dim.ts'", 'imports go down: graph stands above io'],
    ['src/errors.ts', "import { x } from './graph/dim.ts'", 'imports go down: graph stands above errors.ts'],
    ['src/text/made-up.ts', "const { x } = await import('../media/image.ts')", 'media stands beside text, not below it'],
    ['src/text/made-up.ts', "import { compose } from '../model/contracts.ts'", 'imports go down: model stands above text'],
    [
      'src/training/made-up.ts',
      "new URL(import.meta.url.endsWith('.ts') ? '../jobs/a.ts' : '../jobs/a.js', import.meta.url)",
      'imports go down: jobs stands above training',
    ],
    [
      'src/model/made-up.ts',
      "import { mlp } from '../../projectors/mlp.ts'",
      'the core does not know projectors: only src/index.ts and src/cli do',
    ],
    [
      'src/index.ts',
      "import { demo } from '../examples/tiny/demo.ts'",
      'the core does not know examples: only src/index.ts and src/cli do',
    ],
    ['src/cli/made-up.ts', "import '../../test/skip.ts'", 'only tests import tests'],
    ['src/helpers/made-up.ts', "import { x } from '../errors.ts'", 'src/helpers stands on no floor: give it one in test/floors.ts'],
    ['projectors/made-up.ts', "import { x } from '../encoders/index.ts'", 'a catalogue imports src alone, not encoders'],
    ['datasets/made-up.ts', "import { x } from '../src/cli/main.ts'", 'a catalogue imports nothing above the jobs'],
    ['src/llm/made-up.ts', "import {\n  a,\n  type B,\n} from '../training/batch.ts'", 'imports go down: training stands above llm'],
  ])('%s: %s', (path, text, fault) => {
    expect(faultsOf(path, text)).toContain(fault)
  })

  test.each([
    ['src/text/made-up.ts', "import type { Sample } from '../model/contracts.ts'"],
    ['src/text/made-up.ts', "import { type Sample, type Turn } from '../model/contracts.ts'"],
    ['src/cli/made-up.ts', "import { mlp } from '../../projectors/mlp.ts'"],
    ['src/index.ts', "import { mlp } from '../projectors/mlp.ts'"],
    ['src/random.ts', "import { x } from './errors.ts'"],
    ['src/llm/made-up.ts', "import { x } from './families/llama.ts'"],
    ['src/graph/made-up.ts', " * import('../onnx/lower.ts')"],
  ])('but not for %s: %s', (path, text) => {
    expect(faultsOf(path, text).filter((fault) => fault !== undefined)).toEqual([])
  })

  test.each([
    ["import { readFile, writeFile } from 'node:fs/promises'", ['writeFile']],
    ["import { rmSync as remove } from 'node:fs'", ['rmSync']],
    ["import * as fs from 'node:fs'", ['*']],
    ["import fs from 'node:fs'", ['*']],
    ["const fs = await import('node:fs/promises')", ['*']],
    ["import { open } from 'node:fs/promises'\nawait open(file, 'w')", ['open']],
    ["import { open } from 'node:fs/promises'\nawait open(file, 'r')", []],
    ["import { type Dirent, readdirSync } from 'node:fs'", []],
  ])('%j writes through %j', (text, names) => {
    expect(writesOf(text)).toEqual(names)
  })

  test.each([
    ['const x: any = 1', ['1: any']],
    ['const x = y as any', ['1: any']],
    ['const x: Array<any> = []', ['1: any']],
    ['const x = y as unknown as string', ['1: as unknown as']],
    ['// @ts-ignore', ['1: a directive that silences the compiler']],
    ['a\n// TODO: later', ['2: a mark of unfinished work']],
    ['try { x() } catch {}', ['1: a swallowed error']],
    ['try { x() } catch (e) { }', ['1: a swallowed error']],
    ['promise.catch(() => {})', ['1: a swallowed error']],
    ['/** What: any function will do, as any of them. */', []],
    ["const text = 'as anyone knows'", []],
  ])('%j', (text, faults) => {
    expect(forbiddenIn(text)).toEqual(faults)
  })
})
