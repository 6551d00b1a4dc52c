import { fileURLToPath } from 'node:url'

/** The folder that holds package.json. Compiled, this file lies one folder deeper: dist/src/cli. */
export function packageRoot(): string {
  return fileURLToPath(new URL(import.meta.url.endsWith('.ts') ? '../../' : '../../../', import.meta.url))
}
