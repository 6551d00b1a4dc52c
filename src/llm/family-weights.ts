/** What families write their formulas with: weights by Transformers' names, linear layers, norms. */
import { matmulTransposed } from '../graph/composites/linear.ts'
import { rmsNormalization } from '../graph/composites/rms-normalization.ts'
import { add } from '../graph/operators/add.ts'
import { layerNormalization } from '../graph/operators/layer-normalization.ts'
import { matmul } from '../graph/operators/matmul.ts'
import { fixedDim, type Tensor } from '../graph/tensor.ts'
import type { LinearLayout, WeightLookup } from './decoder.ts'

export interface LinearOptions {
  /** Default false. */
  readonly bias?: boolean
  /** Default `out-in`. */
  readonly layout?: LinearLayout
}

export interface FamilyWeights {
  /** The name in this checkpoint of what Transformers calls `name`. */
  stored(name: string): string
  tensor(name: string, shape: readonly number[]): Tensor
  /** The linear layer `module`: x [..., in] -> [..., outFeatures]. Weight `<module>.weight`, bias `<module>.bias`. Every linear layer of every family is made here. */
  linear(x: Tensor, module: string, outFeatures: number, options?: LinearOptions): Tensor
  /** RMSNorm over the last axis with `<name>.weight`; `offset` is added to the weight (Gemma keeps w - 1). */
  rmsNorm(x: Tensor, name: string, options: { readonly epsilon: number; readonly offset?: number }): Tensor
  /** LayerNorm over the last axis with `<name>.weight` and `<name>.bias`. */
  layerNorm(x: Tensor, name: string, options: { readonly epsilon: number }): Tensor
}

export interface NameVariants {
  /** The prefix that Transformers writes today. */
  readonly prefix: string
  /** Prefixes that published checkpoints have in its place. */
  readonly others: readonly string[]
  /** A name after the prefix that every checkpoint of the family has. */
  readonly probe: string
}

export function familyWeights(lookup: WeightLookup, variants: NameVariants): FamilyWeights {
  const { prefix, others, probe } = variants
  const found = [prefix, ...others].find((candidate) => lookup.has?.(`${candidate}${probe}`) ?? true) ?? prefix
  const stored = (name: string): string => (name.startsWith(prefix) ? `${found}${name.slice(prefix.length)}` : name)
  const tensor = (name: string, shape: readonly number[]): Tensor => lookup(stored(name), shape)
  return {
    stored,
    tensor,
    linear(x, module, outFeatures, { bias = false, layout = 'out-in' } = {}) {
      const inFeatures = fixedDim(x.shape, -1, module)
      const plain = (): Tensor =>
        layout === 'out-in'
          ? matmulTransposed(x, tensor(`${module}.weight`, [outFeatures, inFeatures]))
          : matmul(x, tensor(`${module}.weight`, [inFeatures, outFeatures]))
      const layer = { module, weight: stored(`${module}.weight`), inFeatures, outFeatures, layout }
      const product = lookup.linear?.(x, layer, plain) ?? plain()
      return bias ? add(product, tensor(`${module}.bias`, [outFeatures])) : product
    },
    rmsNorm(x, name, { epsilon, offset }) {
      const weight = tensor(`${name}.weight`, [fixedDim(x.shape, -1, name)])
      return rmsNormalization(x, offset === undefined ? weight : add(weight, offset), { epsilon })
    },
    layerNorm(x, name, { epsilon }) {
      const shape = [fixedDim(x.shape, -1, name)]
      return layerNormalization(x, tensor(`${name}.weight`, shape), tensor(`${name}.bias`, shape), { epsilon })
    },
  }
}
