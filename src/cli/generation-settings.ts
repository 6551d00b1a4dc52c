/** How answers are generated: the same settings wherever a command generates. */
import { checkGenerationOptions, type GenerationOptions, generationOptionsSchema } from '../llm/generation/options.ts'

// Commands print answers, not probabilities.
const { logprobs: _, topLogprobs: __, ...settings } = generationOptionsSchema.shape
export const generationSettings = settings

export const generationHelp = {
  temperature: '0: always the likeliest token (default unless the model says otherwise)',
  'top-k': 'choose among the k likeliest tokens; 0: no limit',
  'top-p': 'choose among the likeliest tokens that together have this probability',
  'min-p': "choose among tokens with at least this share of the likeliest one's probability",
  'typical-p': 'choose among the tokens of about the expected surprise that together have this probability',
  'repetition-penalty': 'above 1: tokens that occur already become less likely',
  'presence-penalty': 'taken from the logits of tokens that occur in the answer',
  'frequency-penalty': 'the same, as often as they occur',
  'no-repeat-ngram-size': 'no sequence of so many tokens occurs twice; 0: no limit',
  'max-new-tokens': 'longest answer; default 256',
  'min-new-tokens': 'shortest answer; default 0',
  'stop-token-ids': "end an answer at this token; default: the model's own",
  'stop-strings': 'end an answer before this text',
  seed: 'of the random choices; default 0',
  'num-beams': 'above 1: beam search for the likeliest whole answer; it comes at once',
  'length-penalty': 'beam search: above 0 prefers long answers; default 1',
  'early-stopping': 'beam search: true ends with the first finished beams, never only when no better one can come; default false',
  choices: 'the answer is the likeliest of these texts',
} as const

/**
 * The part of a command's settings that is about generation; what is not given is left to the model's defaults.
 *
 * @throws GENERATION_OPTIONS for settings that exclude each other
 */
export function generationOptionsOf(given: GenerationOptions): GenerationOptions {
  const names: ReadonlySet<string> = new Set(Object.keys(generationSettings))
  return checkGenerationOptions(Object.fromEntries(Object.entries(given).filter(([name, value]) => names.has(name) && value !== undefined)))
}
