/** What zod found wrong, in the words of this program. */
import type { z } from 'zod'
import { type ErrorData, excerpt } from '../errors.ts'
import { keysAt } from './schema-walk.ts'
import { didYouMean } from './suggestion.ts'

export interface DescribedIssue extends Pick<ErrorData, 'code' | 'got' | 'expected' | 'hint'> {
  /** From the root of what was checked. */
  readonly path: readonly PropertyKey[]
}

/** Every problem of a value: `CONFIG_VALUE`, `CONFIG_MISSING`, `CONFIG_UNKNOWN_KEY`. The issues must come from a parse with `reportInput`. */
export function describeIssues(issues: readonly z.core.$ZodIssue[], schema: z.core.$ZodType): readonly DescribedIssue[] {
  return issues.flatMap((issue) => describe(issue, schema))
}

/** Carries problems found inside a refinement out of it, as they are. */
export function addDescribed(context: z.RefinementCtx, described: readonly DescribedIssue[]): void {
  for (const { path, ...problem } of described)
    context.addIssue({ code: 'custom', path: [...path], message: problem.expected ?? problem.code, params: { problem } })
}

function describe(issue: z.core.$ZodIssue, schema: z.core.$ZodType): readonly DescribedIssue[] {
  const { path } = issue
  if (issue.code === 'unrecognized_keys') return issue.keys.map((key) => unknownKey(path, key, keysAt(schema, path)))
  if (issue.code === 'invalid_union') {
    const branch = likeliestBranch(issue)
    if (branch !== undefined) return branch.flatMap((inner) => describe({ ...inner, path: [...path, ...inner.path] }, schema))
  }
  if (issue.code === 'custom') {
    const problem: unknown = issue.params?.problem
    return [{ path, code: 'CONFIG_VALUE', got: shown(issue.input), expected: issue.message, ...(isProblem(problem) && problem) }]
  }
  if (issue.input === undefined) return [{ path, code: 'CONFIG_MISSING', got: 'nothing', expected: expectation(issue) }]
  const [name] = issue.code === 'invalid_type' && issue.expected === 'object' ? keysAt(schema, path) : []
  const key = path.findLast((part) => typeof part === 'string')
  const hint = name === undefined ? undefined : `such as ${key === undefined ? '' : `${key}: `}{ ${name}: ... }`
  return [{ path, code: 'CONFIG_VALUE', got: shown(issue.input), expected: expectation(issue), ...(hint !== undefined && { hint }) }]
}

function unknownKey(path: readonly PropertyKey[], key: string, known: readonly string[]): DescribedIssue {
  const hint = didYouMean(key, known) ?? (known.length > 0 && known.length <= 40 ? `there are ${known.join(', ')}` : undefined)
  return {
    path: [...path, key],
    code: 'CONFIG_UNKNOWN_KEY',
    got: key,
    expected: 'the name of a setting',
    ...(hint !== undefined && { hint }),
  }
}

/** Of a choice between forms, the form that the value has: the one that fails inside rather than as a whole. */
function likeliestBranch({ errors }: z.core.$ZodIssueInvalidUnion): readonly z.core.$ZodIssue[] | undefined {
  return errors.find((branch) => branch.length > 0 && branch.every(({ code, path }) => code !== 'invalid_type' || path.length > 0))
}

function isProblem(value: unknown): value is Omit<DescribedIssue, 'path'> {
  return typeof value === 'object' && value !== null && 'code' in value
}

function expectation(issue: z.core.$ZodIssue): string {
  switch (issue.code) {
    case 'invalid_type':
      return typeNames.get(issue.expected) ?? `a value of type ${issue.expected}`
    case 'too_small':
      return sized(issue.origin, issue.inclusive === false ? 'more than' : 'at least', issue.minimum)
    case 'too_big':
      return sized(issue.origin, issue.inclusive === false ? 'less than' : 'at most', issue.maximum)
    case 'invalid_value':
      return issue.values.length === 1 ? String(issue.values[0]) : `one of ${issue.values.map(String).join(', ')}`
    case 'invalid_union':
      return [...new Set(issue.errors.flatMap((branch) => branch.slice(0, 1).map(expectation)))].join(', or ') || issue.message
    default:
      return issue.message
  }
}

function sized(origin: string, relation: string, bound: number | bigint): string {
  if (origin === 'string') return relation === 'at least' && Number(bound) === 1 ? 'some text' : `${relation} ${bound} characters`
  return origin === 'array' ? `${relation} ${bound} values` : `${relation} ${bound}`
}

const typeNames: ReadonlyMap<string, string> = new Map([
  ['number', 'a number'],
  ['int', 'a whole number'],
  ['string', 'text'],
  ['boolean', 'true or false'],
  ['object', 'names and values'],
  ['record', 'names and values'],
  ['array', 'a list'],
  ['tuple', 'a list'],
])

function shown(value: unknown): string {
  if (typeof value === 'number' || typeof value === 'boolean' || value === null) return String(value)
  return excerpt(JSON.stringify(value) ?? typeof value)
}
