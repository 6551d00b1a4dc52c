/** The architectures of llama.cpp that a family of ours computes, by `general.architecture`. An architecture is one file and one line here. */
import { ModalignError } from '../../../errors.ts'
import type { Architecture } from '../architecture.ts'
import type { GgufMetadata } from '../metadata.ts'
import { bloom } from './bloom.ts'
import { gemma2 } from './gemma2.ts'
import { gemma3 } from './gemma3.ts'
import { gpt2 } from './gpt2.ts'
import { gptneox } from './gptneox.ts'
import { llama } from './llama.ts'
import { phi3 } from './phi3.ts'
import { qwen2 } from './qwen2.ts'
import { qwen3 } from './qwen3.ts'
import { t5 } from './t5.ts'

export const architectures: Readonly<Record<string, Architecture>> = { bloom, gemma2, gemma3, gpt2, gptneox, llama, phi3, qwen2, qwen3, t5 }

/** @throws ModalignError `GGUF_ARCHITECTURE` listing those there are, `GGUF_METADATA` */
export function architectureOf(metadata: GgufMetadata): Architecture {
  const field = 'general.architecture'
  const name = metadata.text(field)
  const found = Object.hasOwn(architectures, name) ? architectures[name] : undefined
  if (found !== undefined) return found
  const expected = `one of ${Object.keys(architectures).join(', ')}`
  throw new ModalignError({ code: 'GGUF_ARCHITECTURE', file: metadata.file, field, got: name, expected })
}
