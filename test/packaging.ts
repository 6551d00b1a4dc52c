/** The package as npm would publish it, made beside the working tree, so that neither it nor its `dist` is touched. */
import { execFileSync } from 'node:child_process'
import { cpSync, existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { z } from 'zod'

export const repository = fileURLToPath(new URL('..', import.meta.url))

/** What of package.json counts here. */
export const manifest = z
  .object({
    exports: z.record(z.string(), z.object({ types: z.string(), default: z.string() })),
    bin: z.record(z.string(), z.string()),
  })
  .parse(JSON.parse(readFileSync(join(repository, 'package.json'), 'utf8')))

const packed = z.array(
  z.object({ filename: z.string(), unpackedSize: z.number(), files: z.array(z.object({ path: z.string(), size: z.number() })) }),
)
export type Packed = z.infer<typeof packed>[number]

/** Compiles the current sources into `folder` and copies what else a package may hold; npm's own rules then choose. */
export function stage(folder: string): void {
  // Types are checked by a step of their own.
  execFileSync(process.execPath, ['scripts/build.mjs', '--noCheck', '--outDir', join(folder, 'dist')], { cwd: repository, stdio: 'pipe' })
  for (const name of [
    'package.json',
    'README.md',
    'LICENSE',
    'CHANGELOG.md',
    'ARCHITECTURE.md',
    'CONTRIBUTING.md',
    'scripts',
    'src',
    'examples',
  ])
    if (existsSync(join(repository, name))) cpSync(join(repository, name), join(folder, name), { recursive: true })
}

/** `npm pack` of a staged folder. */
export function pack(folder: string, ...options: readonly string[]): Packed {
  const output = execFileSync('npm', ['pack', '--json', '--ignore-scripts', '--silent', ...options], {
    cwd: folder,
    encoding: 'utf8',
    env: quietNpm(),
  })
  const [only] = packed.parse(JSON.parse(output))
  if (only === undefined) throw new Error('npm packed nothing')
  return only
}

/** npm without the settings that the npm which runs the tests hands down. */
export function quietNpm(): NodeJS.ProcessEnv {
  const inherited = Object.entries(process.env).filter(
    ([name]) => !/^npm_(?:config_(?!registry|cache|userconfig|globalconfig)|package_|lifecycle_)/i.test(name),
  )
  return { ...Object.fromEntries(inherited), npm_config_audit: 'false', npm_config_fund: 'false', npm_config_update_notifier: 'false' }
}
