import { ModalignError } from '../../errors.ts'
import { formatShape } from '../dim.ts'
import { at } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { integers, type Tensor } from '../tensor.ts'

export interface TriluOptions {
  /** Keep what lies on and above the diagonal; otherwise on and below. */
  readonly upper: boolean
  /** Which diagonal: 0 (default) is the main one, positive lies above it. */
  readonly k?: number
}

const apply = defineOperator<Required<TriluOptions>>({
  name: 'Trilu',
  shape(inputs, { k }) {
    const x = required(inputs, 0, 'Trilu')
    if (x.shape.length < 2 || !Number.isInteger(k))
      throw new ModalignError({
        code: 'GRAPH_SHAPE',
        field: 'Trilu',
        got: `${formatShape(x.shape)}, diagonal ${k}`,
        expected: '[..., M, N] and an integer',
      })
    return [x]
  },
  gradient: ({ upstream: [g], needs, attributes }) => [needs[0] && g ? trilu(g, attributes) : undefined],
  evaluate([x], { upper, k }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    const [rows, columns] = [at(x.dims, x.dims.length - 2), at(x.dims, x.dims.length - 1)]
    const data = x.data.map((element, position) => {
      const column = position % columns
      const row = Math.floor(position / columns) % rows
      return (upper ? column - row >= k : column - row <= k) ? element : 0
    })
    return [{ ...x, data }]
  },
  onnx: ({ upper }) => ({ attributes: { upper: { int: upper ? 1 : 0 } } }),
})

/** The upper or lower triangle of the last two axes; zeros elsewhere.  dX = the same triangle of g. */
export function trilu(x: Tensor, { upper, k = 0 }: TriluOptions): Tensor {
  return only(apply([x, integers([k], [])], { upper, k }))
}
