import { readFile } from 'node:fs/promises'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import { writeFileAtomic } from '../io/atomic.ts'
import { errnoOf, fileError } from '../io/file-error.ts'
import { type FsOps, nodeFs } from '../io/fs-ops.ts'
import type { JsonObject, JsonValue } from '../io/json.ts'
import { jsonPointer } from '../io/json-syntax.ts'

const json: z.ZodType<JsonValue> = z.json()
const sidecarSchema = z.strictObject({ version: z.literal(1), job: z.string(), spec: z.record(z.string(), json) })

/** What a job is: everything that its results depend on. It lies beside the results, so that a later run can tell whether it may go on with them. */
export interface JobSpec {
  /** The kind of job, such as `caption`. */
  readonly job: string
  readonly spec: JsonObject
}

/**
 * Reads the job's record at `path`; undefined if there is none.
 *
 * @throws ModalignError `JOB_SPEC_MALFORMED`
 */
export async function readJobSpec(path: string): Promise<JobSpec | undefined> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw fileError(error, path)
  }
  try {
    return sidecarSchema.parse(JSON.parse(text))
  } catch (cause) {
    throw new ModalignError({
      code: 'JOB_SPEC_MALFORMED',
      file: path,
      got: text,
      expected: '{"version": 1, "job", "spec"}',
      hint: 'choose another output',
      cause,
    })
  }
}

/** Writes the job's record in one atomic step. */
export async function writeJobSpec(path: string, { job, spec }: JobSpec, { fs = nodeFs }: { readonly fs?: FsOps } = {}): Promise<void> {
  await writeFileAtomic(path, `${JSON.stringify({ version: 1, job, spec }, undefined, 2)}\n`, { fs })
}

/**
 * Throws if the results at hand are another job's.
 *
 * @throws ModalignError `JOB_SPEC_CHANGED`: `field`, `got` and `expected` say the first difference, the hint lists them all
 */
export function requireSameSpec(path: string, recorded: JobSpec, wanted: JobSpec): void {
  const differences =
    recorded.job === wanted.job
      ? specDifferences(recorded.spec, wanted.spec)
      : [{ field: '/job', recorded: recorded.job, wanted: wanted.job }]
  const [first] = differences
  if (first === undefined) return
  const listed = differences
    .slice(0, 20)
    .map(({ field, recorded: before, wanted: now }) => `${field} was ${shown(before)}, now ${shown(now)}`)
  throw new ModalignError({
    code: 'JOB_SPEC_CHANGED',
    file: path,
    field: first.field,
    got: shown(first.wanted),
    expected: `${shown(first.recorded)}, with which the results there were made`,
    hint: `${listed.join('; ')}${differences.length > 20 ? '; ...' : ''}. Choose another output, or delete this file and the results to start over`,
  })
}

export interface SpecDifference {
  /** JSON Pointer. */
  readonly field: string
  /** Undefined: not there. */
  readonly recorded: JsonValue | undefined
  readonly wanted: JsonValue | undefined
}

/** Every leaf in which two specs differ, in the order of their names. */
export function specDifferences(recorded: JsonObject, wanted: JsonObject): readonly SpecDifference[] {
  const before = leaves(recorded)
  const now = leaves(wanted)
  return [...new Set([...before.keys(), ...now.keys()])]
    .sort()
    .map((field) => ({ field, recorded: before.get(field), wanted: now.get(field) }))
    .filter((difference) => difference.recorded !== difference.wanted)
}

function leaves(value: JsonValue, path: readonly (string | number)[] = [], found = new Map<string, JsonValue>()): Map<string, JsonValue> {
  if (value === null || typeof value !== 'object' || Object.keys(value).length === 0)
    found.set(jsonPointer(path), typeof value === 'object' && value !== null ? JSON.stringify(value) : value)
  else if (isList(value)) for (const [i, element] of value.entries()) leaves(element, [...path, i], found)
  else for (const [key, member] of Object.entries(value)) leaves(member, [...path, key], found)
  return found
}

function isList(value: readonly JsonValue[] | JsonObject): value is readonly JsonValue[] {
  return Array.isArray(value)
}

function shown(value: JsonValue | undefined): string {
  return value === undefined ? 'absent' : JSON.stringify(value)
}
