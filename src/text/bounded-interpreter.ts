/** Jinja with limits: templates come with downloaded models and are programs. */
import { Environment, Interpreter } from '@huggingface/jinja'
import { ModalignError } from '../errors.ts'

/** A parsed template. */
export interface Program {
  readonly type: string
}
interface Value {
  readonly value: unknown
}
interface Scope {
  set(name: string, value: unknown): unknown
}
interface Evaluator {
  run(program: Program): Value
  evaluate(statement: unknown, scope: Scope): Value
}

// The package's declarations import each other without file extensions, which strict module resolution takes for missing: its classes come without types.
const NewScope: new () => Scope = Environment
const BaseInterpreter: new (scope: Scope) => Evaluator = Interpreter

/**
 * What one rendering may use. Bounded: evaluated expressions (each costs one step, and more for long lists and texts), the length of every text and list that an
 * expression gives, `range()`, and nesting (by the JavaScript stack). Not bounded: one single built-in call on texts within these limits (`replace`,
 * `indent`, `tojson(indent=...)`) may take some hundred MB for a moment, until the engine's limit on strings stops it.
 */
export const renderLimits = { steps: 1_000_000, textLength: 8 * 2 ** 20, listLength: 100_000 } as const

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

class BoundedInterpreter extends BaseInterpreter {
  #steps = 0

  override evaluate(statement: unknown, scope: Scope): Value {
    this.#spend(1)
    const result = isComparison(statement) ? this.#compare(statement, scope) : super.evaluate(statement, scope)
    const { value } = result
    if (typeof value === 'string') {
      if (value.length > renderLimits.textLength) throw limit(`a text of ${value.length} characters`, `at most ${renderLimits.textLength}`)
      this.#spend(value.length >> 8)
    } else if (Array.isArray(value)) this.#spendOnList(value.length)
    else if (value instanceof Map) this.#spendOnList(value.size)
    return result
  }

  /** Python's `==`. The library's is JavaScript's, to which '' and false, or an undefined value and none, are equal. */
  #compare({ left, right, operator }: Comparison, scope: Scope): Value {
    const equal = pythonEquals(this.evaluate(left, scope).value, this.evaluate(right, scope).value)
    return super.evaluate({ type: 'Identifier', value: String(equal === (operator.value === '==')) }, scope)
  }

  #spendOnList(length: number): void {
    if (length > renderLimits.listLength) throw limit(`a list of ${length}`, `at most ${renderLimits.listLength}`)
    this.#spend(length)
  }

  #spend(steps: number): void {
    this.#steps += steps
    if (this.#steps > renderLimits.steps) throw limit('a template that does not come to an end', `at most ${renderLimits.steps} steps`)
  }
}

interface Comparison {
  readonly left: unknown
  readonly right: unknown
  readonly operator: { readonly value: '==' | '!=' }
}

function isComparison(statement: unknown): statement is Comparison {
  if (
    typeof statement !== 'object' ||
    statement === null ||
    !('operator' in statement) ||
    !('left' in statement) ||
    !('right' in statement)
  )
    return false
  const { operator } = statement
  return typeof operator === 'object' && operator !== null && 'value' in operator && (operator.value === '==' || operator.value === '!=')
}

function pythonEquals(a: unknown, b: unknown): boolean {
  const isNumber = (value: unknown) => typeof value === 'number' || typeof value === 'boolean'
  if (isNumber(a) && isNumber(b)) return Number(a) === Number(b)
  if (Array.isArray(a) && Array.isArray(b))
    return a.length === b.length && a.every((item: Value, i) => pythonEquals(item.value, b[i]?.value))
  return a === b
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
