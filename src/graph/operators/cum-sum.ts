import { evaluateAlongAxis } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { integers, normaliseAxis, type Tensor } from '../tensor.ts'

export interface CumSumOptions {
  /** Each sum leaves its own element out. Default false. */
  readonly exclusive?: boolean
  /** Sums from the end. Default false. */
  readonly reverse?: boolean
}
interface Attributes extends Required<CumSumOptions> {
  readonly axis: number
}

const apply = defineOperator<Attributes>({
  name: 'CumSum',
  shape: (inputs) => [required(inputs, 0, 'CumSum')],
  gradient: ({ upstream: [g], needs, attributes: { axis, exclusive, reverse } }) => [
    needs[0] && g ? cumSum(g, axis, { exclusive, reverse: !reverse }) : undefined,
  ],
  evaluate: ([x], { axis, exclusive, reverse }) => [
    evaluateAlongAxis(x, axis, (row) => {
      const sums: number[] = []
      let total = 0
      for (const element of reverse ? row.toReversed() : row) {
        sums.push(exclusive ? total : total + element)
        total += element
      }
      return reverse ? sums.reverse() : sums
    }),
  ],
  onnx: ({ exclusive, reverse }) => ({ attributes: { exclusive: { int: exclusive ? 1 : 0 }, reverse: { int: reverse ? 1 : 0 } } }),
})

/** Running sums along an axis.  dX = running sums of g from the other end. */
export function cumSum(x: Tensor, axis: number, { exclusive = false, reverse = false }: CumSumOptions = {}): Tensor {
  const normalised = normaliseAxis(axis, x.shape.length, 'CumSum')
  return only(apply([x, integers([normalised], [])], { axis: normalised, exclusive, reverse }))
}
