/** What of a language model is trained, as plain data: what a caller, a run file and a saved model say. */
import { z } from 'zod'
import { ModalignError } from '../../errors.ts'

export const loraSchema = z.strictObject({
  /** Columns of A^T and of B: the rank of what is added to a weight. Default 8. */
  rank: z.int().min(1).max(65_536).default(8),
  /** What is added is scaled by alpha / rank. Default: the rank, a scale of 1. */
  alpha: z.number().positive().max(1e6).optional(),
  /**
   * Which linear layers: `all-linear` (default), or names. A name is a layer's whole path as Transformers writes it, or its last parts: `q_proj` means every layer
   * whose path ends in `.q_proj`. The output matrix is never one of them.
   */
  targets: z.union([z.literal('all-linear'), z.array(z.string().min(1)).min(1).readonly()]).default('all-linear'),
  /** Share of the inputs of A that is set to 0, in training alone. Default 0. */
  dropout: z.number().min(0).lt(1).default(0),
  /** Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023). Default false. */
  rslora: z.boolean().default(false),
})

export const softPromptSchema = z.strictObject({
  /** Embeddings learned in front of every sequence. */
  tokens: z.int().min(1).max(4096),
  /** Whose token embeddings they begin as, repeated or cut to length. Default: random numbers of the size of the model's embeddings. */
  text: z.string().min(1).optional(),
})

export const adapterShape = {
  lora: loraSchema.optional(),
  softPrompt: softPromptSchema.optional(),
  /**
   * Weights that are trained themselves: `all`, or patterns over their names in the checkpoint. `*` stands for any characters but dots, `**` for any characters; the
   * rest is taken literally, from the first character to the last: `model.layers.29.**`, `model.layers.*.mlp.down_proj.weight`, `model.norm.weight`.
   */
  unfreeze: z.union([z.literal('all'), z.array(z.string().min(1)).min(1).readonly()]).optional(),
} as const

export const adapterSchema = z.strictObject(adapterShape)

/** What callers write. */
export type AdapterOptions = z.input<typeof adapterSchema>
/** The same with defaults filled in. */
export type AdapterSettings = z.output<typeof adapterSchema>
export type LoraSettings = z.output<typeof loraSchema>
export type SoftPromptSettings = z.output<typeof softPromptSchema>

/** @throws ADAPTER_OPTIONS naming the field, or where nothing would be trained. */
export function parseAdapterOptions(options: unknown): AdapterSettings {
  const parsed = adapterSchema.safeParse(options)
  const [issue] = parsed.error?.issues ?? []
  if (!parsed.success) {
    const path = issue?.code === 'unrecognized_keys' ? [...issue.path, ...issue.keys.slice(0, 1)] : (issue?.path ?? [])
    throw new ModalignError({
      code: 'ADAPTER_OPTIONS',
      field: path.map((part) => `/${String(part)}`).join(''),
      got: JSON.stringify(options) ?? 'nothing',
      expected: issue?.message,
    })
  }
  if (!hasAdapters(parsed.data))
    throw new ModalignError({ code: 'ADAPTER_OPTIONS', got: 'nothing to train', expected: 'lora, softPrompt or unfreeze' })
  return parsed.data
}

export function hasAdapters({ lora, softPrompt, unfreeze }: AdapterOptions): boolean {
  return lora !== undefined || softPrompt !== undefined || unfreeze !== undefined
}

/** What B A x is multiplied by. */
export function loraScale({ rank, alpha = rank, rslora }: LoraSettings): number {
  return alpha / (rslora ? Math.sqrt(rank) : rank)
}
