/** Jinja with limits: templates come with downloaded models and are programs. */
import { ModalignError } from '../errors.ts'
import { isNode, NewScope, type Node, type Program, PythonInterpreter, type Scope } from './python-interpreter.ts'
import type { Value } from './python-values.ts'

export type { Program } from './python-interpreter.ts'

/**
 * What one rendering may use. A step is one evaluated expression; a list costs one more for each item that it is made of and eight for each turn of a loop, a text
 * one for 256 characters. So a rendering takes about a second at most. Lengths are those of any one text or list. Not bounded: one single built-in call on texts within these
 * limits (`replace`, `indent`, `tojson(indent=...)`) may take some hundred MB for a moment, until the engine's limit on strings stops it.
 */
export const renderLimits = { steps: 500_000, depth: 400, textLength: 8 * 2 ** 20, listLength: 100_000 } as const
const stepsPerIteration = 8

/** The template itself refused its input: `raise_exception('...')`. */
export class TemplateRefusal extends Error {
  override readonly name = 'TemplateRefusal'
}

export interface RenderValues {
  readonly [name: string]: unknown
}

/** @throws TemplateRefusal, ModalignError `TEMPLATE_LIMIT` */
export function renderBounded(program: Program, values: RenderValues, now: Date): string {
  const scope = new NewScope()
  for (const [name, value] of Object.entries({
    ...constants,
    strftime_now: (format: unknown) => strftime(now, String(format)),
    ...values,
  })) {
    if (value !== undefined) scope.set(name, value)
  }
  try {
    const { value } = new BoundedInterpreter(scope).run(program)
    return typeof value === 'string' ? value : ''
  } catch (error) {
    if (error instanceof RangeError) throw limit(error.message, 'a template that nests less')
    throw error
  }
}

const constants: RenderValues = {
  true: true,
  false: false,
  none: null,
  True: true,
  False: false,
  None: null,
  range: boundedRange,
  raise_exception: (message: unknown) => {
    throw new TemplateRefusal(String(message))
  },
}

function boundedRange(first: number, second?: number, step = 1): number[] {
  const [start, stop] = second === undefined ? [0, first] : [first, second]
  const length = Math.ceil((stop - start) / step)
  if (step === 0 || !Number.isFinite(length)) throw new Error('range() needs integers and a step other than 0')
  if (length > renderLimits.listLength) throw limit(`a range of ${length}`, `at most ${renderLimits.listLength}`)
  return Array.from({ length: Math.max(0, length) }, (_, i) => start + i * step)
}

class BoundedInterpreter extends PythonInterpreter {
  readonly #iterated = new WeakSet<object>()
  #steps = 0
  #depth = 0

  override evaluate(statement: unknown, scope: Scope): Value {
    this.#spend(1)
    if (isLoop(statement)) this.#iterated.add(loopList(statement))
    const result = this.#nested(() => super.evaluate(statement, scope))
    const { value } = result
    if (typeof value === 'string') {
      if (value.length > renderLimits.textLength) throw limit(`a text of ${value.length} characters`, `at most ${renderLimits.textLength}`)
      this.#spend(value.length >> 8)
    } else if (Array.isArray(value)) this.#spendOnList(value.length, statement)
    else if (value instanceof Map) this.#spendOnList(value.size, statement)
    return result
  }

  #nested(run: () => Value): Value {
    if (this.#depth >= renderLimits.depth) throw limit('expressions or macros nested too deeply', `at most ${renderLimits.depth} levels`)
    this.#depth++
    try {
      return run()
    } finally {
      // The library leaves loops (`continue`, `break`) by throwing.
      this.#depth--
    }
  }

  #spendOnList(length: number, statement: unknown): void {
    if (length > renderLimits.listLength) throw limit(`a list of ${length}`, `at most ${renderLimits.listLength}`)
    if (typeof statement !== 'object' || statement === null) return
    if (this.#iterated.has(statement)) this.#spend(length * stepsPerIteration)
    else if (!('type' in statement && statement.type === 'Identifier')) this.#spend(length)
  }

  #spend(steps: number): void {
    this.#steps += steps
    if (this.#steps > renderLimits.steps) throw limit('a template that does not come to an end', `at most ${renderLimits.steps} steps`)
  }
}

interface Loop extends Node {
  readonly iterable: object
}

function isLoop(statement: unknown): statement is Loop {
  return isNode(statement) && statement.type === 'For' && typeof statement.iterable === 'object' && statement.iterable !== null
}

/** `for x in list if condition`: the list. */
function loopList({ iterable }: Loop): object {
  return 'lhs' in iterable && typeof iterable.lhs === 'object' && iterable.lhs !== null ? iterable.lhs : iterable
}

function limit(got: string, expected: string): ModalignError {
  return new ModalignError({
    code: 'TEMPLATE_LIMIT',
    got,
    expected,
    hint: 'no honest chat template needs this much: do not trust this model folder',
  })
}

const months = ['January', 'February', 'March', 'April', 'May', 'June', 'July', 'August', 'September', 'October', 'November', 'December']
const days = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday']

/** Python's, in English and in UTC, so that a template gives the same text everywhere. */
function strftime(now: Date, format: string): string {
  const two = (n: number) => String(n).padStart(2, '0')
  const month = months[now.getUTCMonth()] ?? ''
  const day = days[now.getUTCDay()] ?? ''
  const fields: Readonly<Record<string, string>> = {
    Y: String(now.getUTCFullYear()),
    m: two(now.getUTCMonth() + 1),
    d: two(now.getUTCDate()),
    B: month,
    b: month.slice(0, 3),
    A: day,
    a: day.slice(0, 3),
    H: two(now.getUTCHours()),
    M: two(now.getUTCMinutes()),
    S: two(now.getUTCSeconds()),
    '%': '%',
  }
  return format.replace(/%(.)/g, (whole, letter: string) => fields[letter] ?? whole)
}
