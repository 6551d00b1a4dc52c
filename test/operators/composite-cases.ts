/** For each composite, random applications of it. */
import { quickGelu, silu, swiglu } from '../../src/graph/composites/activations.ts'
import { scaledDotProductAttention } from '../../src/graph/composites/attention.ts'
import { linearCrossEntropy, tokenCrossEntropy } from '../../src/graph/composites/cross-entropy.ts'
import { matmulTransposed } from '../../src/graph/composites/linear.ts'
import { rmsNormalization } from '../../src/graph/composites/rms-normalization.ts'
import { rotaryEmbedding } from '../../src/graph/composites/rotary-embedding.ts'
import { type CaseOf, given, indices, numbers } from './cases.ts'
import { axes, axis, batch, type Draw, fixed, tokens } from './draw.ts'

export const composites: Readonly<Record<string, CaseOf>> = {
  quickGelu(draw, dtype) {
    return { inputs: [numbers(draw, dtype, axes(draw, 0, 3), { min: -4, max: 4 })], build: (x) => quickGelu(x) }
  },
  silu(draw, dtype) {
    return { inputs: [numbers(draw, dtype, axes(draw, 0, 3), { min: -4, max: 4 })], build: silu }
  },
  swiglu(draw, dtype) {
    const shape = axes(draw, 0, 3)
    return { inputs: [numbers(draw, dtype, shape), numbers(draw, dtype, shape)], build: (gate, up) => swiglu(gate, given(up)) }
  },
  matmulTransposed(draw, dtype) {
    const [width, out] = [axis(draw), fixed(draw.length())]
    const x = numbers(draw, dtype, [...axes(draw, 1, 2), width])
    return { inputs: [x, numbers(draw, dtype, [out, width])], build: (a, w) => matmulTransposed(a, given(w)), affineIn: [0, 1] }
  },
  rmsNormalization(draw, dtype) {
    const channels = fixed(draw.length() + 2)
    const epsilon = draw.pick([1e-6, 1e-2])
    const x = numbers(draw, dtype, [...axes(draw, 1, 2), channels])
    return { inputs: [x, numbers(draw, dtype, [channels])], build: (t, w) => rmsNormalization(t, given(w), { epsilon }) }
  },
  rotaryEmbedding(draw, dtype) {
    const half = fixed(draw.pick([2, 4]))
    const [samples, length] = sequence(draw)
    const interleaved = draw.bool()
    const x = numbers(draw, dtype, [samples, fixed(draw.int(1, 2)), length, fixed(2 * half.length)])
    const positions = indices(draw, [samples, length], 7, { negative: false })
    // ONNX Runtime's operator wants as many angles as tokens, whatever the positions are.
    const angles = fixed(32)
    const [cos, sin] = [numbers(draw, dtype, [angles, half]), numbers(draw, dtype, [angles, half])]
    return {
      inputs: [x, positions, cos, sin],
      frozen: [2, 3],
      build: (t, p, c, s) => rotaryEmbedding(t, given(p), given(c), given(s), { interleaved }),
      affineIn: [0],
    }
  },
  scaledDotProductAttention(draw, dtype) {
    const [kvHeads, group] = [draw.int(1, 2), draw.int(1, 3)]
    const [samples, queries] = sequence(draw)
    const [keys, width] = [draw.pick([queries, fixed(draw.length())]), fixed(draw.pick([2, 4, 8]))]
    const q = numbers(draw, dtype, [samples, fixed(kvHeads * group), queries, width])
    const [k, v] = [
      numbers(draw, dtype, [samples, fixed(kvHeads), keys, width]),
      numbers(draw, dtype, [samples, fixed(kvHeads), keys, width]),
    ]
    // Biases of positions have an axis of heads, where heads make no groups.
    const perHead = group === 1 ? [[samples, fixed(kvHeads), queries, keys]] : []
    const over = draw.pick([
      undefined,
      [queries, keys],
      [fixed(1), fixed(1), queries, keys],
      [samples, fixed(1), queries, keys],
      ...perHead,
    ])
    const cap = draw.pick([{}, { softcap: 1.5 }])
    const mask = over === undefined ? [] : [numbers(draw, dtype, over, { min: -3, max: 0 })]
    return {
      inputs: [q, k, v, ...mask],
      frozen: [3],
      build: (a, b, c, m) => scaledDotProductAttention(a, given(b), given(c), { ...cap, ...(m === undefined ? {} : { mask: m }) }),
      affineIn: [2],
    }
  },
  tokenCrossEntropy(draw, dtype) {
    const [rows, classes] = [axis(draw), fixed(draw.length() + 1)]
    const labels = indices(draw, [rows], classes.length, { negative: false })
    return { inputs: [numbers(draw, dtype, [rows, classes]), labels], build: (logits, l) => tokenCrossEntropy(logits, given(l)) }
  },
  linearCrossEntropy(draw) {
    // float32 in any case: what the loss is defined for. The evaluator computes in doubles all the same.
    const [chunks, rows, width, classes] = [fixed(draw.int(1, 2)), axis(draw), fixed(draw.length()), fixed(draw.length() + 1)]
    const labels = indices(draw, [chunks, rows], classes.length, { negative: false })
    const hidden = numbers(draw, 'float32', [chunks, rows, width])
    const weights = numbers(draw, 'float32', [chunks, rows], { min: 0, max: 1 })
    // A power of two: its reciprocal is exact.
    const cap = draw.pick([{}, { softcap: 2 }])
    return {
      inputs: [hidden, numbers(draw, 'float32', [classes, width]), labels, weights],
      frozen: [3],
      build: (h, w, l, r) => linearCrossEntropy(h, given(w), given(l), given(r), cap).sum,
    }
  },
}

function sequence(draw: Draw): readonly [typeof batch, typeof tokens] {
  return [draw.bool() ? batch : fixed(draw.int(1, 2)), draw.bool() ? tokens : fixed(draw.length())]
}
