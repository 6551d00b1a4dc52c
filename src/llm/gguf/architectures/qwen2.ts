import type { Architecture } from '../architecture.ts'
import { decoderConfig, gatedStack } from './shared.ts'

export const qwen2: Architecture = {
  ...gatedStack(),
  config: (metadata) => ({ model_type: 'qwen2', ...decoderConfig(metadata, 'qwen2') }),
}
