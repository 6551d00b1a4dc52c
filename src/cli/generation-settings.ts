/** How answers are generated: the same settings wherever a command generates. */
import { type GenerationOptions, generationOptionsSchema } from '../llm/generation.ts'
import { withoutUndefined } from '../runtime/session.ts'

export const generationSettings = generationOptionsSchema.shape

export const generationHelp = {
  temperature: '0: always the likeliest token (default unless the model says otherwise)',
  'top-k': 'choose among the k likeliest tokens; 0: no limit',
  'top-p': 'choose among the likeliest tokens that together have this probability',
  'repetition-penalty': 'above 1: tokens that occur already become less likely',
  'max-new-tokens': 'longest answer; default 256',
  'stop-token-ids': "end an answer at this token; default: the model's own",
  seed: 'of the random choices; default 0',
} as const

/** The part of a command's settings that is about generation; what is not given is left to the model's defaults. */
export function generationOptionsOf(settings: GenerationOptions): GenerationOptions {
  const { temperature, topK, topP, repetitionPenalty, maxNewTokens, stopTokenIds, seed } = settings
  return withoutUndefined({ temperature, topK, topP, repetitionPenalty, maxNewTokens, stopTokenIds, seed })
}
