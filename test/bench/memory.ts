/** What a process tree holds, as Linux counts it. */
import { readdirSync, readFileSync } from 'node:fs'

/** Peak resident memory in GB: VmHWM summed over this process and its descendants. Undefined where there is no /proc. */
export function peakRssGB(): number | undefined {
  return sumOverTree((pid) => kilobytes(`/proc/${pid}/status`, 'VmHWM'))
}

/** Proportional set size in GB: a page that several mappings share counts once in all. */
export function pssGB(): number | undefined {
  return sumOverTree((pid) => kilobytes(`/proc/${pid}/smaps_rollup`, 'Pss'))
}

/**
 * What the process tree has of its own, in bytes, proportionally where it is shared: without the pages of mapped files. Undefined where there is no /proc. A feature store is
 * a mapped file: it grows as it should, and the system takes its pages back when it likes.
 */
export function anonymousBytes(): number | undefined {
  const gigabytes = sumOverTree((pid) => kilobytes(`/proc/${pid}/smaps_rollup`, 'Pss_Anon'))
  return gigabytes === undefined ? undefined : gigabytes * 1e9
}

function sumOverTree(of: (pid: number) => number): number | undefined {
  if (process.platform !== 'linux') return undefined
  return descendants(process.pid).reduce((sum, pid) => sum + of(pid), 0) / 1e6
}

function descendants(root: number): readonly number[] {
  const children = new Map<number, number[]>()
  for (const name of readdirSync('/proc').filter((entry) => /^\d+$/.test(entry))) {
    const stat = contents(`/proc/${name}/stat`)
    const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1])
    children.set(parent, [...(children.get(parent) ?? []), Number(name)])
  }
  const found: number[] = []
  const waiting = [root]
  for (let pid = waiting.pop(); pid !== undefined; pid = waiting.pop()) {
    found.push(pid)
    waiting.push(...(children.get(pid) ?? []))
  }
  return found
}

function kilobytes(file: string, field: string): number {
  const [, value = '0'] = new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(contents(file)) ?? []
  return (Number(value) * 1024) / 1000
}

/** A process may end while it is looked at. */
function contents(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    if (error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ESRCH' || error.code === 'EACCES'))
      return ''
    throw error
  }
}
