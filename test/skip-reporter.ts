/** Says at the end how many tests were skipped and why. A run that must be complete (`MODALIGN_LONG=1`) fails if any was. */
import type { Reporter, TestModule, Vitest } from 'vitest/node'

export interface SkipReporterOptions {
  readonly failOnSkip: boolean
  /** Default: stderr. */
  readonly write?: (text: string) => void
}

export class SkipReporter implements Reporter {
  readonly #failOnSkip: boolean
  readonly #write: (text: string) => void
  #filtered = false

  constructor({ failOnSkip, write = (text) => process.stderr.write(text) }: SkipReporterOptions) {
    this.#failOnSkip = failOnSkip
    this.#write = write
  }

  onInit(vitest: Vitest): void {
    // With -t, tests that the pattern leaves out count as skipped too.
    this.#filtered = vitest.config.testNamePattern !== undefined
  }

  onTestRunEnd(modules: readonly TestModule[]): void {
    if (this.#filtered) return
    const counts = new Map<string, number>()
    for (const module of modules) {
      for (const test of module.children.allTests('skipped')) {
        const result = test.result()
        const reason =
          skipReason(test.fullName) ?? ('note' in result ? result.note : undefined) ?? `no reason given in ${module.relativeModuleId}`
        counts.set(reason, (counts.get(reason) ?? 0) + 1)
      }
    }
    const total = [...counts.values()].reduce((sum, count) => sum + count, 0)
    if (total === 0) {
      this.#write(' Skipped  no test\n')
      return
    }
    this.#write(` Skipped  ${total} ${total === 1 ? 'test' : 'tests'}:\n`)
    for (const [reason, count] of [...counts].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1))) {
      this.#write(`${String(count).padStart(10)} x ${reason}\n`)
    }
    if (!this.#failOnSkip) return
    this.#write(' A long run must be complete: skipped tests make it fail.\n')
    process.exitCode = 1
  }
}

/** The reason in a test's or suite's name: `(skipped: why)`, as `skipWithout` writes it, or `(skipped where there is no moon)`. */
export function skipReason(fullName: string): string | undefined {
  return /\(skipped:? (.+?)\)(?: >|$)/.exec(fullName)?.[1]
}
