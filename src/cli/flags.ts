/** The flags of a command, derived from the schema of its settings: `data: { root }` is `--data-root`. */
import { parseDocument } from 'yaml'
import { z } from 'zod'
import type { ErrorData } from '../errors.ts'
import { decimalNumber } from './numbers.ts'
import { bare } from './schema-walk.ts'

type FlagKind = 'number' | 'boolean' | 'text' | 'path' | 'structured'

export interface Flag {
  /** Without the dashes. */
  readonly name: string
  /** Where its value goes in the settings. */
  readonly path: readonly string[]
  readonly kind: FlagKind
  /** May be given several times: the values make a list. */
  readonly list: boolean
  readonly choices: readonly string[] | undefined
}

/**
 * Every leaf of an object schema as a flag. A leaf that may also be an object or a list takes YAML in braces or brackets: `--image-projector '{name: mlp, depth: 3}'`.
 *
 * @example
 * flagsOf(z.strictObject({ learningRate: z.number() })) // [{ name: 'learning-rate', path: ['learningRate'], kind: 'number', ... }]
 */
export function flagsOf(schema: z.ZodObject, path: readonly string[] = []): readonly Flag[] {
  return Object.entries(schema.shape).flatMap(([key, leaf]: [string, z.core.$ZodType]) => {
    const kind = bare(leaf)
    const here = [...path, key]
    if (kind instanceof z.ZodObject) return flagsOf(kind, here)
    const list = kind instanceof z.ZodArray
    const item = list ? bare(kind.element) : kind
    return [{ name: here.map(kebab).join('-'), path: here, kind: kindOf(item), list, choices: choicesOf(item) }]
  })
}

function kebab(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
}

function kindOf(schema: z.core.$ZodType): FlagKind {
  if (schema instanceof z.ZodNumber) return 'number'
  if (schema instanceof z.ZodBoolean) return 'boolean'
  if (schema instanceof z.ZodString && z.globalRegistry.get(schema)?.resolve !== undefined) return 'path'
  return schema instanceof z.ZodString || schema instanceof z.ZodEnum ? 'text' : 'structured'
}

function choicesOf(schema: z.core.$ZodType): readonly string[] | undefined {
  return schema instanceof z.ZodEnum ? schema.options.map(String) : undefined
}

/** A flag as it was written; `texts`: what was given to it, once each time. A flag without a value is `true` or, as `--no-NAME`, `false`. */
export interface GivenFlag {
  readonly flag: Flag
  readonly texts: readonly (string | boolean)[]
}

/** The value, or what is wrong with it. */
export function flagValue({ flag, texts }: GivenFlag): { readonly value: unknown } | { readonly problem: ErrorData } {
  const [only] = texts
  if (texts.length > 1 && !flag.list) return refused(flag, texts.map(String).join(' and '), 'one value', 'the flag is given more than once')
  const values: unknown[] = []
  for (const text of texts) {
    const parsed = oneValue(flag, text)
    if ('problem' in parsed) return parsed
    values.push(parsed.value)
  }
  return { value: flag.list ? values : only === undefined ? undefined : values[0] }
}

function oneValue(flag: Flag, text: string | boolean): { readonly value: unknown } | { readonly problem: ErrorData } {
  if (typeof text === 'boolean') return { value: text }
  // A leaf that may be a word or a truth value.
  if (flag.kind === 'structured' && (text === 'true' || text === 'false')) return { value: text === 'true' }
  if (text === '') return refused(flag, 'an empty value', flag.kind === 'number' ? 'a number' : 'a value')
  if (flag.kind === 'number') {
    const value = decimalNumber(text)
    return value === undefined ? refused(flag, text, 'a decimal number, such as 16 or 2e-3') : { value }
  }
  if (flag.kind === 'structured' && /^[{[]/.test(text)) {
    const document = parseDocument(text, { version: '1.2', schema: 'core', prettyErrors: false })
    const [error] = [...document.errors, ...document.warnings]
    return error === undefined
      ? { value: document.toJS({ maxAliasCount: 0 }) }
      : refused(flag, text, 'YAML in braces or brackets', error.message)
  }
  return { value: text }
}

function refused(flag: Flag, got: string, expected: string, hint?: string): { readonly problem: ErrorData } {
  return { problem: { code: 'CONFIG_VALUE', field: `--${flag.name}`, got, expected, ...(hint !== undefined && { hint }) } }
}
