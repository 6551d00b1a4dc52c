/** The small Llama of the parity fixtures, ready to generate; with a record of what its session was asked for. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { checkpointWeights } from '../src/llm/checkpoint-weights.ts'
import { buildDecoder } from '../src/llm/families/index.ts'
import type { GeneratorModel } from '../src/llm/generation/cache-rows.ts'
import { cacheAbilities, generationGraph } from '../src/llm/generation/graph.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import type { NamedTensors } from '../src/tensors.ts'
import { openCheckpoint } from '../src/weights/checkpoint.ts'

const folder = fileURLToPath(new URL('./fixtures/parity/llama/untied-biases-wide-heads/', import.meta.url))

export interface WatchedModel extends GeneratorModel {
  /** Tokens of each run, padding included: [batch, tokens]. */
  readonly runs: (readonly number[])[]
  readonly vocabularySize: number
}

/** @param kind what the session may do with the cache: the fused graph with new places appended, fused with caches that grow, or the plain formula. */
export async function generationModel(kind: 'appending' | 'growing' | 'formula' = 'appending'): Promise<WatchedModel> {
  const decoder = buildDecoder(JSON.parse(readFileSync(`${folder}config.json`, 'utf8')), checkpointWeights(await openCheckpoint(folder)))
  const lowered = generationGraph(decoder, { fused: kind !== 'formula', appends: kind === 'appending' })
  const { bytes, externalRoot } = lowered
  const session = await createLocalSession({ bytes, ...(externalRoot !== undefined && { externalRoot }) }, { device: 'cpu', threads: 1 })
  const runs: (readonly number[])[] = []
  const run = (feeds: NamedTensors, options: Parameters<typeof session.run>[1]): Promise<NamedTensors> => {
    runs.push(feeds.ids?.dims ?? [])
    return session.run(feeds, options)
  }
  const { appends, continues } = cacheAbilities(lowered, decoder, session.device)
  return {
    session: Object.assign(Object.create(session), { run }),
    decoder,
    appends,
    continues,
    runs,
    vocabularySize: decoder.vocabularySize,
  }
}
