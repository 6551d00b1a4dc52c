import { expect, test } from 'vitest'
import { size } from '../../graph/dim.ts'
import { constant, input, type Tensor } from '../../graph/tensor.ts'
import { attributeValue } from '../../onnx/build.ts'
import { type LoweredModel, lower } from '../../onnx/lower.ts'
import { uniforms } from '../../random.ts'
import { createLocalSession } from '../../runtime/local.ts'
import { withoutUndefined } from '../../runtime/session.ts'
import { float32Tensor, int64Tensor, type NamedTensors } from '../../tensors.ts'
import { cachedAttention } from '../cached-attention.ts'
import { appendingCache } from './appending-cache.ts'
import { cacheNames, freshCache, freshPlaces, generationInputs } from './graph-names.ts'
import { uncopiedAttention } from './uncopied-attention.ts'

const [kvHeads, group, headDim] = [2, 3, 16]
const heads = kvHeads * group
const decoder = { kvHeads, headDim }

/** Angles of `rows` positions. */
function table(rows: number, turn: (angle: number) => number): Tensor {
  const data = Float32Array.from({ length: (rows * headDim) / 2 }, (_, index) => {
    const [position, channel] = [Math.floor(index / (headDim / 2)), index % (headDim / 2)]
    return turn(position / 10 ** channel)
  })
  return constant(float32Tensor(data, [rows, headDim / 2]))
}

interface Kind {
  readonly kind: string
  readonly positions?: number
  readonly window?: number
  readonly softcap?: number
}

function graphs({ positions: rows, window, softcap }: Kind): { readonly growing: LoweredModel; readonly uncopied: LoweredModel } {
  const [batch, tokens] = [size('batch'), size('tokens')]
  const part = (name: string, count: number): Tensor => input(name, 'float32', [batch, tokens, count * headDim])
  const cache = (name: string): Tensor => input(name, 'float32', [batch, kvHeads, size('past'), headDim])
  const { past, present } = cacheNames(0)
  const ids = input(generationInputs.ids, 'int64', [batch, tokens])
  const inputs = {
    query: part('q', heads),
    key: part('k', kvHeads),
    value: part('v', kvHeads),
    pastKey: cache(past.key),
    pastValue: cache(past.value),
    positions: input(generationInputs.positions, 'int64', [batch, tokens]),
    lastPlaces: input(generationInputs.lastPlaces, 'int32', [batch]),
    totalLength: input(generationInputs.totalLength, 'int32', []),
    ...(rows !== undefined && { rotary: { cos: table(rows, Math.cos), sin: table(rows, Math.sin) } }),
  }
  const { output, key, value } = cachedAttention(inputs, { heads, kvHeads, scale: 0.2, ...withoutUndefined({ window, softcap }) })
  const { rotary: _, ...fed } = inputs
  const lowered = lower({
    outputs: { output, [present.key]: key, [present.value]: value },
    inputs: [...Object.values(fed), ids],
  })
  const appending = appendingCache(lowered, decoder)
  if (appending === undefined) throw new Error('GroupQueryAttention gives the cache')
  return { growing: lowered, uncopied: uncopiedAttention(appending, decoder) }
}

async function run(
  { bytes, externalRoot, externalData }: LoweredModel,
  feeds: NamedTensors,
): Promise<Readonly<Record<string, Float32Array>>> {
  await using session = await createLocalSession(withoutUndefined({ bytes, externalRoot, externalData }), { device: 'cpu', threads: 1 })
  const known = new Set(session.inputs.map(({ name }) => name))
  const outputs = await session.run(Object.fromEntries(Object.entries(feeds).filter(([name]) => known.has(name))))
  return Object.fromEntries(Object.entries(outputs).map(([name, { data }]) => [name, Float32Array.from(data, Number)]))
}

const kinds: readonly Kind[] = [
  { kind: 'angles', positions: 64 },
  { kind: 'more angles than are kept twice', positions: 2 ** 18 },
  { kind: 'no angles' },
  { kind: 'a window', positions: 64, window: 4 },
  { kind: 'a soft cap', positions: 64, softcap: 0.5 },
]

test.each(kinds)(
  'one token a row over a small cache and a large one, and three: the output and the new places are those of a copied cache ($kind)',
  async (kind) => {
    const { growing, uncopied } = graphs(kind)
    const operators = (uncopied.model.graph?.node ?? []).map(({ opType }) => opType)
    expect(operators).not.toContain('GroupQueryAttention')
    const branches = uncopied.model.graph?.node
      .flatMap(({ attribute }) => attribute.map(attributeValue))
      .flatMap((one) => ('graph' in one ? [one.graph] : []))
    expect(branches?.filter(({ node }) => node.some(({ opType }) => opType === 'GroupQueryAttention'))).toHaveLength(1)

    const lengths = [5, 9]
    const batch = lengths.length
    // A cache that is copied, and one that is large enough not to be.
    for (const [tokens, places] of [
      [1, 12],
      [1, 1024],
      [3, 12],
    ] as const) {
      // ONNX Runtime's operator takes several tokens only at the start of one row or of all.
      const starts = tokens === 1 ? lengths : [0, 0]
      const random = (name: string, dims: readonly number[]) =>
        float32Tensor(
          uniforms(
            dims.reduce((product, dim) => product * dim, 1),
            { seed: tokens, stream: name },
            { low: -1 },
          ),
          dims,
        )
      const { past, present } = cacheNames(0)
      const at = starts.flatMap((start) => Array.from({ length: tokens }, (_, token) => start + token))
      const feeds: NamedTensors = {
        q: random('q', [batch, tokens, heads * headDim]),
        k: random('k', [batch, tokens, kvHeads * headDim]),
        v: random('v', [batch, tokens, kvHeads * headDim]),
        [past.key]: random('past key', [batch, kvHeads, places, headDim]),
        [past.value]: random('past value', [batch, kvHeads, places, headDim]),
        [generationInputs.ids]: int64Tensor(
          at.map(() => 0),
          [batch, tokens],
        ),
        [generationInputs.positions]: int64Tensor(at, [batch, tokens]),
        [generationInputs.lastPlaces]: { dtype: 'int32', dims: [batch], data: Int32Array.from(starts, (start) => start + tokens - 1) },
        [generationInputs.totalLength]: { dtype: 'int32', dims: [], data: Int32Array.of(Math.max(...starts) + tokens) },
        [freshPlaces]: int64Tensor(
          starts.flatMap((start, row) =>
            Array.from({ length: kvHeads * tokens }, (_, index) => [row, Math.floor(index / tokens), start + (index % tokens)]).flat(),
          ),
          [batch, kvHeads, tokens, 3],
        ),
      }
      const [expected, found] = [await run(growing, feeds), await run(uncopied, feeds)]
      expect(found.output).toHaveLength(expected.output?.length ?? 0)
      for (const [index, value] of (expected.output ?? []).entries()) expect(found.output?.[index]).toBeCloseTo(value, 5)
      let index = 0
      for (const name of [present.key, present.value])
        for (const [row, start] of starts.entries())
          for (let head = 0; head < kvHeads; head++)
            for (let token = 0; token < tokens; token++)
              for (let channel = 0; channel < headDim; channel++) {
                const place = ((row * kvHeads + head) * places + start + token) * headDim + channel
                expect(found[freshCache]?.[index++]).toBeCloseTo(expected[name]?.[place] ?? Number.NaN, 6)
              }
      expect(found[freshCache]).toHaveLength(index)
    }
  },
)
