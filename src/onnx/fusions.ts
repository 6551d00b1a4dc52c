/** Composites that ONNX Runtime has as one operator. Each rule stands here only because it measured faster than the formula, or keeps less. */
import { z } from 'zod'
import type { OperatorNode } from '../graph/tensor.ts'
import type { FusionContext } from './lower.ts'

/** Emits a node's fused form and returns the names of its outputs, in the composite's order. */
export type FusionRule = (context: FusionContext, node: OperatorNode, attributes: unknown) => readonly string[]

const microsoft = 'com.microsoft'
const normalization = z.object({ epsilon: z.number() })
const rotary = z.object({ interleaved: z.boolean() })
const gate = z.object({ alpha: z.number() })
const packedBits = z.object({ bits: z.number() })
const cached = z.object({
  heads: z.number(),
  kvHeads: z.number(),
  scale: z.number(),
  window: z.number().optional(),
  softcap: z.number().optional(),
})

/** GroupQueryAttention of ONNX Runtime's CPU provider takes heads of a multiple of this many channels. */
const headChannels = 16

/** The rule for a composite, if there is one and it holds for this node. */
export function fusionOf({ operator, inputs }: OperatorNode): FusionRule | undefined {
  if (operator.kind !== 'composite' || !Object.hasOwn(fusions, operator.name)) return undefined
  if (operator.name === 'CachedAttention') {
    const headDim = inputs[3]?.shape[3]
    if (typeof headDim !== 'number' || headDim % headChannels !== 0 || inputs[10] !== undefined) return undefined
  }
  return fusions[operator.name]
}

const fusions: Readonly<Record<string, FusionRule>> = {
  /** The weight is read transposed as it lies; no second copy. */
  MatMulTransposed: (context, { inputs: [x, weight] }) =>
    context.node(
      'FusedMatMul',
      [context.value(x), context.value(weight)],
      1,
      { transA: { int: 0 }, transB: { int: 1 }, alpha: { float: 1 } },
      microsoft,
    ),

  RMSNormalization(context, { inputs: [x, weight] }, attributes) {
    const { epsilon } = normalization.parse(attributes)
    return context.node('SimplifiedLayerNormalization', [context.value(x), context.value(weight)], 1, {
      axis: { int: -1 },
      epsilon: { float: epsilon },
      stash_type: { int: 1 },
    })
  },

  RotaryEmbedding(context, { inputs: [x, positions, cosCache, sinCache] }, attributes) {
    const { interleaved } = rotary.parse(attributes)
    const operands = [context.value(x), context.value(positions), context.value(cosCache), context.value(sinCache)]
    return context.node('RotaryEmbedding', operands, 1, { interleaved: { int: interleaved ? 1 : 0 } }, microsoft)
  },

  QuickGelu(context, { inputs: [x] }, attributes) {
    const { alpha } = gate.parse(attributes)
    return context.node('QuickGelu', [context.value(x)], 1, { alpha: { float: alpha } }, microsoft)
  },

  /** The caches and the rows' own lengths are the operator's; it derives the positions itself. */
  CachedAttention(context, { inputs: [query, key, value, pastKey, pastValue, , cos, sin, lastPlaces, totalLength] }, attributes) {
    const { heads, kvHeads, scale, window, softcap } = cached.parse(attributes)
    const turned = cos === undefined ? [] : [cos, sin]
    const operands = [query, key, value, pastKey, pastValue, lastPlaces, totalLength, ...turned].map((tensor) => context.value(tensor))
    return context.node(
      'GroupQueryAttention',
      operands,
      3,
      {
        num_heads: { int: heads },
        kv_num_heads: { int: kvHeads },
        scale: { float: scale },
        ...(turned.length === 0 ? {} : { do_rotary: { int: 1 }, rotary_interleaved: { int: 0 } }),
        ...(window === undefined ? {} : { local_window_size: { int: window } }),
        ...(softcap === undefined ? {} : { softcap: { float: softcap } }),
      },
      microsoft,
    )
  },

  /** Level 4: activations are quantised to 8 bits block by block, which is what makes it fast on CPUs. */
  MatMulBlocks(context, { inputs: [x, packed, scales] }, attributes) {
    const { bits } = packedBits.parse(attributes)
    const [rows, blocks, bytes] = packed?.shape ?? []
    if (typeof rows !== 'number' || typeof blocks !== 'number' || typeof bytes !== 'number') throw new Error('internal: blocks are counted')
    const blockSize = (bytes * 8) / bits
    return context.node(
      'MatMulNBits',
      [context.value(x), context.value(packed), context.value(scales)],
      1,
      {
        K: { int: blocks * blockSize },
        N: { int: rows },
        bits: { int: bits },
        block_size: { int: blockSize },
        accuracy_level: { int: 4 },
      },
      microsoft,
    )
  },
}
