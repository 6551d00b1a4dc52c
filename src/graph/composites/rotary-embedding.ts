import { type Apply, defineComposite, only, required } from '../operator.ts'
import { add } from '../operators/add.ts'
import { concat } from '../operators/concat.ts'
import { gather } from '../operators/gather.ts'
import { mul } from '../operators/mul.ts'
import { neg } from '../operators/neg.ts'
import { reshape } from '../operators/reshape.ts'
import { slice } from '../operators/slice.ts'
import { split } from '../operators/split.ts'
import { sub } from '../operators/sub.ts'
import { unsqueeze } from '../operators/unsqueeze.ts'
import { constant, fixedDim, type Tensor } from '../tensor.ts'

export interface RotaryAttributes {
  /** Pairs are (0,1), (2,3), ... instead of (0,d/2), (1,d/2+1), ... */
  readonly interleaved: boolean
}

/** A rotation's gradient is the rotation back: the same operator with -sin. */
const apply: Apply<RotaryAttributes> = defineComposite<RotaryAttributes>({
  name: 'RotaryEmbedding',
  expand(inputs, { interleaved }) {
    const [x, positions] = [required(inputs, 0, 'RotaryEmbedding'), required(inputs, 1, 'RotaryEmbedding')]
    const [cosCache, sinCache] = [required(inputs, 2, 'RotaryEmbedding'), required(inputs, 3, 'RotaryEmbedding')]
    const half = fixedDim(cosCache.shape, 1, 'RotaryEmbedding cache')
    // [batch, tokens, half] -> [batch, 1, tokens, half]: one angle for all heads.
    const [cos, sin] = [unsqueeze(gather(cosCache, positions), [1]), unsqueeze(gather(sinCache, positions), [1])]
    if (!interleaved) {
      const [first, second] = split(x, [half, half], -1)
      if (first === undefined || second === undefined) throw new Error('internal: two halves')
      return [concat([sub(mul(first, cos), mul(second, sin)), add(mul(second, cos), mul(first, sin))], -1)]
    }
    const even = slice(x, [{ axis: -1, step: 2 }])
    const odd = slice(x, [{ axis: -1, start: 1, step: 2 }])
    const pairs = [sub(mul(even, cos), mul(odd, sin)), add(mul(odd, cos), mul(even, sin))].map((part) =>
      unsqueeze(part, [part.shape.length]),
    )
    return [reshape(concat(pairs, -1), x.shape)]
  },
  gradient({ inputs: [, positions, cosCache, sinCache], upstream: [g], needs, attributes }) {
    if (!needs[0] || g === undefined || positions === undefined || cosCache === undefined || sinCache === undefined) return []
    return [only(apply([g, positions, cosCache, negated(sinCache)], attributes))]
  },
})

/**
 * Rotates pairs of channels by position-dependent angles.  x [batch, heads, tokens, d], positions int64 [batch, tokens], caches [maxPositions, d/2].
 * Half-split pairs (Llama) by default, neighbouring pairs (GPT-J) when `interleaved`.   Su et al. 2021, eq. 34.
 */
export function rotaryEmbedding(
  x: Tensor,
  positions: Tensor,
  cosCache: Tensor,
  sinCache: Tensor,
  { interleaved = false }: { readonly interleaved?: boolean } = {},
): Tensor {
  return only(apply([x, positions, cosCache, sinCache], { interleaved }))
}

const negatives = new WeakMap<Tensor, Tensor>()

/** -sin as a constant of its own, once for each cache, so that providers that want a constant cache have one. */
function negated(sinCache: Tensor): Tensor {
  const known = negatives.get(sinCache)
  if (known !== undefined) return known
  const { node } = sinCache
  const made =
    node.kind === 'constant' && node.value.dtype === 'float32'
      ? constant({ ...node.value, data: node.value.data.map((v) => -v) })
      : neg(sinCache)
  negatives.set(sinCache, made)
  return made
}
