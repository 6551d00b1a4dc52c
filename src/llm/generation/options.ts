/** What can be asked of a generation: one schema for the API and the command line. Names as in Hugging Face's GenerationConfig. */
import { z } from 'zod'
import { ModalignError } from '../../errors.ts'
import { samplingSchema } from './sampling-options.ts'

/** As many alternatives as OpenAI's interface allows. */
const mostAlternatives = 20
const mostBeams = 256

export const generationOptionsSchema = samplingSchema.extend({
  /** Default 256. */
  maxNewTokens: z.int().min(1).max(1_000_000).optional(),
  /** No stop token before so many tokens. Default 0. */
  minNewTokens: z.int().min(0).max(1_000_000).optional(),
  /** Generation stops after one of these, which is not part of the answer; default: the model's end-of-turn tokens. */
  stopTokenIds: z.array(z.int().min(0)).readonly().optional(),
  /** Generation stops where one of these appears in the answer's text, which ends before it. */
  stopStrings: z.array(z.string().min(1)).readonly().optional(),
  /** Default 0. The random numbers of an answer depend on it and on the request's key alone, never on the place in a batch. */
  seed: z.int().min(0).optional(),
  /** Above 1: beam search, whose answer comes whole. Default 1. */
  numBeams: z.int().min(1).max(mostBeams).optional(),
  /** Beams are compared by the sum of their log-probabilities divided by their length to this power. Default 1. */
  lengthPenalty: z.number().min(-100).max(100).optional(),
  /** When beam search ends: once there are `numBeams` finished beams (true), once a better one is unlikely (false, the default), or impossible ('never'). */
  earlyStopping: z.union([z.boolean(), z.literal('never')]).optional(),
  /** The answer is the one of these texts that the model finds likeliest, by the sum of the log-probabilities of its tokens. */
  choices: z.array(z.string().min(1)).min(1).readonly().optional(),
  /** Tell each token's log-probability under the model, before penalties and temperature. Default false. */
  logprobs: z.boolean().optional(),
  /** And those of the likeliest so many tokens in its place. Default 0. */
  topLogprobs: z.int().min(0).max(mostAlternatives).optional(),
})
export interface GenerationOptions extends z.infer<typeof generationOptionsSchema> {}

/** Options that say how tokens are drawn: they mean nothing where beams are searched or choices compared. */
const samplingOnly = ['temperature', 'topK', 'topP', 'minP', 'typicalP', 'logprobs', 'topLogprobs'] as const
const beamsOnly = ['lengthPenalty', 'earlyStopping'] as const

/**
 * Checks options that may come from anywhere, also against each other.
 *
 * @throws GENERATION_OPTIONS
 * @example
 * checkGenerationOptions({ temperature: 0.7, topP: 0.9 })
 */
export function checkGenerationOptions(given: unknown): GenerationOptions {
  const checked = generationOptionsSchema.safeParse(given)
  if (!checked.success) {
    const [issue] = checked.error.issues
    const path = issue?.code === 'unrecognized_keys' ? [...issue.path, ...issue.keys.slice(0, 1)] : (issue?.path ?? [])
    throw new ModalignError({ code: 'GENERATION_OPTIONS', field: `/${path.join('/')}`, expected: issue?.message })
  }
  const options = checked.data
  const refuse = (field: keyof GenerationOptions, expected: string): void => {
    if (options[field]) throw new ModalignError({ code: 'GENERATION_OPTIONS', field: `/${field}`, got: String(options[field]), expected })
  }
  if (options.choices !== undefined) {
    for (const field of [...samplingOnly, ...beamsOnly, 'numBeams', 'stopStrings', 'minNewTokens'] as const)
      if (field !== 'numBeams' || options.numBeams !== 1) refuse(field, 'nothing beside choices, which are compared and not drawn')
  } else if ((options.numBeams ?? 1) > 1) {
    for (const field of [...samplingOnly, 'stopStrings'] as const)
      refuse(field, 'nothing beside numBeams: beam search is deterministic and gives whole answers')
  } else {
    for (const field of beamsOnly) if (options[field] !== undefined) refuse(field, 'numBeams above 1 beside it')
  }
  return options
}
