/** The strict schema of a session's options. */
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import { devices, type SessionOptions, withoutUndefined } from './session.ts'

export const sessionOptionsSchema = z.strictObject({
  device: z.enum(['auto', ...devices]).optional(),
  threads: z.int().min(1).max(1024).optional(),
  optimization: z.enum(['disabled', 'basic', 'extended', 'all']).optional(),
  memoryPattern: z.boolean().optional(),
  prepacking: z.boolean().optional(),
  profile: z.string().min(1).optional(),
  disabledOptimizers: z.array(z.string().regex(/^\w+$/)).readonly().optional(),
  spinning: z.boolean().optional(),
})

/**
 * Checks options that may come from anywhere. ONNX Runtime takes unknown names in silence; we do not.
 *
 * @throws {ModalignError} `RUNTIME_OPTIONS`
 * @example
 * parseSessionOptions({ device: 'cpu', threads: 2 })
 */
export function parseSessionOptions(options: unknown = {}): SessionOptions {
  return withoutUndefined(parseOptions(sessionOptionsSchema, options))
}

/** Parses with a schema; the first issue becomes the error. */
export function parseOptions<T>(schema: z.ZodType<T>, options: unknown): T {
  const parsed = schema.safeParse(options)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  const path = issue?.code === 'unrecognized_keys' ? [...issue.path, ...issue.keys.slice(0, 1)] : (issue?.path ?? [])
  const known = schema instanceof z.ZodObject ? Object.keys(schema.shape) : []
  throw new ModalignError({
    code: 'RUNTIME_OPTIONS',
    field: path.map((part) => `/${String(part).replaceAll('~', '~0').replaceAll('/', '~1')}`).join(''),
    got: issue?.message ?? 'invalid options',
    expected: `options of a session: ${known.join(', ')}`,
  })
}
