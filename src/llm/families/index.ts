/** The decoder families by `model_type` of config.json. A family is one file and one line here. */

import type { z } from 'zod'
import { ModalignError } from '../../errors.ts'
import type { Decoder, WeightLookup } from '../decoder.ts'
import { bloom, bloomConfig } from './bloom.ts'
import { gemma2, gemma2Config } from './gemma2.ts'
import { gemma3, gemma3Config, gemma3Text, gemma3TextConfig } from './gemma3.ts'
import { gptNeox, gptNeoxConfig } from './gpt-neox.ts'
import { gpt2, gpt2Config } from './gpt2.ts'
import { llama, llamaConfig } from './llama.ts'
import { mistral, mistralConfig } from './mistral.ts'
import { opt, optConfig } from './opt.ts'
import { phi3, phi3Config } from './phi3.ts'
import { qwen2, qwen2Config } from './qwen2.ts'
import { qwen3, qwen3Config } from './qwen3.ts'
import { t5, t5Config } from './t5.ts'

/** Builds a decoder from a config that has its family's shape. */
type Build = (config: unknown, weight: WeightLookup, file?: string) => Decoder

export const families: Readonly<Record<string, Build>> = {
  bloom: family(bloomConfig, bloom),
  gemma2: family(gemma2Config, gemma2),
  gemma3: family(gemma3Config, gemma3),
  gemma3_text: family(gemma3TextConfig, gemma3Text),
  gpt2: family(gpt2Config, gpt2),
  gpt_neox: family(gptNeoxConfig, gptNeox),
  llama: family(llamaConfig, llama),
  mistral: family(mistralConfig, mistral),
  opt: family(optConfig, opt),
  phi3: family(phi3Config, phi3),
  qwen2: family(qwen2Config, qwen2),
  qwen3: family(qwen3Config, qwen3),
  t5: family(t5Config, t5),
}

/**
 * @throws LLM_FAMILY_UNKNOWN listing the families there are, LLM_CONFIG naming the field of config.json.
 */
export function buildDecoder(config: unknown, weight: WeightLookup, file?: string): Decoder {
  const type = typeof config === 'object' && config !== null && 'model_type' in config ? config.model_type : undefined
  const build = typeof type === 'string' && Object.hasOwn(families, type) ? families[type] : undefined
  if (build === undefined) {
    throw new ModalignError({
      code: 'LLM_FAMILY_UNKNOWN',
      file,
      field: '/model_type',
      got: JSON.stringify(type) ?? 'nothing',
      expected: `one of ${Object.keys(families).join(', ')}`,
    })
  }
  return build(config, weight, file)
}

function family<C>(schema: z.ZodType<C>, build: (config: C, weight: WeightLookup) => Decoder): Build {
  return (config, weight, file) => {
    const parsed = schema.safeParse(config)
    if (parsed.success) return build(parsed.data, weight)
    const [issue] = parsed.error.issues
    throw new ModalignError({
      code: 'LLM_CONFIG',
      file,
      field: `/${issue?.path.join('/') ?? ''}`,
      expected: issue?.message,
      hint: 'the file is not a config.json that this family can read',
    })
  }
}
