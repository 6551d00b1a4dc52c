/** Which of a model's layers and weights are trained: adapters of any family, from a trace of its decoder. */
import { matmulTransposed } from '../../graph/composites/linear.ts'
import { size } from '../../graph/dim.ts'
import { add } from '../../graph/operators/add.ts'
import { mul } from '../../graph/operators/mul.ts'
import { filled, normal, type Parameter, ParameterScope, uniform } from '../../graph/parameters.ts'
import { input, type Tensor } from '../../graph/tensor.ts'
import type { BuildDecoder, DecodeContext, Decoder, DropoutInputs, LinearLayer, WeightLookup } from '../decoder.ts'
import { dropped } from './dropout.ts'
import { type AdapterSettings, loraScale } from './settings.ts'
import { matchingModules, matchingWeights } from './weight-names.ts'

export interface LoraLayer {
  readonly layer: LinearLayer
  /** [rank, in]. */
  readonly a: Parameter
  /** [out, rank]. */
  readonly b: Parameter
}

/** What is trained of weights, whatever model they are of. */
export interface WeightPlan {
  readonly settings: WeightSettings
  /** By module. */
  readonly lora: ReadonlyMap<string, LoraLayer>
  /** By the weight's name in the checkpoint. */
  readonly unfrozen: ReadonlyMap<string, Parameter>
}
export type WeightSettings = Pick<AdapterSettings, 'lora' | 'unfreeze'>

export interface AdapterPlan extends WeightPlan {
  readonly settings: AdapterSettings
  readonly softPrompt: Parameter | undefined
  /** All of them, in a fixed order. */
  readonly parameters: readonly Parameter[]
  /** Everything that the decoder looks up: names in the checkpoint, and shapes. */
  readonly weights: ReadonlyMap<string, readonly number[]>
}

/** Parameters of a language model are named `llm.<name in the checkpoint or in an adapter file>`. */
export const scopeName = 'llm'

/**
 * @throws ADAPTER_TARGET for a name or pattern that chooses nothing.
 */
export function planAdapters(build: BuildDecoder, settings: AdapterSettings, embeddingRms: number): AdapterPlan {
  const { decoder, ...trace } = traceDecoder(build)
  const scope = new ParameterScope(scopeName)
  const { lora, unfrozen } = planWeights(trace, settings, scope)
  const softPrompt =
    settings.softPrompt && declared(scope, 'prompt_embeddings', [settings.softPrompt.tokens, decoder.hiddenSize], normal(embeddingRms))
  return { settings, lora, unfrozen, softPrompt, parameters: scope.parameters, weights: trace.weights }
}

/**
 * Declares the parameters in `scope`.
 *
 * @throws ADAPTER_TARGET for a name or pattern that chooses nothing.
 */
export function planWeights({ layers, weights }: WeightTrace, settings: WeightSettings, scope: ParameterScope): WeightPlan {
  const lora = new Map<string, LoraLayer>()
  if (settings.lora !== undefined) {
    const { rank, targets } = settings.lora
    for (const module of matchingModules(targets, [...layers.keys()])) {
      const layer = layers.get(module)
      if (layer === undefined) continue
      const own = scope.child(module)
      // Kaiming's uniform distribution with a = sqrt(5), PEFT's choice, has the bound 1 / sqrt(in).
      const a = declared(own, 'lora_A.weight', [rank, layer.inFeatures], uniform(1 / Math.sqrt(layer.inFeatures)))
      lora.set(module, { layer, a, b: declared(own, 'lora_B.weight', [layer.outFeatures, rank], filled(0)) })
    }
  }
  const unfrozen = new Map<string, Parameter>()
  if (settings.unfreeze !== undefined) {
    // Values come from the checkpoint: an initializer only says what a parameter without one would be.
    for (const name of matchingWeights(settings.unfreeze, [...weights.keys()]))
      unfrozen.set(name, declared(scope, name, weights.get(name) ?? [], filled(0)))
  }
  return { settings, lora, unfrozen }
}

function declared(scope: ParameterScope, name: string, shape: readonly number[], initializer: Parameter['initializer']): Parameter {
  const tensor = scope.parameter(name, shape, initializer)
  return { name: scope.path === '' ? name : `${scope.path}.${name}`, shape, initializer, tensor }
}

/** What building a model asked for: its linear layers by module, and the shapes of its weights by their names in the checkpoint. */
export interface WeightTrace {
  readonly layers: ReadonlyMap<string, LinearLayer>
  readonly weights: ReadonlyMap<string, readonly number[]>
}
export interface DecoderTrace extends WeightTrace {
  readonly decoder: Decoder
}

/** A trace that fills while a model is built with `change`. */
export function traceWeights(): WeightTrace & { readonly change: (lookup: WeightLookup) => WeightLookup } {
  const layers = new Map<string, LinearLayer>()
  const weights = new Map<string, readonly number[]>()
  const change = (lookup: WeightLookup): WeightLookup =>
    changedLookup(lookup, {
      weight(name, shape) {
        weights.set(name, shape)
        return lookup(name, shape)
      },
      linear(_, layer, plain) {
        layers.set(layer.module, layer)
        return plain()
      },
    })
  return { layers, weights, change }
}

/** What a decoder asks for when it is built and applied once. */
export function traceDecoder(build: BuildDecoder): DecoderTrace {
  const { change, layers, weights } = traceWeights()
  const decoder = build(change)
  const ids = input('ids', 'int64', [size('batch'), size('tokens')])
  const context: DecodeContext = {
    positions: input('positions', 'int64', [size('batch'), size('tokens')]),
    ...(decoder.hasEncoder === true && {
      source: {
        lengths: input('source.lengths', 'int64', [size('batch')]),
        encoderPlaces: input('source.encoder', 'int64', [size('source')]),
        decoderPlaces: input('source.decoder', 'int64', [size('target')]),
      },
    }),
  }
  decoder.decode(decoder.embed(ids), context)
  return { decoder, layers, weights }
}

/**
 * The decoder with its adapters in place.
 *
 * @param value what stands for a parameter in the graph: its input (training), or its present value (generation).
 */
export function adaptedDecoder(build: BuildDecoder, plan: AdapterPlan, value: (parameter: Parameter) => Tensor): Decoder {
  // Building a graph is synchronous: what a call of `decode` was given holds for every layer that it makes.
  let dropout: DropoutInputs | undefined
  const inner = build(adaptedWeights(plan, value, () => dropout))
  return {
    ...inner,
    decode(inputsEmbeds, context) {
      dropout = context.dropout
      try {
        return inner.decode(inputsEmbeds, context)
      } finally {
        dropout = undefined
      }
    },
  }
}

/**
 * The lookup with a plan's parameters in place.
 *
 * @param value what stands for a parameter in the graph.
 * @param dropout what applies when a layer is made.
 */
export function adaptedWeights(
  { lora, unfrozen, settings }: WeightPlan,
  value: (parameter: Parameter) => Tensor,
  dropout: () => DropoutInputs | undefined = () => undefined,
): (lookup: WeightLookup) => WeightLookup {
  return (lookup) =>
    changedLookup(lookup, {
      weight(name, shape) {
        const parameter = unfrozen.get(name)
        return parameter === undefined ? lookup(name, shape) : value(parameter)
      },
      linear(x, layer, plain) {
        const product = lookup.linear === undefined || unfrozen.has(layer.weight) ? plain() : lookup.linear(x, layer, plain)
        const own = lora.get(layer.module)
        if (own === undefined || settings.lora === undefined) return product
        const inputs = dropout()
        const kept = inputs === undefined ? x : dropped(x, layer.module, inputs)
        const low = mul(matmulTransposed(kept, value(own.a)), loraScale(settings.lora))
        return add(product, matmulTransposed(low, value(own.b)))
      },
    })
}

/** What `TrainedParts` says of dropout; undefined where there is none. */
export function dropoutOf({ settings, lora }: AdapterPlan): { readonly rate: number; readonly width: number } | undefined {
  const rate = settings.lora?.dropout ?? 0
  return rate === 0 ? undefined : { rate, width: Math.max(...[...lora.values()].map(({ layer }) => layer.inFeatures)) }
}

function changedLookup(
  { has }: WeightLookup,
  {
    weight,
    linear,
  }: { readonly weight: (name: string, shape: readonly number[]) => Tensor; readonly linear: NonNullable<WeightLookup['linear']> },
): WeightLookup {
  return Object.assign((name: string, shape: readonly number[]) => weight(name, shape), { linear, ...(has !== undefined && { has }) })
}
