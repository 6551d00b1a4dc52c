/** Every snippet of the README is executed, in a folder that holds the files it names. */
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { cp, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import sharp from 'sharp'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { hugePageTunables } from '../src/runtime/huge-pages.ts'

const run = promisify(execFile)
const root = fileURLToPath(new URL('..', import.meta.url))
const readme = await readFile(join(root, 'README.md'), 'utf8')
const cli = join(root, 'dist', 'src', 'cli', 'main.js')
const built = existsSync(cli)
const title = built ? 'README' : 'README (skipped: its snippets import the compiled package: npm run build)'

function blocks(language: string): readonly string[] {
  return [...readme.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\``, 'gm'))].map(([, code = '']) => code)
}

const runFile = `llm: models/my-llama
image: { encoder: mobilenetV2, projector: { name: pooledMlp } }
data: { format: llava, path: data.json }
output: runs/yaml
maxSteps: 2
batchSize: 2
`

describe.skipIf(!built)(title, { timeout: 240_000 }, () => {
  let folder: string
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'modalign-readme-'))
    await mkdir(join(folder, 'node_modules'))
    await symlink(root, join(folder, 'node_modules', 'modalign'), 'dir')
    await symlink(join(root, 'node_modules', 'zod'), join(folder, 'node_modules', 'zod'), 'dir')
    await cp(join(root, 'examples', 'tiny', 'llm'), join(folder, 'models', 'my-llama'), { recursive: true })
    await cp(join(root, 'test', 'fixtures', 'vision', 'clip'), join(folder, 'models', 'my-clip'), { recursive: true })
    await cp(join(root, 'examples', 'tiny', 'encoder.onnx'), join(folder, 'models', 'encoder.onnx'))
    await cp(join(root, 'examples', 'tiny', 'encoder.onnx'), join(folder, 'model.onnx'))
    await mkdir(join(folder, 'data'))
    await mkdir(join(folder, 'pictures'))
    const picture = sharp({ create: { width: 64, height: 48, channels: 3, background: '#cc8844' } })
    for (const file of ['data/cat.png', 'pictures/one.png', 'pictures/two.png', 'cat.png'])
      await picture.clone().png().toFile(join(folder, file))
    await picture.clone().jpeg().toFile(join(folder, 'cat.jpg'))
    const records = Array.from({ length: 4 }, (_, id) => ({
      id: String(id),
      image: 'cat.png',
      conversations: [
        { from: 'human', value: '<image>\nWhat is this?' },
        { from: 'gpt', value: 'a brown square' },
      ],
    }))
    await writeFile(join(folder, 'data', 'instructions.json'), JSON.stringify(records))
    await writeFile(join(folder, 'data.json'), JSON.stringify(records))
    await writeFile(join(folder, 'run.yaml'), runFile)
  })
  afterAll(async () => {
    await rm(folder, { recursive: true, force: true })
  })

  test('has the snippets that this test knows how to run', () => {
    expect(blocks('ts').length).toBeGreaterThanOrEqual(4)
    expect(blocks('sh')).toHaveLength(4)
  })

  test('the tunables are those that the commands set for themselves', () => {
    expect(blocks('sh')).toContain(`export GLIBC_TUNABLES=${hugePageTunables}\n`)
  })

  test.each(blocks('ts').map((code) => [code.split('\n').find((line) => line.includes(' from ')) ?? code, code] as const))(
    '%s',
    async (_, code) => {
      const file = join(folder, `snippet-${Buffer.from(code).length}.mjs`)
      await writeFile(file, code)
      const { stderr } = await run(process.execPath, [file], { cwd: folder, env: { ...process.env, NODE_OPTIONS: '' } })
      expect(stderr).not.toMatch(/Error|at .*\(/)
    },
  )

  test.each(
    blocks('sh')
      .flatMap((code) => code.split('\n'))
      .filter((line) => line.startsWith('npx modalign '))
      .map((line) => [line.replace(/\s+#.*/, '')] as const),
  )('%s', async (line) => {
    const words = [...line.matchAll(/"([^"]*)"|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain ?? '').slice(2)
    const { stdout, stderr } = await run(process.execPath, [cli, ...words], { cwd: folder, env: { ...process.env, NODE_OPTIONS: '' } })
    expect(stdout + stderr).not.toBe('')
  })
})
