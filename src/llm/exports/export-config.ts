/** What config.json says of an exported model, or what the export itself says where there is none. */
import { z } from 'zod'
import { ModalignError } from '../../errors.ts'
import { toFloat32 } from '../../weights/float16.ts'
import { ropeScaling } from '../rope-scaling.ts'
import { normalizations } from './export-attributes.ts'
import { type ExportFile, numberOf, readStored } from './export-file.ts'
import type { ExportWeights } from './export-weights.ts'

/** The families whose exports are understood: exporters change what weights mean in others (Gemma's norms, fused and transposed layers). */
const exported = ['llama', 'mistral', 'qwen2', 'qwen3', 'phi3'] as const

/** What of config.json decides how an export is read; the family's own schema checks the rest. */
export const exportConfigSchema = z.looseObject({
  model_type: z.enum(exported),
  hidden_size: z.int().positive(),
  vocab_size: z.int().positive(),
  num_hidden_layers: z.int().positive(),
  num_attention_heads: z.int().positive(),
  num_key_value_heads: z.int().positive().nullish(),
  head_dim: z.int().positive().nullish(),
  rms_norm_eps: z.number().positive().optional(),
  sliding_window: z.int().nullish(),
  tie_word_embeddings: z.boolean().optional(),
  max_position_embeddings: z.int().positive().optional(),
  original_max_position_embeddings: z.int().positive().optional(),
  partial_rotary_factor: z.number().positive().max(1).optional(),
  rope_theta: z.number().positive().optional(),
  rope_scaling: ropeScaling.nullish(),
  rope_parameters: ropeScaling.nullish(),
})
export type ExportConfig = z.infer<typeof exportConfigSchema>

/** onnxruntime-genai's own configuration, which stands in for a config.json that its builder leaves out. */
export const genaiConfigSchema = z.looseObject({
  model: z.looseObject({
    type: z.string(),
    vocab_size: z.int().positive(),
    context_length: z.int().positive(),
    decoder: z.looseObject({
      filename: z.string().regex(/^[^/\\:\0]+\.onnx$/),
      head_size: z.int().positive(),
      hidden_size: z.int().positive(),
      num_attention_heads: z.int().positive(),
      num_hidden_layers: z.int().positive(),
      num_key_value_heads: z.int().positive(),
    }),
  }),
})
export type GenaiConfig = z.infer<typeof genaiConfigSchema>

/**
 * A config.json from what an export of onnxruntime-genai says: sizes from its configuration, the norms' epsilon from its nodes, the angles' base from its table of cosines.
 *
 * @throws ModalignError LLM_CONFIG_MISSING where that is not enough, as for scaled angles
 */
export async function configFromExport({ model }: GenaiConfig, file: ExportFile, { matrices, vectors }: ExportWeights): Promise<unknown> {
  const { decoder } = model
  const missing = (got: string): ModalignError =>
    new ModalignError({
      code: 'LLM_CONFIG_MISSING',
      file: file.path,
      got,
      expected: 'config.json beside the export',
      hint: 'copy config.json from the model that was exported',
    })
  const gate = matrices.get('model.layers.0.mlp.gate_proj')
  const norm = file.nodes.find(({ opType }) => normalizations.has(opType))
  if (gate === undefined || norm === undefined) throw missing('an export without the layers of a Llama')
  return {
    model_type: model.type,
    vocab_size: model.vocab_size,
    max_position_embeddings: model.context_length,
    hidden_size: decoder.hidden_size,
    num_hidden_layers: decoder.num_hidden_layers,
    num_attention_heads: decoder.num_attention_heads,
    num_key_value_heads: decoder.num_key_value_heads,
    head_dim: decoder.head_size,
    intermediate_size: gate.out,
    rms_norm_eps: Number(numberOf(norm, 'epsilon', 1e-6).toPrecision(6)),
    rope_theta: await ropeTheta(file, decoder.head_size, missing),
    hidden_act: 'silu',
    tie_word_embeddings: !matrices.has('lm_head'),
    attention_bias: ['q_proj', 'qkv_proj'].some((name) => vectors.has(`model.layers.0.self_attn.${name}.bias`)),
    mlp_bias: vectors.has('model.layers.0.mlp.gate_proj.bias'),
  }
}

/** From the second row of the table of cosines: cos(theta^(-2i/d)), i = 0, 1, ... All of them must be of one base. */
async function ropeTheta(file: ExportFile, headDim: number, missing: (got: string) => ModalignError): Promise<number> {
  const table = file.tensors.get('cos_cache')
  const pairs = headDim / 2
  if (table?.dims.length !== 2 || table.dims[1] !== pairs || (table.dims[0] ?? 0) < 2) throw missing('an export without a table of cosines')
  const angles = toFloat32(await readStored(table))
    .subarray(pairs, 2 * pairs)
    .map(Math.acos)
  const theta = Number(((angles[1] ?? 1) ** (-headDim / 2)).toPrecision(4))
  const agrees = angles.every((angle, i) => Math.abs(Math.cos(angle) - Math.cos(theta ** ((-2 * i) / headDim))) < 1e-5)
  if (pairs < 2 || !Number.isFinite(theta) || !agrees) throw missing('angles that are scaled')
  return theta
}
