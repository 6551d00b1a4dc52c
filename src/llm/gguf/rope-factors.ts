/** Factors of the rotary frequencies, which GGUF files keep as tensors: Llama 3's, one list, and Phi-3's, one for short and one for long sequences. */
import type { JsonObject } from '../../io/json.ts'
import { dequantise } from '../../weights/gguf/dequantise.ts'
import type { GgufFile } from '../../weights/gguf/gguf.ts'
import { defined } from './architectures/shared.ts'
import type { GgufMetadata } from './metadata.ts'

/**
 * `rope_scaling` for config.json; undefined where the file has no factors. Each frequency is divided by its factor: Transformers' `longrope` says that of any list,
 * Llama 3's too, whose own parameters the file does not have.
 */
export async function ropeFactors(file: GgufFile, metadata: GgufMetadata, config: JsonObject): Promise<JsonObject | undefined> {
  const list = async (name: string): Promise<number[] | undefined> =>
    file.tensors.has(name) ? [...(await dequantise(file, name))] : undefined
  const one = await list('rope_freqs.weight')
  const [short, long] = [one ?? (await list('rope_factors_short.weight')), one ?? (await list('rope_factors_long.weight'))]
  if (short === undefined || long === undefined) return undefined
  const attention = metadata.optionalNumber(`${metadata.text('general.architecture')}.rope.scaling.attn_factor`)
  return defined({
    rope_type: 'longrope',
    short_factor: short,
    long_factor: long,
    original_max_position_embeddings: config.original_max_position_embeddings ?? config.max_position_embeddings,
    attention_factor: one === undefined ? attention : 1,
  })
}
