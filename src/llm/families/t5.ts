/**
 * T5, T5 1.1 and Flan-T5: an encoder reads the source (media among it), a decoder answers. Positions are biases of scores by distance.   Raffel et al. 2020; Chung et al. 2022.
 */
import { z } from 'zod'
import { ModalignError } from '../../errors.ts'
import { scaledDotProductAttention } from '../../graph/composites/attention.ts'
import { gatherRows } from '../../graph/composites/block-quantised.ts'
import { addDims, subtractDims } from '../../graph/dim.ts'
import { add } from '../../graph/operators/add.ts'
import { and } from '../../graph/operators/and.ts'
import { concat } from '../../graph/operators/concat.ts'
import { equal } from '../../graph/operators/equal.ts'
import { expand } from '../../graph/operators/expand.ts'
import { gather } from '../../graph/operators/gather.ts'
import { greaterOrEqual } from '../../graph/operators/greater-or-equal.ts'
import { less } from '../../graph/operators/less.ts'
import { mul } from '../../graph/operators/mul.ts'
import { sub } from '../../graph/operators/sub.ts'
import { unsqueeze } from '../../graph/operators/unsqueeze.ts'
import { where } from '../../graph/operators/where.ts'
import { dimAt, integers, scalar, type Tensor } from '../../graph/tensor.ts'
import { activate, activationName, gated } from '../activations.ts'
import { additiveMask, indices } from '../attention-mask.ts'
import { cachedAttention } from '../cached-attention.ts'
import type { DecodeContext, Decoded, Decoder, LayerCache, SourceTokens, WeightLookup } from '../decoder.ts'
import { familyWeights } from '../family-weights.ts'
import { positionLimit } from '../gated-decoder.ts'
import { type RelativeBuckets, relativeBias } from '../relative-bias.ts'
import { joinHeads, splitHeads } from '../self-attention.ts'

/** `relu`, `gated-gelu`, ...: whether there is a gate, and the activation. For T5 1.1 `gelu` means its tanh approximation. */
const feedForwardProjection = z.string().transform((text, { addIssue }) => {
  const [, gate, name] = /^(gated-)?(.+)$/.exec(text) ?? []
  const activation = activationName.safeParse(text === 'gated-gelu' ? 'gelu_new' : name)
  if (activation.success) return { gated: gate !== undefined, activation: activation.data }
  addIssue({ code: 'custom', message: `an activation, or gated- and an activation: ${activationName.options.join(', ')}` })
  return z.NEVER
})

/** What the family reads of config.json; other keys are ignored. Defaults are T5Config's. */
export const t5Config = z.object({
  model_type: z.literal('t5'),
  vocab_size: z.int().positive().default(32_128),
  d_model: z.int().positive().default(512),
  d_kv: z.int().positive().default(64),
  d_ff: z.int().positive().default(2048),
  num_layers: z.int().positive().default(6),
  num_decoder_layers: z.int().positive().nullish(),
  num_heads: z.int().positive().default(8),
  relative_attention_num_buckets: z.int().positive().default(32),
  relative_attention_max_distance: z.int().positive().max(1_000_000).default(128),
  layer_norm_epsilon: z.number().positive().default(1e-6),
  feed_forward_proj: feedForwardProjection.default({ gated: false, activation: 'relu' }),
  /** In configs of Transformers 4, false says two things: a matrix of its own for the output, and no scaling before it. Transformers 5 writes the second by itself. */
  tie_word_embeddings: z.boolean().default(true),
  scale_decoder_outputs: z.boolean().nullish(),
  decoder_start_token_id: z.int().min(0).nullish(),
  pad_token_id: z.int().min(0).nullish(),
  /** Of the training; the model knows no limit. */
  n_positions: positionLimit.default(512),
})
export type T5Config = z.infer<typeof t5Config>

const prefixes = { prefix: '', others: [], probe: 'shared.weight' }

/**
 * @example
 * const decoder = t5(t5Config.parse(config), (name, shape) => checkpointWeight(name, shape))
 * const { hidden } = decoder.decode(decoder.embed(ids), { positions, source: { lengths, encoderPlaces, decoderPlaces } })
 */
export function t5(config: T5Config, lookup: WeightLookup): Decoder {
  const { d_model: width, d_kv: headDim, num_heads: heads, vocab_size: vocabularySize } = config
  const weights = familyWeights(lookup, prefixes)
  const inner = heads * headDim
  const scaled = config.scale_decoder_outputs ?? config.tie_word_embeddings
  const ownHead = lookup.has?.('lm_head.weight') ?? !(config.tie_word_embeddings && scaled)
  const embeddings = weights.tensor('shared.weight', [vocabularySize, width])
  const buckets = { buckets: config.relative_attention_num_buckets, distance: config.relative_attention_max_distance }

  const normalise = (x: Tensor, name: string): Tensor => weights.rmsNorm(x, name, { epsilon: config.layer_norm_epsilon })
  const split = (x: Tensor, name: string): Tensor => splitHeads(weights.linear(x, name, inner), heads, headDim)
  const attend = (q: Tensor, { key, value }: LayerCache, mask: Tensor): Tensor =>
    joinHeads(scaledDotProductAttention(q, key, value, { scale: 1, mask }))

  /** What is added to the scores of a stack: queries and keys int64, [1 or batch, queries] and [1 or batch, keys]. */
  const bias = (stack: string, queries: Tensor, keys: Tensor, direction: RelativeBuckets['direction']): Tensor => {
    const name = `${stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight`
    return relativeBias(weights.tensor(name, [buckets.buckets, heads]), queries, keys, { ...buckets, direction })
  }

  function feedForward(x: Tensor, name: string): Tensor {
    const h = normalise(x, `${name}.layer_norm`)
    const own = `${name}.DenseReluDense`
    const { activation } = config.feed_forward_proj
    const open = config.feed_forward_proj.gated
      ? gated(activation, weights.linear(h, `${own}.wi_0`, config.d_ff), weights.linear(h, `${own}.wi_1`, config.d_ff))
      : activate(activation, weights.linear(h, `${own}.wi`, config.d_ff))
    return add(x, weights.linear(open, `${own}.wo`, width))
  }

  function encode(inputsEmbeds: Tensor, { lengths, encoderPlaces }: SourceTokens): Tensor {
    let x = gather(inputsEmbeds, encoderPlaces, 1)
    const places = unsqueeze(encoderPlaces, [0])
    const within = less(unsqueeze(encoderPlaces, [0, 1, 2]), unsqueeze(lengths, [1, 2, 3]))
    const mask = add(bias('encoder', places, places, 'both'), additiveMask(within))
    for (let layer = 0; layer < config.num_layers; layer++) {
      const name = `encoder.block.${layer}`
      const own = `${name}.layer.0.SelfAttention`
      const h = normalise(x, `${name}.layer.0.layer_norm`)
      const attended = attend(split(h, `${own}.q`), { key: split(h, `${own}.k`), value: split(h, `${own}.v`) }, mask)
      x = feedForward(add(x, weights.linear(attended, `${own}.o`, width)), `${name}.layer.1`)
    }
    return normalise(x, 'encoder.final_layer_norm')
  }

  function decode(inputsEmbeds: Tensor, context: DecodeContext): Decoded {
    const { source, cache } = context
    if (context.segments !== undefined) {
      throw new ModalignError({ code: 'LLM_SEGMENTS', got: 'packed sequences', expected: 'one sequence a row: the model has an encoder' })
    }
    if (source === undefined) {
      throw new ModalignError({ code: 'LLM_SOURCE', got: 'no source', expected: "which tokens are the encoder's: `source` of the context" })
    }
    const encoded = encode(inputsEmbeds, source)
    const [batch, targets, sources] = [dimAt(inputsEmbeds.shape, 0), dimAt(source.decoderPlaces.shape, 0), dimAt(encoded.shape, 1)]
    // Counted from the decoder's start token; negative where a row's source goes on.
    const positions = sub(gather(context.positions, source.decoderPlaces, 1), unsqueeze(sub(source.lengths, 1), [1]))
    const start = gatherRows(embeddings, integers([config.decoder_start_token_id ?? config.pad_token_id ?? 0], []))
    let x = where(unsqueeze(equal(positions, 0), [2]), start, gather(inputsEmbeds, source.decoderPlaces, 1))

    const causal = add(bias('decoder', positions, positions, 'past'), causalAmong(positions))
    const made: LayerCache[] = []
    const layers = config.num_decoder_layers ?? config.num_layers
    for (let layer = 0; layer < layers; layer++) {
      const name = `decoder.block.${layer}`
      const own = `${name}.layer.0.SelfAttention`
      const h = normalise(x, `${name}.layer.0.layer_norm`)
      const past = cache?.layers[2 * layer]
      let attended: Tensor
      if (cache !== undefined && past !== undefined) {
        const places = unsqueeze(indices(addDims(dimAt(past.key.shape, 2), targets)), [0])
        const { output, ...longer } = cachedAttention(
          {
            query: weights.linear(h, `${own}.q`, inner),
            key: weights.linear(h, `${own}.k`, inner),
            value: weights.linear(h, `${own}.v`, inner),
            pastKey: past.key,
            pastValue: past.value,
            positions,
            lastPlaces: cache.lastPlaces,
            totalLength: cache.totalLength,
            bias: bias('decoder', positions, places, 'past'),
          },
          { heads, kvHeads: heads, scale: 1 },
        )
        attended = output
        made.push(longer)
      } else {
        const seen = { key: split(h, `${own}.k`), value: split(h, `${own}.v`) }
        attended = attend(split(h, `${own}.q`), seen, causal)
        made.push(seen)
      }
      x = add(x, weights.linear(attended, `${own}.o`, width))

      const look = `${name}.layer.1.EncDecAttention`
      const fresh = { key: split(encoded, `${look}.k`), value: split(encoded, `${look}.v`) }
      const before = cache?.layers[2 * layer + 1]
      const known =
        before === undefined ? fresh : { key: concat([before.key, fresh.key], 2), value: concat([before.value, fresh.value], 2) }
      made.push(known)
      const length = before === undefined ? sources : addDims(dimAt(before.key.shape, 2), sources)
      const within = additiveMask(less(unsqueeze(indices(length), [0, 1, 2]), unsqueeze(source.lengths, [1, 2, 3])))
      const query = split(normalise(x, `${name}.layer.1.layer_norm`), `${look}.q`)
      x = add(x, weights.linear(attend(query, known, expand(within, [batch, 1, targets, length])), `${look}.o`, width))
      x = feedForward(x, `${name}.layer.2`)
    }
    const normal = normalise(x, 'decoder.final_layer_norm')
    const earlier = expand(scalar(0), [batch, subtractDims(dimAt(inputsEmbeds.shape, 1), targets), width])
    return { hidden: concat([earlier, scaled ? mul(normal, width ** -0.5) : normal], 1), cache: made }
  }

  return {
    embeddingsName: 'shared.weight',
    hiddenSize: width,
    vocabularySize,
    layers: 2 * (config.num_decoder_layers ?? config.num_layers),
    kvHeads: heads,
    headDim,
    // A source and an answer of the length that it was trained with.
    maxPositions: 2 * config.n_positions,
    hasEncoder: true,
    embed: (ids) => gatherRows(embeddings, ids),
    decode,
    head: ownHead ? weights.tensor('lm_head.weight', [vocabularySize, width]) : embeddings,
  }
}

/** A token sees itself and those before it down to the start token.  positions int64 [batch, tokens] -> [batch, 1, tokens, tokens]. */
function causalAmong(positions: Tensor): Tensor {
  const [query, key] = [unsqueeze(positions, [1, 3]), unsqueeze(positions, [1, 2])]
  return additiveMask(and(greaterOrEqual(query, key), greaterOrEqual(key, 0)))
}
