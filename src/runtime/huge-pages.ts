/**
 * Weights on pages of 2 MiB. Decoding reads every weight for every token; on pages of 4 KiB much of its time goes into looking up where they lie. Where Linux gives large pages
 * to those who ask (`madvise`), the C library asks if its tunables say so when the process starts
 * (glibc manual, "Memory Allocation Tunables"; 2.35 or newer, older ones ignore the words).
 */
import { accessSync, constants, readFileSync } from 'node:fs'

const settings = ['always', 'madvise', 'never'] as const
export type HugePageSetting = (typeof settings)[number]

/**
 * What `GLIBC_TUNABLES` must say. ONNX Runtime takes memory for each packed matrix by itself, most of them too small or not aligned for a page of 2 MiB: only out of one heap,
 * grown by whole pages, do they all come to lie on such. Hence the two tunables besides the first.
 */
export const hugePageTunables = 'glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.arena_max=1'

/** @returns what Linux does with memory that may lie on large pages; undefined elsewhere, or where it does not say */
export function hugePageSetting(): HugePageSetting | undefined {
  try {
    const text = readFileSync('/sys/kernel/mm/transparent_hugepage/enabled', 'utf8')
    return settings.find((setting) => text.includes(`[${setting}]`))
  } catch {
    return undefined
  }
}

/** `process.execve`, which the types of Node.js 20 do not know. */
const execve: unknown = Reflect.get(process, 'execve')

/** Whether this Node.js can start again as the same process (22.15, 23.11 or newer; not on Windows). */
export const canRestart = typeof execve === 'function'

/**
 * Starts this process again with `hugePageTunables`: same arguments, same number, same streams. To be called before anything else happened. Returns, and nothing has
 * changed, where it would not help or cannot be: large pages need not or may not be asked for, `GLIBC_TUNABLES` is set (that is how users decide for themselves),
 * a parent process talks to this one, or Node.js cannot. The processes that this one starts do not inherit the tunables.
 */
export function restartWithHugePages(): void {
  const { GLIBC_TUNABLES: tunables, ...env } = process.env
  if (tunables === hugePageTunables) delete process.env.GLIBC_TUNABLES
  if (tunables !== undefined || process.channel !== undefined || typeof execve !== 'function' || hugePageSetting() !== 'madvise') return
  try {
    // A failing execve ends the process: after an update, the program that runs may not be there any more.
    accessSync(process.execPath, constants.X_OK)
    const argv = [process.argv0, ...process.execArgv, ...process.argv.slice(1)]
    Reflect.apply(execve, process, [process.execPath, argv, { ...env, GLIBC_TUNABLES: hugePageTunables }])
  } catch {
    // Not permitted (`node --permission`), or no such file: on pages of 4 KiB all works, too.
  }
}
