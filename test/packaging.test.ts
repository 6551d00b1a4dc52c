import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { manifest, type Packed, pack, quietNpm, repository, stage } from './packaging.ts'
import { longOnly, skipWithout } from './skip.ts'

const folder = mkdtempSync(join(tmpdir(), 'modalign-package-'))
const staged = join(folder, 'staged')
afterAll(() => rmSync(folder, { recursive: true, force: true }))

let packed: Packed
beforeAll(() => {
  mkdirSync(staged)
  stage(staged)
  packed = pack(staged, '--dry-run')
}, 300_000)

const paths = () => packed.files.map(({ path }) => path)
const entries = Object.entries(manifest.exports)
const tiny = join(repository, 'examples/tiny')
const dataFiles = (within: string): readonly string[] =>
  existsSync(join(tiny, within))
    ? readdirSync(join(tiny, within))
        .filter((name) => !name.endsWith('.ts'))
        .map((name) => `examples/tiny/${within}${name}`)
    : []

describe('the tarball', () => {
  test('has every entry point with its types, the program and the documents', () => {
    const needed = [...entries.flatMap(([, { types, default: file }]) => [types, file]), ...Object.values(manifest.bin)].map((path) =>
      path.replace('./', ''),
    )
    expect(paths()).toEqual(expect.arrayContaining([...needed, 'package.json', 'README.md', 'LICENSE', 'CHANGELOG.md', 'ARCHITECTURE.md']))
  })

  test('has the tiny pair and its data', () => {
    const data = [...dataFiles('llm/'), ...dataFiles('model/'), 'examples/tiny/encoder.onnx', 'examples/tiny/concepts.json']
    expect(paths()).toEqual(expect.arrayContaining(data))
  })

  test('has what workers and child processes are started from', () => {
    const started = paths().filter((path) => /dist\/src\/.*(?:worker|child)[\w-]*\.js$/.test(path))
    expect(started).toEqual(
      expect.arrayContaining(['dist/src/media/child.js', 'dist/src/runtime/session-worker.js', 'dist/src/training/trainer-worker.js']),
    )
  })

  test('has no tests, fixtures, sources or source maps without sources', () => {
    expect(paths().filter((path) => /\.test\.|^(?:dist\/)?test\/|fixtures|^src\/|vitest|\.map$|(?<!\.d)\.ts$|\.py$/.test(path))).toEqual([])
  })

  test('stays small', () => {
    expect(packed.unpackedSize).toBeLessThan(32e6)
  })
})

function unreachable(): string | undefined {
  const { status } = spawnSync('npm', ['view', 'zod', 'version', '--silent', '--fetch-retries=0', '--fetch-timeout=20000'], {
    env: quietNpm(),
    timeout: 60_000,
  })
  return status === 0 ? undefined : 'no npm registry can be reached'
}
const missing = process.env.MODALIGN_LONG === '1' ? unreachable() : longOnly

skipWithout(missing).describe('installed in an empty folder', () => {
  const project = join(folder, 'project')
  const modalign = (...options: readonly string[]) =>
    spawnSync('npx', ['--no-install', 'modalign', ...options], { cwd: project, encoding: 'utf8', env: quietNpm(), timeout: 1_500_000 })
  const lastLine = (text: string): unknown => JSON.parse(text.trim().split('\n').at(-1) ?? '')

  beforeAll(() => {
    mkdirSync(project)
    writeFileSync(join(project, 'package.json'), JSON.stringify({ name: 'empty', private: true, type: 'module' }))
    const { filename } = pack(staged, '--pack-destination', folder)
    const env = { ...quietNpm(), ONNXRUNTIME_NODE_INSTALL: 'skip' }
    execFileSync('npm', ['install', '--silent', join(folder, filename)], { cwd: project, env, stdio: 'pipe' })
  }, 600_000)

  test.each(entries)('Node imports %s', (entry) => {
    const specifier = entry.replace('.', 'modalign')
    const code = `const entry = await import(${JSON.stringify(specifier)}); console.log(JSON.stringify(Object.keys(entry)))`
    const output = execFileSync(process.execPath, ['--input-type=module', '-e', code], { cwd: project, encoding: 'utf8' })
    expect(JSON.parse(output)).not.toEqual([])
  })

  test('the types of every entry point satisfy the compiler', () => {
    const lines = entries.map(
      ([entry], index) =>
        `import * as entry${index} from '${entry.replace('.', 'modalign')}'\nexport const keys${index} = Object.keys(entry${index})`,
    )
    writeFileSync(join(project, 'consumer.ts'), lines.join('\n'))
    const options = [
      '--noEmit',
      '--strict',
      '--module',
      'nodenext',
      '--target',
      'es2023',
      '--lib',
      'es2023,dom,esnext.disposable',
      '--types',
      'node',
      '--skipLibCheck',
    ]
    const typeRoots = ['--typeRoots', join(repository, 'node_modules/@types')]
    const compiler = join(repository, 'node_modules/typescript/bin/tsc')
    const { status, stdout } = spawnSync(process.execPath, [compiler, ...options, ...typeRoots, 'consumer.ts'], {
      cwd: project,
      encoding: 'utf8',
    })
    expect(stdout).toBe('')
    expect(status).toBe(0)
  })

  test('modalign doctor finds a device that works', () => {
    const { status, stdout, stderr } = modalign('doctor', '--json')
    expect(stderr).not.toMatch(/^\s+at /m)
    expect(JSON.stringify(lastLine(stdout))).toMatch(/"cpu"/)
    expect(status).toBe(0)
  })

  test('a mistake is an error in words', () => {
    const { status, stderr } = modalign('caption', 'no-such-folder', '--output', 'captions.jsonl')
    expect(status).not.toBe(0)
    expect(stderr).toMatch(/[A-Z]+_[A-Z]+/)
    expect(stderr).not.toMatch(/^\s+at /m)
    expect(readdirSync(project)).not.toContain('captions.jsonl')
  })

  const embedded = existsSync(join(tiny, 'model/modalign.json')) ? undefined : 'examples/tiny has no model yet'
  skipWithout(embedded).test(
    'the demo runs from there',
    () => {
      const { status, stdout, stderr } = modalign('demo', '--json')
      expect(stderr).not.toMatch(/^\s+at /m)
      expect(lastLine(stdout)).toMatchObject({
        heldOutExactMatch: expect.any(Number),
        blindExactMatch: expect.any(Number),
        shuffledExactMatch: expect.any(Number),
        seconds: expect.any(Number),
        lossCurve: expect.any(String),
      })
      expect(status).toBe(0)
    },
    1_800_000,
  )
})
