/** modalign: ours.ts MODEL IDS TOKENS prints its first token's milliseconds and tokens a second as JSON. */
import { z } from 'zod'
import { loadLanguageModel } from '../../../src/llm/language-model.ts'

const [model = '', json = '[]', count = '1'] = process.argv.slice(2)
const ids = z.array(z.int()).parse(JSON.parse(json))
const tokens = Number(count)
const figures = z.object({ firstTokenMs: z.number(), tokensPerSecond: z.number(), ids: z.array(z.int()) })
await using llm = await loadLanguageModel(model, { device: 'cpu', weights: 'quantised', batchSize: 1 })

async function generate(prompt: readonly number[]): Promise<z.infer<typeof figures>> {
  const started = performance.now()
  const times: number[] = []
  const said: number[] = []
  for await (const event of llm.generate([{ ids: prompt }], { temperature: 0, maxNewTokens: tokens, stopTokenIds: [] })) {
    if (event.type !== 'token') continue
    times.push(performance.now())
    said.push(event.id)
  }
  const [first = started] = times
  return { firstTokenMs: first - started, tokensPerSecond: ((tokens - 1) * 1000) / ((times.at(-1) ?? started) - first), ids: said }
}

// The cache of a prompt is kept for the next one: each of these begins otherwise, so that all of it is read.
await generate([...ids].reverse())
const run = await generate(ids)
await generate([...ids].reverse())
const again = await generate(ids)
console.log(
  JSON.stringify({
    firstTokenMs: Math.min(run.firstTokenMs, again.firstTokenMs),
    tokensPerSecond: Math.max(run.tokensPerSecond, again.tokensPerSecond),
    ids: run.ids,
  }),
)
