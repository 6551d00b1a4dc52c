import { defineConfig } from 'vitest/config'
import { SkipReporter } from './test/skip-reporter.ts'

const long = process.env.MODALIGN_LONG === '1'

export default defineConfig({
  test: {
    include: ['{src,encoders,projectors,datasets,examples,test}/**/*.test.ts'],
    pool: 'forks',
    // Workers that the code under test starts are TypeScript files too: tsx loads them, and worker threads inherit this flag.
    execArgv: ['--import', 'tsx'],
    reporters: ['default', new SkipReporter({ failOnSkip: long })],
    maxWorkers: 2,
    // Half of the time of a run would go into loading the same modules for every file. Files share a process, so none may leave anything behind in it.
    isolate: false,
    testTimeout: long ? 1_800_000 : 60_000,
    hookTimeout: 120_000,
  },
})
