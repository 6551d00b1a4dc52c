/**
 * Evaluation in the middle of a run: the loss on held-out data, and answers to given questions.
 *
 * It runs while the trainer is suspended, so that the weights that it repacked and the memory of its runs are free, in sessions that map the weights' file instead of
 * copying it: a run with evaluations needs no more memory than one without.
 */
import { z } from 'zod'
import type { ModalignError } from '../errors.ts'
import type { Trainables } from '../graph/parameters.ts'
import { createGenerator } from '../llm/generation/generator.ts'
import { modalities } from '../model/branches.ts'
import type { Part, Turn } from '../model/contracts.ts'
import type { MultimodalModel } from '../model/multimodal-model.ts'
import { createSession } from '../runtime/node.ts'
import { type SessionOptions, withoutUndefined } from '../runtime/session.ts'
import type { NamedTensors } from '../tensors.ts'
import type { BatchItem } from './batch.ts'
import type { PromptAnswer } from './run-log.ts'
import type { SampleBatches } from './sample-batches.ts'
import type { PreparedSamples } from './samples.ts'
import { stepGraph } from './step-graph.ts'

const paths = z.union([z.string().min(1), z.array(z.string().min(1)).readonly()]).optional()

/** A question, with the paths of media that it is about. */
export const samplePromptSchema = z.union([
  z.string().min(1),
  z.strictObject({ text: z.string().min(1), image: paths, audio: paths, video: paths }),
])
export type SamplePrompt = z.infer<typeof samplePromptSchema>

export interface EvaluationResult {
  /** `loss`: mean over the held-out samples' supervised tokens, in nats; `supervisedTokens`: their number. Empty without held-out data. */
  readonly figures: Readonly<Record<string, number>>
  readonly answers: readonly PromptAnswer[]
}

export interface EvaluationOptions {
  readonly heldOut?: { readonly samples: PreparedSamples; readonly batches: SampleBatches } | undefined
  readonly prompts: readonly SamplePrompt[]
  readonly promptTokens: number
  readonly batchSize: number
  readonly place: Pick<SessionOptions, 'device' | 'threads'>
  /** Called with each held-out sample whose media cannot be used, once. Absent: the first one throws. */
  readonly onBad?: ((error: ModalignError) => void) | undefined
}

export class Evaluation {
  readonly #model: MultimodalModel
  readonly #options: EvaluationOptions
  readonly #reported = new Set<number>()

  constructor(model: MultimodalModel, options: EvaluationOptions) {
    this.#model = model
    this.#options = options
  }

  /** Held-out samples left out so far. */
  get bad(): number {
    return this.#reported.size
  }

  /** With the model's parameters as they are now. @throws what encoding, decoding and the runs throw */
  async run(signal?: AbortSignal): Promise<EvaluationResult> {
    return { figures: await this.#loss(signal), answers: await this.#answers(signal) }
  }

  async #loss(signal: AbortSignal | undefined): Promise<EvaluationResult['figures']> {
    const { heldOut, batchSize, place } = this.#options
    if (heldOut === undefined) return {}
    const { bytes, externalRoot, externalData } = stepGraph({
      decoder: this.#model.llm.decoder,
      media: this.#model.mediaPaths,
      gradients: false,
    }).model
    await using session = await createSession(withoutUndefined({ bytes, externalRoot, externalData }), {
      ...place,
      memoryPattern: false,
      prepacking: false,
    })
    const parameters = parameterFeeds(this.#model.parameters)
    let [sum, weights, supervisedTokens] = [0, 0, 0]
    for (let start = 0; start < heldOut.samples.length; start += batchSize) {
      const items = await this.#items(heldOut, start, Math.min(start + batchSize, heldOut.samples.length))
      for (const { feeds, weight, targets } of heldOut.batches.batches(items)) {
        const { loss } = await session.run({ ...feeds, ...parameters }, { fetch: ['loss'], ...(signal && { signal }) })
        sum += Number(loss?.data[0])
        weights += weight
        supervisedTokens += targets
      }
    }
    return weights === 0 ? {} : { loss: sum / weights, supervisedTokens }
  }

  async #items({ samples, batches }: NonNullable<EvaluationOptions['heldOut']>, start: number, end: number): Promise<readonly BatchItem[]> {
    const indices = Array.from({ length: end - start }, (_, i) => start + i)
    const found = await batches.items(await Promise.all(indices.map((index) => samples.at(index))))
    return found.flatMap((one, place) => {
      if (!(one instanceof Error)) return [one]
      if (this.#options.onBad === undefined) throw one
      const index = start + place
      if (!this.#reported.has(index)) this.#options.onBad(one)
      this.#reported.add(index)
      return []
    })
  }

  async #answers(signal: AbortSignal | undefined): Promise<readonly PromptAnswer[]> {
    const { prompts, promptTokens, place } = this.#options
    if (prompts.length === 0) return []
    const { llm } = this.#model
    const requests = await this.#model.requests(prompts.map(conversationOf), signal === undefined ? {} : { signal })
    await using generator = createGenerator(
      { decoder: llm.decoder, stopTokenIds: llm.tokenizer.eosIds, defaults: {} },
      { ...withoutUndefined(place), prepacking: false },
    )
    const answers: number[][] = prompts.map(() => [])
    for await (const event of generator.generate(requests, { maxNewTokens: promptTokens, ...(signal && { signal }) })) {
      if (event.type === 'token') answers[event.row]?.push(event.id)
    }
    return answers.map((ids, index) => ({
      prompt: textOf(prompts[index] ?? ''),
      answer: llm.tokenizer.decode(ids, { skipSpecialTokens: true }).trim(),
    }))
  }
}

const textOf = (prompt: SamplePrompt): string => (typeof prompt === 'string' ? prompt : prompt.text)

/** As the training data have it: media first, then the question on a line of its own. */
function conversationOf(prompt: SamplePrompt): readonly Turn[] {
  const media = modalities.flatMap((type): readonly Part[] => {
    const sources = typeof prompt === 'string' ? [] : [prompt[type] ?? []].flat()
    return sources.map((source) => ({ type, source }))
  })
  const text = textOf(prompt)
  return [{ role: 'user', content: [...media, { type: 'text', text: media.length === 0 ? text : `\n${text}` }] }]
}

function parameterFeeds(parameters: Trainables): NamedTensors {
  return Object.fromEntries(Object.entries(parameters).map(([name, { dims, data }]) => [name, { dtype: 'float32' as const, dims, data }]))
}
