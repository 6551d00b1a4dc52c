/**
 * Jinja as Python's library has it, where `@huggingface/jinja` differs: printed values, comparisons, `+`, `%` and `in`, strings as sequences of characters, `strip` with an argument,
 * filters of values that are no strings, missing attributes, and variables that end with their turn of a loop.
 */
import { Environment, Interpreter } from '@huggingface/jinja'
import { pythonEquals, pythonStrip, pythonText, type Value } from './python-values.ts'

/** A parsed template. */
export interface Program {
  readonly type: string
}
export interface Scope {
  set(name: string, value: unknown): unknown
}
interface Evaluator {
  run(program: Program): Value
  evaluate(statement: unknown, scope: Scope): Value
  evaluateBlock(statements: readonly unknown[], scope: Scope): Value
  evaluateArguments(args: readonly unknown[], scope: Scope): readonly [readonly Value[], ReadonlyMap<string, Value>]
  applyFilter(operand: Value, filter: unknown, scope: Scope): Value
}

// The package's declarations import each other without file extensions, which strict module resolution takes for missing: its classes come without types.
export const NewScope: new (parent?: Scope) => Scope = Environment
const BaseInterpreter: new (scope: Scope) => Evaluator = Interpreter

export interface Node {
  readonly type: string
  readonly [field: string]: unknown
}

export const isNode = (value: unknown): value is Node =>
  typeof value === 'object' && value !== null && 'type' in value && typeof value.type === 'string'

/** Nodes that say nothing by themselves; what they return is text already, or nothing. */
const statements = new Set(['Set', 'If', 'For', 'Macro', 'CallStatement', 'FilterStatement', 'Comment', 'StringLiteral'])
const strips = new Set(['strip', 'lstrip', 'rstrip'] as const)
const ofText = new Set(['trim', 'string', 'upper', 'lower', 'title', 'capitalize', 'replace', 'indent'])
const ofSequence = new Set(['first', 'last', 'list', 'reverse'])

export class PythonInterpreter extends BaseInterpreter {
  readonly #known = new WeakMap<object, Value>()
  readonly #loopBodies = new WeakSet<object>()
  readonly #iterated = new WeakSet<object>()

  override evaluate(statement: unknown, scope: Scope): Value {
    if (!isNode(statement)) return super.evaluate(statement, scope)
    const known = this.#known.get(statement)
    if (known !== undefined) return known
    const result = this.#evaluated(statement, scope)
    return this.#iterated.has(statement) ? this.#sequence(result, scope) : result
  }

  #evaluated(node: Node, scope: Scope): Value {
    if (node.type === 'BinaryExpression') return this.#binary(node, scope)
    if (node.type === 'CallExpression') return this.#call(node, scope)
    if (node.type === 'For') {
      const { iterable, body } = node
      if (isNode(iterable)) this.#iterated.add(iterable.type === 'SelectExpression' && isNode(iterable.lhs) ? iterable.lhs : iterable)
      if (typeof body === 'object' && body !== null) this.#loopBodies.add(body)
    }
    return super.evaluate(node, scope)
  }

  /** A node whose value is known. */
  #hold(value: Value): Node {
    const node = { type: 'Held' }
    this.#known.set(node, value)
    return node
  }

  protected text(value: string, scope: Scope): Value {
    return super.evaluate({ type: 'StringLiteral', value }, scope)
  }
  #boolean(value: boolean): Value {
    return super.evaluate(
      { type: 'UnaryExpression', operator: { value: 'not' }, argument: { type: 'StringLiteral', value: value ? '' : '-' } },
      new NewScope(),
    )
  }
  #list(values: readonly Value[], scope: Scope): Value {
    return super.evaluate({ type: 'ArrayLiteral', value: values.map((value) => this.#hold(value)) }, scope)
  }
  /** The characters of a string, none of an undefined value; anything else is itself. */
  #sequence(value: Value, scope: Scope): Value {
    if (value.type === 'UndefinedValue') return this.#list([], scope)
    if (typeof value.value !== 'string') return value
    return this.#list(
      Array.from(value.value, (character) => this.text(character, scope)),
      scope,
    )
  }

  #printed(value: Value): string {
    const text = pythonText(value)
    if (text === undefined) throw new Error(`a ${value.type} is no text`)
    return text
  }

  override evaluateBlock(block: readonly unknown[], outer: Scope): Value {
    // What a turn of a loop sets is unknown to the next one.
    const scope = this.#loopBodies.has(block) ? new NewScope(outer) : outer
    let out = ''
    for (const statement of block) {
      const value = this.evaluate(statement, scope)
      if (isNode(statement) && !statements.has(statement.type)) out += this.#printed(value)
      else if (typeof value.value === 'string') out += value.value
    }
    return this.text(out, scope)
  }

  #binary(node: Node, scope: Scope): Value {
    const { operator } = node
    const sign = typeof operator === 'object' && operator !== null && 'value' in operator ? operator.value : undefined
    if (sign === 'and' || sign === 'or') return super.evaluate(node, scope)
    const [left, right] = [this.evaluate(node.left, scope), this.evaluate(node.right, scope)]
    const [a, b] = [left.value, right.value]
    if (sign === '==' || sign === '!=') return this.#boolean(pythonEquals(left, right) === (sign === '=='))
    if (sign === '~') return this.text(this.#printed(left) + this.#printed(right), scope)
    if ((sign === 'in' || sign === 'not in') && Array.isArray(b))
      return this.#boolean(b.some((item: Value) => pythonEquals(left, item)) === (sign === 'in'))
    if (sign === '+' && (typeof a === 'string') !== (typeof b === 'string'))
      throw new Error(`a ${left.type} and a ${right.type} cannot be added`)
    if (sign === '%' && left.type === 'IntegerValue' && right.type === 'IntegerValue' && typeof a === 'number' && typeof b === 'number') {
      if (b === 0) throw new Error('division by zero')
      return super.evaluate({ type: 'IntegerLiteral', value: a - b * Math.floor(a / b) }, scope)
    }
    return super.evaluate({ ...node, left: this.#hold(left), right: this.#hold(right) }, scope)
  }

  /** `text.strip(characters)`. */
  #call(node: Node, scope: Scope): Value {
    const { callee } = node
    const name =
      isNode(callee) && callee.type === 'MemberExpression' && callee.computed !== true && isNode(callee.property)
        ? callee.property.value
        : undefined
    const strip = [...strips].find((one) => one === name)
    if (strip === undefined || !isNode(callee) || !Array.isArray(node.args)) return super.evaluate(node, scope)
    const object = this.evaluate(callee.object, scope)
    if (typeof object.value !== 'string') return super.evaluate({ ...node, callee: { ...callee, object: this.#hold(object) } }, scope)
    const [characters] = this.evaluateArguments(node.args, scope)[0]
    if (characters !== undefined && characters.value !== null && typeof characters.value !== 'string')
      throw new Error(`${strip}() takes characters, not a ${characters.type}`)
    return this.text(pythonStrip(object.value, strip, typeof characters?.value === 'string' ? characters.value : undefined), scope)
  }

  override applyFilter(operand: Value, filter: unknown, scope: Scope): Value {
    const callee = isNode(filter) && filter.type === 'CallExpression' ? filter.callee : filter
    const name = isNode(callee) && typeof callee.value === 'string' ? callee.value : ''
    const args: readonly unknown[] = isNode(filter) && Array.isArray(filter.args) ? filter.args : []
    if (ofText.has(name)) {
      const text = this.#printed(operand)
      if (name === 'string') return this.text(text, scope)
      if (name === 'trim') {
        const [characters] = this.evaluateArguments(args, scope)[0]
        return this.text(pythonStrip(text, 'strip', typeof characters?.value === 'string' ? characters.value : undefined), scope)
      }
      if (name === 'capitalize') return this.text(text.charAt(0).toUpperCase() + text.slice(1).toLowerCase(), scope)
      return super.applyFilter(this.text(text, scope), filter, scope)
    }
    if (ofSequence.has(name)) return super.applyFilter(this.#sequence(operand, scope), filter, scope)
    if (name === 'length' && operand.type === 'UndefinedValue') return super.evaluate({ type: 'IntegerLiteral', value: 0 }, scope)
    if (name === 'join' && Array.isArray(operand.value)) {
      const texts = operand.value.map((item: Value) => this.text(this.#printed(item), scope))
      return super.applyFilter(this.#list(texts, scope), filter, scope)
    }
    if (name === 'join' && operand.type === 'UndefinedValue') return this.text('', scope)
    if (name === 'tojson' && operand.type === 'UndefinedValue') throw new Error('an undefined value has no JSON')
    if ((name === 'selectattr' || name === 'rejectattr') && Array.isArray(operand.value))
      return this.#selected(operand.value, args, name === 'selectattr', scope)
    return super.applyFilter(operand, filter, scope)
  }

  /** `selectattr` and `rejectattr`: an attribute that an item lacks is undefined, and tested as such. */
  #selected(items: readonly Value[], args: readonly unknown[], wanted: boolean, scope: Scope): Value {
    const [attribute, test, ...others] = this.evaluateArguments(args, scope)[0]
    if (typeof attribute?.value !== 'string') throw new Error('selectattr() needs the name of an attribute')
    const path = attribute.value.split('.')
    const kept = items.filter((item) => {
      const value = path.reduce(
        (object, property) =>
          this.evaluate(
            { type: 'MemberExpression', computed: false, object: this.#hold(object), property: { type: 'Identifier', value: property } },
            scope,
          ),
        item,
      )
      return this.#passes(value, test, others, scope) === wanted
    })
    return this.#list(kept, scope)
  }

  #passes(value: Value, test: Value | undefined, [other]: readonly Value[], scope: Scope): boolean {
    const truth = (node: Node): boolean => this.evaluate(node, scope).value === true
    const operand = this.#hold(value)
    if (test === undefined) {
      const inner = { type: 'UnaryExpression', operator: { value: 'not' }, argument: operand }
      return truth({ type: 'UnaryExpression', operator: { value: 'not' }, argument: inner })
    }
    const sign = other === undefined ? undefined : comparisons[String(test.value)]
    if (sign !== undefined && other !== undefined)
      return truth({ type: 'BinaryExpression', operator: { value: sign }, left: operand, right: this.#hold(other) })
    if (other !== undefined) throw new Error(`no test ${String(test.value)} of two values`)
    return truth({ type: 'TestExpression', operand, negate: false, test: { type: 'Identifier', value: test.value } })
  }
}

const comparisons: Readonly<Record<string, string>> = {
  equalto: '==',
  eq: '==',
  '==': '==',
  ne: '!=',
  '!=': '!=',
  in: 'in',
  lt: '<',
  lessthan: '<',
  le: '<=',
  gt: '>',
  greaterthan: '>',
  ge: '>=',
}
