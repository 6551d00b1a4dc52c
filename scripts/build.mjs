/**
 * Compiles to `dist`, which mirrors the repository. Does nothing in an installed package, where `dist` is all there is. Further options go to the compiler:
 * `node scripts/build.mjs --outDir DIR`.
 */
import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

if (existsSync('src')) {
  const options = process.argv.slice(2)
  const { outDir } = parseArgs({
    args: options,
    options: { outDir: { type: 'string', default: 'dist' } },
    strict: false,
    allowPositionals: true,
  }).values
  rmSync(outDir, { recursive: true, force: true })
  // Without source maps: the sources are not in the package.
  const { status } = spawnSync(process.execPath, ['node_modules/typescript/bin/tsc', '--sourceMap', 'false', ...options], {
    stdio: 'inherit',
  })
  if (status !== 0) process.exit(status ?? 1)
  const program = join(outDir, 'src/cli/main.js')
  if (existsSync(program)) chmodSync(program, 0o755)
}
