/** Vision transformers of the usual plan: patches, prefix tokens, positions, layers, a norm at the end. Families differ in names and details. */
import { add } from '../../src/graph/operators/add.ts'
import { reshape } from '../../src/graph/operators/reshape.ts'
import { slice } from '../../src/graph/operators/slice.ts'
import type { Tensor } from '../../src/graph/tensor.ts'
import type { FamilyWeights, NameVariants } from '../../src/llm/family-weights.ts'
import { patchEmbedding, pixelSize, positionsFor } from './patch-embedding.ts'
import { type LayerModules, type LayerShape, transformerLayer } from './transformer.ts'
import { type Size, type VisionTower, withPrefix } from './vision-tower.ts'

export interface TransformerPlan extends LayerShape {
  readonly width: number
  readonly layers: number
  readonly patch: Size
  readonly imageSize: Size
  readonly names: NameVariants
  readonly patches: { readonly module: string; readonly bias: boolean }
  /** The class token's name and stored shape; it has the first of the positions. */
  readonly classToken?: { readonly name: string; readonly shape: readonly number[] }
  /** Registers come after the class token and have no positions. */
  readonly registers?: { readonly name: string; readonly count: number }
  /** Absent: positions are the layers' business. */
  readonly positions?: { readonly name: string; readonly leadingAxis: boolean; readonly interpolation: 'bicubic' | 'antialiased bicubic' }
  /** What the plain layer is made of. */
  readonly modules?: (layer: number) => LayerModules
  /** A norm between the embeddings and the first layer. */
  readonly firstNorm?: string
  /** The norm that makes `last_hidden_state`. Absent: the last layer's output is it. */
  readonly finalNorm?: string
  /** Instead of `rotate`, where the angles hang on the picture's size. */
  readonly rotateFor?: (size: Size) => (x: Tensor) => Tensor
  /** Instead of the plain layer. */
  readonly layer?: (x: Tensor, weights: FamilyWeights, layer: number, rotate: LayerShape['rotate']) => Tensor
}

export function transformerTower(plan: TransformerPlan): VisionTower {
  const { width, layers, patch, names } = plan
  const prefixTokens = (plan.classToken === undefined ? 0 : 1) + (plan.registers?.count ?? 0)
  return {
    layers,
    widthAt: () => width,
    patchAt: () => patch,
    prefixTokens,
    names,
    forward(pixels, weights, layer) {
      let x = embeddings(pixels, weights, plan)
      const rotate = plan.rotateFor?.(pixelSize(pixels)) ?? plan.rotate
      const shape: LayerShape = rotate === undefined ? plan : { ...plan, rotate }
      const count = layer === 'last' ? layers : layer
      for (let index = 0; index < count; index++) x = layerOf(x, weights, index, plan, shape)
      return layer === 'last' && plan.finalNorm !== undefined ? weights.layerNorm(x, plan.finalNorm, { epsilon: plan.epsilon }) : x
    },
  }
}

function layerOf(x: Tensor, weights: FamilyWeights, index: number, { layer, modules }: TransformerPlan, shape: LayerShape): Tensor {
  if (layer !== undefined) return layer(x, weights, index, shape.rotate)
  if (modules === undefined) throw new Error('internal: a tower without layers')
  return transformerLayer(x, weights, modules(index), shape)
}

function embeddings(pixels: Tensor, weights: FamilyWeights, plan: TransformerPlan): Tensor {
  const { width, patch, classToken, registers, positions } = plan
  const patches = patchEmbedding(pixels, weights, plan.patches.module, { width, patch, bias: plan.patches.bias })
  const first = classToken && reshape(weights.tensor(classToken.name, classToken.shape), [1, 1, width])
  const places = positions && positionTable(weights, plan, positions)
  const own = places === undefined ? patches : add(patches, positionsFor(places.own, { ...places, patch, size: pixelSize(pixels) }))
  const classed = first === undefined ? [] : [places?.first === undefined ? first : add(first, places.first)]
  const registered = registers === undefined || registers.count === 0 ? [] : [weights.tensor(registers.name, [1, registers.count, width])]
  const x = classed.length + registered.length === 0 ? own : withPrefix([...classed, ...registered], own)
  return plan.firstNorm === undefined ? x : weights.layerNorm(x, plan.firstNorm, { epsilon: plan.epsilon })
}

/** The positions of the patches, and that of the class token. */
function positionTable(
  weights: FamilyWeights,
  { width, patch, imageSize, classToken }: TransformerPlan,
  { name, leadingAxis, interpolation }: NonNullable<TransformerPlan['positions']>,
): { readonly own: Tensor; readonly first?: Tensor; readonly side: number; readonly interpolation: 'bicubic' | 'antialiased bicubic' } {
  const side = Math.floor(imageSize.height / patch.height)
  const count = side * Math.floor(imageSize.width / patch.width)
  const extra = classToken === undefined ? 0 : 1
  const stored = weights.tensor(name, leadingAxis ? [1, count + extra, width] : [count + extra, width])
  const table = leadingAxis ? reshape(stored, [count + extra, width]) : stored
  if (extra === 0) return { own: table, side, interpolation }
  const own = slice(table, [{ axis: 0, start: 1 }])
  return { own, first: reshape(slice(table, [{ axis: 0, end: 1 }]), [1, 1, width]), side, interpolation }
}
