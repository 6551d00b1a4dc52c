/** Fields that configs of vision models share. */
import { z } from 'zod'

const edge = z.int().min(1).max(16_384)
/** An edge, or height and width. */
export const sizeField = z
  .union([edge, z.tuple([edge, edge])])
  .transform((value) => (typeof value === 'number' ? { height: value, width: value } : { height: value[0], width: value[1] }))
/** The table of positions is a square. */
export const squareField = sizeField.refine(({ height, width }) => height === width, 'a square')
export const count = z.int().positive().max(65_536)
export const epsilonField = z.number().positive().max(1)
/** Pictures of three colours are what comes out of preprocessing. */
export const colours = z.literal(3).default(3)

/** Attention's heads share the width evenly. */
export function evenHeads(
  { hidden_size: width, num_attention_heads: heads }: { readonly hidden_size: number; readonly num_attention_heads: number },
  { addIssue }: { addIssue(issue: { code: 'custom'; path: string[]; message: string }): void },
): void {
  if (width % heads !== 0) addIssue({ code: 'custom', path: ['num_attention_heads'], message: `a divisor of hidden_size, ${width}` })
}
