/** What a caller may say about the choice of tokens. Apart from the choice itself: the thread that chooses gets options that were checked, and loads no schemas. */
import { z } from 'zod'

const penaltySchema = z.strictObject({
  /** Logits of tokens that occur in prompt or answer are divided by this (multiplied where negative): Keskar et al. 2019, section 4.1. 1: none. */
  repetitionPenalty: z.number().positive().max(100).optional(),
  /** Taken from the logit of every token that occurs in the answer. 0: none. */
  presencePenalty: z.number().min(-100).max(100).optional(),
  /** Taken from the logit of a token as often as it occurs in the answer. 0: none. */
  frequencyPenalty: z.number().min(-100).max(100).optional(),
  /** No sequence of so many tokens occurs twice in prompt and answer. 0: no limit. */
  noRepeatNgramSize: z.int().min(0).max(1000).optional(),
})
export type PenaltyOptions = z.infer<typeof penaltySchema>

export const samplingSchema = penaltySchema.extend({
  /** 0: the likeliest token (greedy). */
  temperature: z.number().min(0).max(100).optional(),
  /** Only the k likeliest. 0: no limit. */
  topK: z.int().min(0).optional(),
  /** Only the likeliest tokens that together reach this probability. 1: no limit. */
  topP: z.number().gt(0).max(1).optional(),
  /** Only tokens at least this share of the likeliest one's probability. 0: no limit. */
  minP: z.number().min(0).max(1).optional(),
  /** Only the tokens whose surprise is nearest to the expected one, until they reach this probability (Meister et al. 2023). 1: no limit. */
  typicalP: z.number().gt(0).max(1).optional(),
})
export interface SamplingOptions extends PenaltyOptions, Omit<z.infer<typeof samplingSchema>, keyof PenaltyOptions> {}
