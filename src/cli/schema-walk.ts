/** Reading zod schemas: command lines, path resolution and hints all follow from the one schema of a command. */
import { z } from 'zod'

type Schema = z.core.$ZodType

/** Without what says nothing about the kind of a value: optional, default, readonly, nullable, transforms. */
export function bare(schema: Schema): Schema {
  if (
    schema instanceof z.ZodOptional ||
    schema instanceof z.ZodDefault ||
    schema instanceof z.ZodReadonly ||
    schema instanceof z.ZodNullable
  )
    return bare(schema.unwrap())
  if (schema instanceof z.ZodPipe) return bare(schema.in)
  return schema
}

/** The schema of a path, where it is known from the schema alone. */
export function schemaAt(schema: Schema, path: readonly PropertyKey[]): Schema | undefined {
  const [key, ...rest] = path
  const kind = bare(schema)
  if (key === undefined) return kind
  if (kind instanceof z.ZodArray) return schemaAt(kind.element, rest)
  if (kind instanceof z.ZodUnion) return kind.options.map((option) => schemaAt(option, path)).find((found) => found !== undefined)
  if (!(kind instanceof z.ZodObject) || typeof key !== 'string') return undefined
  const next: Schema | undefined = Object.hasOwn(kind.shape, key) ? kind.shape[key] : undefined
  return next === undefined ? undefined : schemaAt(next, rest)
}

/** The names that an object at this path may have; none where it is no object. */
export function keysAt(schema: Schema, path: readonly PropertyKey[]): readonly string[] {
  return objectsOf(schemaAt(schema, path)).flatMap(({ shape }) => Object.keys(shape))
}

function objectsOf(schema: Schema | undefined): readonly z.ZodObject[] {
  if (schema === undefined) return []
  const kind = bare(schema)
  if (kind instanceof z.ZodObject) return [kind]
  return kind instanceof z.ZodUnion ? kind.options.flatMap(objectsOf) : []
}

/** How a value is made independent of where it was written: `meta({ resolve })` of a schema. */
type Resolve = (value: unknown, folder: string) => unknown

function resolveOf(schema: Schema): Resolve | undefined {
  const resolve: unknown = z.globalRegistry.get(schema)?.resolve
  return typeof resolve === 'function' ? (value, folder) => resolve(value, folder) : undefined
}

/**
 * The same value with every path in it absolute.
 *
 * @param folder what relative paths are relative to
 */
export function resolvePaths(schema: Schema, value: unknown, folder: string): unknown {
  const own = ownResolve(schema)
  if (own !== undefined) return own(value, folder)
  const kind = bare(schema)
  if (kind instanceof z.ZodUnion) return kind.options.reduce<unknown>((resolved, option) => resolvePaths(option, resolved, folder), value)
  if (kind instanceof z.ZodArray) return Array.isArray(value) ? value.map((item) => resolvePaths(kind.element, item, folder)) : value
  if (!(kind instanceof z.ZodObject) || typeof value !== 'object' || value === null || Array.isArray(value)) return value
  const shape: Readonly<Record<string, Schema>> = kind.shape
  return Object.fromEntries(
    Object.entries(value).map(([key, item]) => {
      const schemaOfKey = Object.hasOwn(shape, key) ? shape[key] : undefined
      return [key, schemaOfKey === undefined ? item : resolvePaths(schemaOfKey, item, folder)]
    }),
  )
}

function ownResolve(schema: Schema): Resolve | undefined {
  const found = resolveOf(schema)
  if (found !== undefined) return found
  if (
    schema instanceof z.ZodOptional ||
    schema instanceof z.ZodDefault ||
    schema instanceof z.ZodReadonly ||
    schema instanceof z.ZodNullable
  )
    return ownResolve(schema.unwrap())
  return schema instanceof z.ZodPipe ? ownResolve(schema.in) : undefined
}
