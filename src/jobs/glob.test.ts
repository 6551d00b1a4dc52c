import fc from 'fast-check'
import { expect, test } from 'vitest'
import { hasGlobCharacters, parseGlob } from './glob.ts'

test.each([
  ['*.jpg', '.', ['a.jpg', 'ä b.jpg', 'a.b.jpg'], ['a.png', 'x/a.jpg', '.a.jpg', 'a.jpgx', 'A.JPG']],
  ['photos/*.{jpg,png}', 'photos', ['a.jpg', 'b.png'], ['a.gif', 'x/a.jpg']],
  ['photos/**/*.jpg', 'photos', ['a.jpg', 'x/a.jpg', 'x/y/a.jpg'], ['x/.y/a.jpg', 'a.png']],
  ['/data/**', '/data', ['a', 'x/y'], ['.a', 'x/.y']],
  ['**/cats/**/?.jpg', '.', ['cats/1.jpg', 'x/cats/1.jpg', 'x/cats/y/z/1.jpg', 'cats/😀.jpg'], ['cats/12.jpg', 'cat/1.jpg']],
  ['a/{b,c/d}/*', 'a', ['b/x', 'c/d/x'], ['c/x', 'b/c/x']],
  ['{a,b}/x.jpg', '.', ['a/x.jpg', 'b/x.jpg'], ['c/x.jpg']],
  ['/*', '/', ['a'], ['a/b']],
  ['x/{a,{b,c}d}.jpg', 'x', ['a.jpg', 'bd.jpg', 'cd.jpg'], ['d.jpg', 'ad.jpg']],
  ['.hidden/*', '.hidden', ['a'], ['.a']],
  ['a+(b).[c]*', '.', ['a+(b).[c]x'], ['aab.cx']],
])('%s', (pattern, base, matching, other) => {
  const glob = parseGlob(pattern)
  expect(glob.base).toBe(base)
  for (const path of matching) {
    expect(glob.matches(path), path).toBe(true)
    const parts = path.split('/')
    for (let depth = 1; depth < parts.length; depth++) expect(glob.mayContain(parts.slice(0, depth).join('/')), path).toBe(true)
  }
  for (const path of other) expect(glob.matches(path), path).toBe(false)
})

test('folders that cannot hold a match are not entered', () => {
  const glob = parseGlob('photos/cats/*/x*.jpg')
  expect([glob.base, glob.mayContain('a'), glob.mayContain('a/b')]).toEqual(['photos/cats', true, false])
})

test('a star matches as a regular expression would', () => {
  const letters = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 12 })
  const pattern = fc.string({ unit: fc.constantFrom('a', 'b', '*', '?'), minLength: 1, maxLength: 8 })
  fc.assert(
    fc.property(pattern, letters, (text, name) => {
      const expected = new RegExp(`^${text.replaceAll('*', '.*').replaceAll('?', '.')}$`).test(name)
      expect(parseGlob(text).matches(name)).toBe(expected)
    }),
    { numRuns: 2000 },
  )
})

test('patterns that make regular expressions hang are quick, and braces are bounded', () => {
  const started = performance.now()
  expect(parseGlob(`${'*a'.repeat(50)}b`).matches('a'.repeat(255))).toBe(false)
  expect(parseGlob(`${'**/'.repeat(50)}b`).matches(Array(100).fill('a').join('/'))).toBe(false)
  expect(performance.now() - started).toBeLessThan(500)
  expect(() => parseGlob('{a,b}'.repeat(30))).toThrow(expect.objectContaining({ code: 'GLOB_MALFORMED' }))
  expect(() => parseGlob('{a,b')).toThrow(expect.objectContaining({ code: 'GLOB_MALFORMED' }))
  expect([hasGlobCharacters('a/b.jpg'), hasGlobCharacters('a/*')]).toEqual([false, true])
})
