import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { z } from 'zod'
import { erfOf } from './special.ts'

const table = z
  .object({ rows: z.array(z.tuple([z.number(), z.number()])) })
  .parse(JSON.parse(readFileSync(new URL('../../test/fixtures/operators/erf.json', import.meta.url), 'utf8')))

test('erf agrees with mpmath to 1e-15 of its value', () => {
  expect(table.rows.length).toBeGreaterThan(200)
  for (const [x, expected] of table.rows) {
    const error = expected === 0 ? Math.abs(erfOf(x)) : Math.abs(erfOf(x) / expected - 1)
    expect(error, `erf(${x})`).toBeLessThanOrEqual(1e-15)
  }
})

test('erf at the ends', () => {
  expect([erfOf(0), erfOf(Number.POSITIVE_INFINITY), erfOf(Number.NEGATIVE_INFINITY), erfOf(Number.NaN)]).toEqual([0, 1, -1, Number.NaN])
})
