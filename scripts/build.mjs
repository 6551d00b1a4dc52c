/** Compiles to `dist`, which mirrors the repository. Does nothing in an installed package, where `dist` is all there is. */
import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, rmSync } from 'node:fs'

if (existsSync('src')) {
  rmSync('dist', { recursive: true, force: true })
  const { status } = spawnSync(process.execPath, ['node_modules/typescript/bin/tsc'], { stdio: 'inherit' })
  if (status !== 0) process.exit(status ?? 1)
  if (existsSync('dist/src/cli/main.js')) chmodSync('dist/src/cli/main.js', 0o755)
}
