/** A command's settings: the run file's values, flags over them, checked by one schema; every problem told at once. */
import type { z } from 'zod'
import type { ErrorData } from '../errors.ts'
import { ConfigurationError } from './configuration-error.ts'
import { type Flag, flagValue, type GivenFlag } from './flags.ts'
import { type DescribedIssue, describeIssues } from './issues.ts'
import { fieldOf, isRecord, type RunFile } from './run-file.ts'
import { resolvePaths } from './schema-walk.ts'

export interface SettingsRequest<S extends z.ZodObject> {
  readonly schema: S
  readonly runFile?: RunFile | undefined
  readonly given: readonly GivenFlag[]
  /** How a setting is given on this command's line: `--output`, or `INPUT`. */
  readonly nameOf: (path: readonly PropertyKey[]) => string | undefined
}

/**
 * @throws ConfigurationError with every problem: `CONFIG_VALUE`, `CONFIG_MISSING`, `CONFIG_UNKNOWN_KEY`
 */
export function resolveSettings<S extends z.ZodObject>(request: SettingsRequest<S>): z.output<S> {
  const { schema, runFile, given } = request
  const problems: ErrorData[] = []
  const unread = new Set<string>()
  let raw: unknown = runFile === undefined ? {} : resolvePaths(schema, runFile.data, runFile.folder)
  for (const one of given) {
    const parsed = flagValue(one)
    if ('value' in parsed) raw = withValue(raw, one.flag.path, resolvedFlag(schema, one.flag, parsed.value))
    else {
      problems.push({ ...parsed.problem, field: request.nameOf(one.flag.path) })
      unread.add(fieldOf(one.flag.path))
    }
  }
  const parsed = schema.safeParse(raw, { reportInput: true })
  if (parsed.success && problems.length === 0) return parsed.data
  // A flag that could not be read leaves its setting empty: that is one problem, not two.
  const found = describeIssues(parsed.error?.issues ?? [], schema).filter(({ path }) => !unread.has(fieldOf(path)))
  throw new ConfigurationError([...problems, ...found.map((issue) => placed(issue, request))])
}

/** The value of one flag with its paths absolute: as if a run file in the working directory said it. */
function resolvedFlag(schema: z.ZodObject, flag: Flag, value: unknown): unknown {
  const nested = flag.path.reduceRight<unknown>((inner, key) => ({ [key]: inner }), value)
  return flag.path.reduce<unknown>((outer, key) => (isRecord(outer) ? outer[key] : undefined), resolvePaths(schema, nested, process.cwd()))
}

function withValue(tree: unknown, [key, ...rest]: readonly string[], value: unknown): unknown {
  if (key === undefined) return value
  const object = isRecord(tree) ? tree : {}
  return { ...object, [key]: withValue(object[key], rest, value) }
}

/** The problem with the place where its value was written: a flag, a line of the run file, or nowhere. */
function placed({ path, ...problem }: DescribedIssue, { runFile, given, nameOf }: SettingsRequest<z.ZodObject>): ErrorData {
  const flag = given.find((one) => one.flag.path.every((key, i) => path[i] === key))?.flag
  if (flag !== undefined) {
    const inside = path.slice(flag.path.length)
    return { ...problem, field: `${nameOf(flag.path) ?? `--${flag.name}`}${inside.length === 0 ? '' : ` ${fieldOf(inside)}`}` }
  }
  const name = nameOf(path)
  if (problem.code === 'CONFIG_MISSING' && name !== undefined) {
    const hint = runFile === undefined ? `give ${name}` : `give ${name}, or "${path.join('.')}" in the run file`
    return { ...problem, ...(runFile ? { file: runFile.file, field: fieldOf(path) } : { field: name }), hint }
  }
  const line = runFile?.lineOf(path.filter((key) => typeof key !== 'symbol'))
  return { ...problem, ...(runFile && { file: runFile.file }), ...(line !== undefined && { line }), field: fieldOf(path) }
}
