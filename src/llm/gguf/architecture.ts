/** What one architecture of llama.cpp is in Transformers' words: its config.json, the names of its weights, and how their rows lie. */
import type { JsonObject } from '../../io/json.ts'
import type { GgufMetadata } from './metadata.ts'

/** How a tensor's values become those of Transformers' weight. */
export interface Layout {
  /**
   * The order of rows, within groups of so many that lie together in both: row `r` of a group is row `source(r)` of the file's group. Absent: as they lie.
   */
  readonly rows?: { readonly group: number; readonly source: (row: number) => number }
  /** The file has the matrix transposed (GPT-2, whose layers keep [in, out]). */
  readonly transposed?: boolean
  /** Added to every value (Gemma's norms, which llama.cpp keeps as w + 1). */
  readonly plus?: number
}

/** Layers that are alike. */
export interface Stack {
  /** What `blk.` becomes; the layer's number follows. */
  readonly prefix: string
  /** Transformers' module for llama.cpp's, within a layer. */
  readonly names: Readonly<Record<string, string>>
}

export interface Architecture {
  /** config.json for a family of `src/llm/families`. */
  config(metadata: GgufMetadata): JsonObject
  /** Transformers' module for llama.cpp's, for what is in no layer: `token_embd` -> `model.embed_tokens`. */
  readonly names: Readonly<Record<string, string>>
  /** By what stands before the layer's number: `blk`; of encoder-decoders `enc.blk` and `dec.blk`. */
  readonly stacks: (config: JsonObject) => Readonly<Record<string, Stack>>
  /** By llama.cpp's name without `blk.N.` and with the ending: `attn_q.weight`. */
  layout?(tensor: string, config: JsonObject): Layout
  /** Tensors that are no weights: what is in them, the config has. */
  readonly others?: readonly string[]
}
