/** Tests that need something which a machine may lack: skipped, with the reason in their name, where `skip-reporter.ts` finds it. */
import { describe, test } from 'vitest'

/**
 * `describe` and `test` as they are, or skipping, when something is missing.
 *
 * @param missing what is missing and how to get it; undefined where nothing is
 * @example
 * const data = process.env.MODALIGN_TEST_DATA
 * skipWithout(data === undefined ? testDataMissing : undefined).describe('on photographs', () => { ... })
 */
export function skipWithout(missing: string | undefined): {
  describe(name: string, factory: () => void): void
  test(name: string, body: () => void | Promise<void>, timeoutMs?: number): void
} {
  if (missing === undefined) {
    return { describe: (name, factory) => void describe(name, factory), test: (name, body, timeoutMs) => test(name, body, timeoutMs) }
  }
  return {
    describe: (name, factory) => void describe.skip(skipped(name, missing), factory),
    test: (name, body, timeoutMs) => test.skip(skipped(name, missing), body, timeoutMs),
  }
}

/** The usual reasons. */
export const testDataMissing = 'MODALIGN_TEST_DATA does not name the folder of test data'
export const longOnly = 'long: npm run test:long'

function skipped(name: string, missing: string): string {
  return `${name} (skipped: ${missing})`
}
