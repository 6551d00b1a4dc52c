/** For tests in a browser: headless Chromium on pages that a server on this machine gives. */
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { delimiter, join } from 'node:path'
import { type BuildOptions, type BuildResult, build } from 'esbuild'
import { chromium, type Page } from 'playwright-core'

const names = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable']

/**
 * The installed Chromium. No browser is ever downloaded.
 *
 * @example
 * const chromium = findChromium()
 * skipWithout(chromium.missing).describe('in Chromium', () => { ... })
 */
export function findChromium(): { readonly path: string; readonly missing: string | undefined } {
  const named = process.env.CHROMIUM_PATH
  const folders = (process.env.PATH ?? '').split(delimiter)
  const candidates = named === undefined ? folders.flatMap((folder) => names.map((name) => join(folder, name))) : [named]
  const path = candidates.find((candidate) => existsSync(candidate))
  return path === undefined
    ? { path: '', missing: `no Chromium ${named === undefined ? 'on the PATH' : `at ${named}`}: install Debian's package chromium` }
    : { path, missing: undefined }
}

/** WebGPU on a software adapter; no service of Google's is asked for anything. */
const launchFlags = [
  '--no-sandbox',
  '--enable-unsafe-webgpu',
  '--use-webgpu-adapter=swiftshader',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
]

/** A file for the server, by its path without the leading `/`. */
export type Files = ReadonlyMap<string, Uint8Array>

export type Bundle = BuildResult<{ metafile: true; write: false }>

/** As an application's bundler does: one entry and its chunks, for browsers. The files of onnxruntime-web's WASM stay files. */
export function bundleForBrowsers(contents: string, resolveDir: string, options: BuildOptions = {}): Promise<Bundle> {
  return build({
    ...options,
    stdin: { contents, resolveDir, loader: 'ts', sourcefile: 'page.ts' },
    bundle: true,
    splitting: true,
    outdir: '/out',
    entryNames: 'page',
    write: false,
    format: 'esm',
    platform: 'browser',
    metafile: true,
    logLevel: 'silent',
  })
}

/** The bundle's files as a server gives them. */
export function bundledFiles({ outputFiles }: Bundle): Files {
  return new Map(outputFiles.map(({ path, contents }) => [path.slice(path.lastIndexOf('/') + 1), contents]))
}

const types: Readonly<Record<string, string>> = {
  js: 'text/javascript',
  mjs: 'text/javascript',
  wasm: 'application/wasm',
  html: 'text/html',
}
const ortFiles = new URL('../node_modules/onnxruntime-web/dist/', import.meta.url)

/**
 * Opens a cross-origin isolated page and works in it. The page, the server and the browser are gone afterwards, whatever happens; an error that nobody caught in the
 * page makes it fail.
 *
 * @param files beside them the server has onnxruntime-web's `.wasm` and `.mjs` files, and at `/` the page: `html`, or an empty one
 */
export async function withPage<T>(files: Files, work: (page: Page) => Promise<T>, html = '<!doctype html>'): Promise<T> {
  const server = createServer(async ({ url = '/' }, response) => {
    const name = new URL(url, 'http://localhost').pathname.slice(1)
    const ort = new URL(name, ortFiles)
    response.setHeader('Cross-Origin-Opener-Policy', 'same-origin')
    response.setHeader('Cross-Origin-Embedder-Policy', 'require-corp')
    response.setHeader('Content-Type', types[name === '' ? 'html' : name.slice(name.lastIndexOf('.') + 1)] ?? 'application/octet-stream')
    const found =
      name === '' ? html : (files.get(name) ?? (/^ort[\w.-]+\.(mjs|wasm)$/.test(name) && existsSync(ort) ? await readFile(ort) : undefined))
    if (found === undefined) response.statusCode = 404
    response.end(found)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  const port = typeof address === 'object' && address !== null ? address.port : 0
  try {
    const browser = await chromium.launch({ executablePath: findChromium().path, args: launchFlags })
    try {
      const page = await browser.newPage()
      const errors: Error[] = []
      page.on('pageerror', (error) => errors.push(error))
      await page.goto(`http://127.0.0.1:${port}/`)
      const result = await work(page)
      if (errors.length > 0) throw new AggregateError(errors, 'errors in the page')
      return result
    } finally {
      await browser.close()
    }
  } finally {
    server.closeAllConnections()
    server.close()
  }
}
