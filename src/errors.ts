/** Failures are data first, words last. Every failure that a user can cause is a {@link ModalignError}; anything else that escapes is a defect of ours. */

export interface ErrorDetails {
  /** `DOMAIN_REASON`, for example `IMAGE_EMPTY`. Stable: programs may compare it. */
  readonly code: string
  readonly file?: string | undefined
  /** Which record of the file, counted from 0. */
  readonly record?: number | undefined
  /** Which line of the file, counted from 1. */
  readonly line?: number | undefined
  /** JSON Pointer into the record or the configuration, for example `/conversations/0/value`. */
  readonly field?: string | undefined
  readonly got?: string | undefined
  readonly expected?: string | undefined
  readonly hint?: string | undefined
  readonly cause?: unknown
}

/** The details without the cause: what crosses a worker boundary and what a job writes into a row. */
export type ErrorData = Omit<ErrorDetails, 'cause'>

const longestExcerpt = 120

export class ModalignError extends Error {
  readonly code: string
  readonly details: ErrorData

  constructor({ cause, ...details }: ErrorDetails) {
    const data: ErrorData = details.got === undefined ? details : { ...details, got: excerpt(details.got) }
    super(renderError(data), cause === undefined ? undefined : { cause })
    this.name = 'ModalignError'
    this.code = data.code
    this.details = data
  }

  toJSON(): ErrorData {
    return this.details
  }
}

/**
 * One line for people: place, what was found, what was expected, what to do.
 *
 * @example
 * renderError({ code: 'IMAGE_EMPTY', file: 'a.jpg', got: '0 bytes', expected: 'an image', hint: 'delete the file' })
 * // 'IMAGE_EMPTY: a.jpg: got 0 bytes, expected an image (delete the file)'
 */
export function renderError(error: ErrorData): string {
  const place = [
    error.file !== undefined && escaped(error.file),
    error.record !== undefined && `record ${error.record}`,
    error.line !== undefined && `line ${error.line}`,
    error.field,
  ]
    .filter((part): part is string => typeof part === 'string' && part !== '')
    .join(', ')
  const facts = [error.got !== undefined && `got ${error.got}`, error.expected !== undefined && `expected ${error.expected}`]
    .filter((part) => part !== false)
    .join(', ')
  const text = [error.code, place, facts].filter((part) => part !== '').join(': ')
  return error.hint === undefined ? text : `${text} (${error.hint})`
}

/** At most 120 characters, control characters escaped: what a stranger's file may put on a terminal. */
export function excerpt(text: string): string {
  return escaped(text.length > longestExcerpt ? `${text.slice(0, longestExcerpt - 1)}…` : text)
}

/** Control characters and those that turn the direction of text, as \\uXXXX. */
function escaped(text: string): string {
  return text.replace(/[\p{Cc}\p{Bidi_Control}]/gu, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

/** For places that cannot be reached unless our own code is wrong. */
export function unreachable(what: string): never {
  throw new Error(`internal: ${what}`)
}

/** The data of any thrown value, so that jobs and workers can report it. Native errors become `INTERNAL`, abort errors `ABORTED`. */
export function errorData(error: unknown): ErrorData {
  if (error instanceof ModalignError) return error.details
  if (error instanceof Error && error.name === 'AbortError') return { code: 'ABORTED', got: error.message }
  return { code: 'INTERNAL', got: error instanceof Error ? error.message : String(error) }
}
