/** The decoder families by `model_type` of config.json. A family is one file and one line here. */

import type { z } from 'zod'
import { ModalignError } from '../../errors.ts'
import type { Decoder, WeightLookup } from '../decoder.ts'
import { llama, llamaConfig } from './llama.ts'

/** Builds a decoder from a config that has its family's shape. */
type Build = (config: unknown, weight: WeightLookup, file?: string) => Decoder

export const families: Readonly<Record<string, Build>> = {
  llama: family(llamaConfig, llama),
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
