import type { z } from 'zod'
import { ModalignError } from '../errors.ts'

/** Options from plain data, for the encoder `family`. @throws ENCODER_OPTIONS naming the field */
export function checked<S extends z.ZodType>(family: string, schema: S, options: unknown): z.output<S> {
  const parsed = schema.safeParse(options)
  if (parsed.success) return parsed.data
  const [issue] = parsed.error.issues
  const path = issue?.code === 'unrecognized_keys' ? [...issue.path, ...issue.keys.slice(0, 1)] : (issue?.path ?? [])
  throw new ModalignError({
    code: 'ENCODER_OPTIONS',
    file: family,
    field: `/${path.join('/')}`,
    got: issue?.message,
    expected: `options of ${family}`,
  })
}
