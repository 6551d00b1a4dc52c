import { expect, test } from 'vitest'
import { errorData, excerpt, ModalignError, renderError } from './errors.ts'

test('place, facts and hint in one line', () => {
  const error = new ModalignError({
    code: 'IMAGE_EMPTY',
    file: 'a.json',
    record: 3,
    line: 4,
    field: '/image',
    got: '0 bytes',
    expected: 'an image',
    hint: 'delete it',
  })
  expect(error.message).toBe('IMAGE_EMPTY: a.json, record 3, line 4, /image: got 0 bytes, expected an image (delete it)')
  expect(renderError({ code: 'X' })).toBe('X')
})

test('what a stranger wrote cannot steer a terminal', () => {
  expect(excerpt('a\nb\u001b[31m\u202e')).toBe('a\\u000ab\\u001b[31m\\u202e')
  expect(renderError({ code: 'X', file: 'a\n\u202eb' })).toBe('X: a\\u000a\\u202eb')
})

test('long texts are cut', () => {
  expect(excerpt('x'.repeat(500))).toHaveLength(120)
})

test('any thrown value has data', () => {
  expect(errorData(new Error('boom'))).toEqual({ code: 'INTERNAL', got: 'boom' })
  expect(errorData(new DOMException('gone', 'AbortError'))).toEqual({ code: 'ABORTED', got: 'gone' })
  expect(errorData(new ModalignError({ code: 'A', cause: 1 }))).toEqual({ code: 'A' })
})
