/** Worker threads in a source checkout, where modules are TypeScript and tsx loads them. In `dist` there is no such module. */

/**
 * What to start a worker with: the module itself, or for TypeScript a few words that load tsx first. `--import tsx` is inherited by worker threads, but on
 * Node 20 tsx registers itself in main threads only.
 */
export function workerModule(entry: URL): URL {
  if (!entry.pathname.endsWith('.ts')) return entry
  const tsx = import.meta.resolve('tsx/esm/api')
  const source = `import { register } from ${JSON.stringify(tsx)}; register(); await import(${JSON.stringify(entry.href)})`
  return new URL(`data:text/javascript,${encodeURIComponent(source)}`)
}
