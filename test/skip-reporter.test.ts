import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, test } from 'vitest'
import { skipReason } from './skip-reporter.ts'

const repository = fileURLToPath(new URL('..', import.meta.url))
const root = mkdtempSync(join(tmpdir(), 'modalign-skip-'))
afterAll(() => rmSync(root, { recursive: true }))

const skipping = `
  import { test } from 'vitest'
  import { skipWithout } from ${JSON.stringify(join(repository, 'test/skip.ts'))}
  skipWithout('no moon').describe('by night', () => { test('a', () => {}); test('b', () => {}) })
  skipWithout('no (real) sun').test('by day', () => {})
  skipWithout(undefined).test('always', () => {})
  test('noted', ({ skip }) => skip('no stars'))
  test.skip('unexplained', () => {})
`
const complete = `import { test } from 'vitest'\ntest('one', () => {})`

/** A run of the real runner over one file. */
function run(file: string, failOnSkip: boolean): { readonly status: number | null; readonly stderr: string } {
  writeFileSync(join(root, 'some.test.ts'), file)
  writeFileSync(
    join(root, 'vitest.config.mjs'),
    `import { SkipReporter } from ${JSON.stringify(join(repository, 'test/skip-reporter.ts'))}
     export default { test: { reporters: [new SkipReporter({ failOnSkip: ${failOnSkip} })] } }`,
  )
  return spawnSync(process.execPath, [join(repository, 'node_modules/vitest/vitest.mjs'), 'run', '--root', root], { encoding: 'utf8' })
}

describe('the report of skipped tests', () => {
  symlinkSync(join(repository, 'node_modules'), join(root, 'node_modules'))

  test('names every reason and how often it came; a run that need not be complete passes', () => {
    const { status, stderr } = run(skipping, false)
    expect(
      stderr
        .trim()
        .split('\n')
        .map((line) => line.trim()),
    ).toEqual([
      'Tests: 1 passed, 0 failed, 5 skipped',
      '2 skipped: no moon',
      '1 skipped: no (real) sun',
      '1 skipped: no reason given in some.test.ts',
      '1 skipped: no stars',
    ])
    expect(status).toBe(0)
  }, 120_000)

  test('a run that must be complete fails if anything was skipped, and only then', () => {
    expect(run(skipping, true)).toMatchObject({ status: 1, stderr: expect.stringContaining('must be complete') })
    expect(run(complete, true)).toMatchObject({ status: 0, stderr: '\nTests: 1 passed, 0 failed, 0 skipped\n' })
  }, 120_000)
})

test.each([
  ['a > b (skipped: no moon) > c', 'no moon'],
  ['a (skipped: not (yet) there)', 'not (yet) there'],
  ['a (skipped where there is no moon)', 'where there is no moon'],
  ['a > b', undefined],
])('the reason in %j', (name, reason) => {
  expect(skipReason(name)).toBe(reason)
})
