/** What a clean clone is set up with. */
import { spawnSync } from 'node:child_process'
import { readFileSync, statSync } from 'node:fs'
import { expect, test } from 'vitest'

const read = (name: string): string => readFileSync(new URL(`../${name}`, import.meta.url), 'utf8')

test('continuous integration runs the check of style, the compiler and the test command of the README', () => {
  const script = read('.ci/run')
  for (const command of ['npm ci', 'npx biome check .', 'npx tsc --noEmit', 'npm test']) expect(script).toContain(`step ${command}`)
  expect(read('README.md')).toContain('npm test')
  expect(spawnSync('bash', ['-n', '.ci/run'], { cwd: new URL('..', import.meta.url) }).status).toBe(0)
  if (process.platform !== 'win32') expect(statSync(new URL('../.ci/run', import.meta.url)).mode & 0o111).not.toBe(0)
})

test('every dependency is explained', () => {
  const { dependencies, optionalDependencies, devDependencies } = JSON.parse(read('package.json'))
  const explained = [...(read('CONTRIBUTING.md').split('## Dependencies')[1] ?? '').matchAll(/^\| `([^`]+)` /gm)].map(([, name]) => name)
  expect(explained.sort()).toEqual(Object.keys({ ...dependencies, ...optionalDependencies, ...devDependencies }).sort())
})

test('npm ci downloads nothing but packages', () => {
  expect(read('.npmrc')).toMatch(/^onnxruntime-node-install=skip$/m)
  expect(JSON.parse(read('package.json')).allowScripts).toMatchObject({ 'onnxruntime-node': false })
  expect(Object.keys(JSON.parse(read('package.json')).optionalDependencies)).toContain('ffmpeg-static')
})
