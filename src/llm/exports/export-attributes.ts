/**
 * Holds what an export's operators say to what config.json says: the graph that is built from the configuration must compute what the exported one does.
 * Attributes and inputs of fused attention and norms, and the table of cosines.
 */
import { ModalignError } from '../../errors.ts'
import type { NodeProto } from '../../onnx/onnx_pb.ts'
import { toFloat32 } from '../../weights/float16.ts'
import { type Rotary, rotaryFor } from '../rope-scaling.ts'
import type { ExportConfig } from './export-config.ts'
import { type ExportFile, numberOf, readStored } from './export-file.ts'

export const normalizations = new Set(['SimplifiedLayerNormalization', 'SkipSimplifiedLayerNormalization', 'RMSNormalization'])
const attentions = new Set(['GroupQueryAttention', 'MultiHeadAttention', 'Attention'])
/** Which input of an operator is its table of cosines. */
const cosines: Readonly<Record<string, number>> = { GroupQueryAttention: 7, RotaryEmbedding: 2 }

interface Rule {
  readonly attribute: string
  /** What the operator takes where the node does not say it. */
  readonly otherwise: number
  readonly right: (value: number) => boolean
  readonly expected: string
}

const near = (wanted: number) => (value: number) => Math.abs(value - wanted) <= 1e-5 * Math.abs(wanted)
const is = (attribute: string, wanted: number, expected: string, otherwise = wanted): Rule => ({
  attribute,
  otherwise,
  right: (value) => value === wanted,
  expected,
})

function rulesFor({ opType, domain }: NodeProto, config: ExportConfig): readonly Rule[] {
  const { num_attention_heads: heads, hidden_size: width, sliding_window: window } = config
  const kvHeads = config.num_key_value_heads ?? heads
  const headDim = config.head_dim ?? width / heads
  const scale = 1 / Math.sqrt(headDim)
  const epsilon = config.rms_norm_eps ?? 1e-6
  if (normalizations.has(opType))
    return [{ attribute: 'epsilon', otherwise: 1e-5, right: near(epsilon), expected: `rms_norm_eps ${epsilon}` }]
  // 0 stands for what the operators take by themselves.
  const scaled: Rule = {
    attribute: 'scale',
    otherwise: 0,
    right: (value) => value === 0 || near(scale)(value),
    expected: `${scale}, of heads of ${headDim}`,
  }
  const countedHeads = is('num_heads', heads, `num_attention_heads ${heads}`, 0)
  switch (opType) {
    case 'MultiHeadAttention':
      return [scaled, countedHeads]
    case 'GroupQueryAttention':
      return [
        scaled,
        countedHeads,
        is('kv_num_heads', kvHeads, `num_key_value_heads ${kvHeads}`, 0),
        is('softcap', 0, 'no soft cap'),
        is('smooth_softmax', 0, 'the usual softmax'),
        is('rotary_interleaved', 0, 'angles of halves'),
        {
          attribute: 'local_window_size',
          otherwise: -1,
          right: (value) => value === -1 || value === window,
          expected: window == null ? 'no window' : `sliding_window ${window}`,
        },
      ]
    case 'Attention':
      // ONNX's own. ONNX Runtime's operator of this name holds its weights, which are then missing.
      return domain === 'com.microsoft' ? [] : [scaled, is('softcap', 0, 'no soft cap')]
    case 'RotaryEmbedding':
      return [is('interleaved', 0, 'angles of halves'), ...(domain === 'com.microsoft' ? [is('scale', 1, 'positions as they are')] : [])]
    case 'QuickGelu':
      return [is('alpha', 1, 'SiLU', 1.702)]
    default:
      return []
  }
}

/**
 * @throws ModalignError LLM_EXPORT_CONFIG naming the first difference
 */
export async function checkAttributes(file: ExportFile, config: ExportConfig): Promise<void> {
  const refuse = (field: string, got: string, expected: string): ModalignError =>
    new ModalignError({
      code: 'LLM_EXPORT_CONFIG',
      file: file.path,
      field,
      got,
      expected,
      hint: 'the export computes something else than the model that config.json describes',
    })
  for (const node of file.nodes) {
    for (const { attribute, otherwise, right, expected } of rulesFor(node, config)) {
      const value = numberOf(node, attribute, otherwise)
      if (!right(value)) throw refuse(`${node.name}/${attribute}`, String(value), expected)
    }
    const extra = extraInput(node)
    if (extra !== undefined) throw refuse(`${node.name}/${extra}`, `an input ${extra}`, 'attention without it')
  }
  const turns = file.nodes.some(
    (node) =>
      node.opType === 'RotaryEmbedding' ||
      node.opType === 'Cos' ||
      (node.opType === 'GroupQueryAttention' && numberOf(node, 'do_rotary', 0) === 1),
  )
  const first = file.nodes.find(({ opType }) => attentions.has(opType))
  if (!turns && first !== undefined)
    throw refuse(`${first.name}/do_rotary`, 'queries and keys that are not turned by their places', 'rotary positions')
  await checkAngles(file, config, refuse)
}

/** Inputs that change what attention computes, and that no exporter gives these families. */
const inputsOfAttention = [undefined, 'attention_bias', 'head_sink', 'k_scale', 'v_scale', 'q_norm_weight', 'k_norm_weight']

function extraInput({ opType, input }: NodeProto): string | undefined {
  if (opType !== 'GroupQueryAttention') return undefined
  const place = input.findIndex((name, i) => i > 9 && name !== '')
  return place < 0 ? undefined : (inputsOfAttention[place - 9] ?? `of place ${place}`)
}

/** The second row of a table holds the cosines of the angles of one position. Tables that depend on the length of the sequence are outputs, and pass. */
async function checkAngles(
  file: ExportFile,
  config: ExportConfig,
  refuse: (field: string, got: string, expected: string) => ModalignError,
): Promise<void> {
  const rotary = rotaryOf(config)
  const pairs = rotary.frequencies.length
  const names = new Set(file.nodes.map(({ opType, input }) => input[cosines[opType] ?? -1] ?? ''))
  for (const name of names) {
    const table = file.tensors.get(name)
    if (table?.dims.length !== 2 || (table.dims[0] ?? 0) < 2) continue
    if (table.dims[1] !== pairs) throw refuse(name, `${table.dims[1]} angles`, `${pairs}`)
    const row = toFloat32(await readStored(table)).subarray(pairs, 2 * pairs)
    const tolerance = table.dtype === 'float32' ? 1e-4 : 4e-3
    const wrong = row.findIndex((value, i) => !(Math.abs(value - rotary.amplitude * Math.cos(rotary.frequencies[i] ?? 0)) <= tolerance))
    if (wrong >= 0) {
      const expected = rotary.amplitude * Math.cos(rotary.frequencies[wrong] ?? 0)
      throw refuse(name, `cosine ${row[wrong]} of angle ${wrong}`, `${expected}, by rope_theta and its scaling`)
    }
  }
}

function rotaryOf(config: ExportConfig): Rotary {
  return rotaryFor({
    theta: config.rope_theta ?? 10_000,
    headDim: config.head_dim ?? config.hidden_size / config.num_attention_heads,
    maxPositions: config.max_position_embeddings ?? 4096,
    partial: config.partial_rotary_factor,
    scaling: config.rope_parameters ?? config.rope_scaling,
    originalPositions: config.original_max_position_embeddings,
  })
}

/** Where attention says that it has no window, the model has none, whatever config.json says. */
export function withoutUnusedWindow<Config extends ExportConfig>(file: ExportFile, config: Config): Config {
  const nodes = file.nodes.filter(({ opType }) => opType === 'GroupQueryAttention')
  const open = nodes.length > 0 && nodes.every((node) => numberOf(node, 'local_window_size', -1) === -1)
  return open && config.sliding_window != null ? { ...config, sliding_window: null } : config
}
