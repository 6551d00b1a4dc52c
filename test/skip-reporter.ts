/** Says at the end how many tests passed, failed and were skipped, and why they were skipped. A run that must be complete (`MODALIGN_LONG=1`) fails if any was. */
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
    const tests = modules.flatMap((module) => [...module.children.allTests()])
    const count = (state: string): number => tests.filter((test) => test.result().state === state).length
    this.#write(`\nTests: ${count('passed')} passed, ${count('failed')} failed, ${count('skipped')} skipped\n`)
    const reasons = new Map<string, number>()
    for (const test of tests) {
      const result = test.result()
      if (result.state !== 'skipped') continue
      const reason = skipReason(test.fullName) ?? result.note ?? `no reason given in ${test.module.relativeModuleId}`
      reasons.set(reason, (reasons.get(reason) ?? 0) + 1)
    }
    for (const [reason, times] of [...reasons].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1))) {
      this.#write(`${String(times).padStart(6)} skipped: ${reason}\n`)
    }
    if (reasons.size === 0 || !this.#failOnSkip) return
    this.#write('A long run must be complete: skipped tests make it fail.\n')
    process.exitCode = 1
  }
}

/** The reason in a test's or suite's name: `(skipped: why)`, as `skipWithout` writes it, or `(skipped where there is no moon)`. */
export function skipReason(fullName: string): string | undefined {
  return /\(skipped:? (.+?)\)(?: >|$)/.exec(fullName)?.[1]
}
