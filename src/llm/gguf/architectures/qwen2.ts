import type { Architecture } from '../architecture.ts'
import { decoderConfig, gatedNames } from './shared.ts'

export const qwen2: Architecture = {
  ...gatedNames,
  config: (metadata) => ({ model_type: 'qwen2', ...decoderConfig(metadata, 'qwen2') }),
}
