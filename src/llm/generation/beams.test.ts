import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { generationModel, type WatchedModel } from '../../../test/generation-model.ts'
import { type BeamOptions, searchBeams } from './beams.ts'

interface Case {
  readonly prompt: readonly number[]
  readonly options: BeamOptions
  readonly beams: readonly { readonly ids: readonly number[]; readonly score: number }[]
}
const cases: readonly Case[] = JSON.parse(readFileSync(new URL('../../../test/fixtures/generation/beams.json', import.meta.url), 'utf8'))

let model: WatchedModel
beforeAll(async () => {
  model = await generationModel()
})
afterAll(() => model.session.dispose())

test.each(cases.map((one) => ({ ...one, label: `${one.prompt.join(' ')}: ${JSON.stringify(one.options)}` })))(
  "$label gives Transformers' beams",
  async ({ prompt, options, beams }) => {
    const found = await searchBeams(model, { ids: prompt }, options)
    const stops = new Set(options.stopTokenIds)
    const answer = (ids: readonly number[]): readonly number[] => (stops.has(ids[ids.length - 1] ?? -1) ? ids.slice(0, -1) : ids)
    expect(found.map(({ ids }) => ids)).toEqual(beams.map(({ ids }) => answer(ids)))
    for (const [rank, { score, ids, finished }] of found.entries()) {
      const reference = beams[rank]?.score ?? Number.NaN
      // float32 sums there, float64 here.
      expect(Math.abs(score - reference)).toBeLessThan(1e-5 * Math.max(1, Math.abs(reference)))
      expect(finished).toBe(ids.length < (beams[rank]?.ids.length ?? 0))
    }
  },
)

test('an abort ends it between steps', async () => {
  const controller = new AbortController()
  const { length } = model.runs
  const searching = searchBeams(model, { ids: [5, 17] }, { numBeams: 3, maxNewTokens: 40, stopTokenIds: [] }, controller.signal)
  setTimeout(() => controller.abort(), 5)
  await expect(searching).rejects.toMatchObject({ name: 'AbortError' })
  expect(model.runs.length - length).toBeLessThan(41)
})
