/** The entries that pages import: what a bundler for browsers makes of them. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { builtinModules } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build, type Metafile } from 'esbuild'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { bundleForBrowsers } from './chromium.ts'

const repository = fileURLToPath(new URL('..', import.meta.url))
const nodeModules = new Set(builtinModules)

/** Every import of a module of Node or of a package that has native code, as `importer -> imported`. Dynamic imports and `require` are in the metafile too. */
function nodeImports({ inputs }: Metafile): readonly string[] {
  return Object.entries(inputs).flatMap(([importer, { imports }]) =>
    imports
      .map(({ path }) => path)
      .filter(
        (path) =>
          path.startsWith('node:') || nodeModules.has(path) || /(^|node_modules\/)(onnxruntime-node|sharp|fluent-ffmpeg)(\/|$)/.test(path),
      )
      .map((path) => `${importer} -> ${path}`),
  )
}

/** Bundles with Node's modules left as imports, so that the metafile names them all. */
async function metafileOf(entry: string): Promise<Metafile> {
  return (await bundleForBrowsers(`export * from ${JSON.stringify(entry)}`, repository, { external: ['node:*', ...nodeModules] })).metafile
}

describe('a bundle for browsers', () => {
  test.each(['./src/web.ts', './src/graph/index.ts', './projectors/index.ts'])('%s reaches no module of Node', async (entry) => {
    expect(nodeImports(await metafileOf(entry))).toEqual([])
  })

  test('the web entry bundles as it is, with the packages that it may need and no other', async () => {
    const { metafile } = await bundleForBrowsers(`export * from './src/web.ts'`, repository)
    const packages = Object.keys(metafile.inputs).flatMap((path) => /(?:^|\/)node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1] ?? [])
    expect([...new Set(packages)].sort()).toEqual([
      '@bufbuild/protobuf',
      '@huggingface/jinja',
      '@huggingface/tokenizers',
      'onnxruntime-web',
      'zod',
    ])
  })
})

describe('the check can fail', () => {
  let folder: string
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'modalign-bundle-'))
  })
  afterAll(() => rm(folder, { recursive: true }))

  test.each([
    ["import { readFile } from 'node:fs/promises'; console.log(readFile)", 'node:fs/promises'],
    ["import path from 'path'; console.log(path)", 'path'],
    ["export const load = () => import('node:os')", 'node:os'],
    ["import sharp from 'sharp'; console.log(sharp)", 'sharp'],
    ["import ort from 'onnxruntime-node'; console.log(ort)", 'onnxruntime-node'],
  ])('%s', async (source, found) => {
    const entry = join(folder, 'entry.ts')
    await writeFile(entry, source)
    const { metafile } = await build({
      entryPoints: [entry],
      bundle: true,
      write: false,
      format: 'esm',
      platform: 'browser',
      metafile: true,
      logLevel: 'silent',
      external: ['node:*', ...nodeModules, 'sharp', 'onnxruntime-node'],
    })
    expect(nodeImports(metafile)).toEqual([expect.stringMatching(new RegExp(`entry\\.ts -> ${found}$`))])
  })

  test('a file of the runtime for Node', async () => {
    expect(nodeImports(await metafileOf('./src/runtime/node.ts'))).not.toEqual([])
  })
})
