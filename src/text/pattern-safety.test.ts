import { expect, test } from 'vitest'
import { nestedQuantifier } from './pattern-safety.ts'

const published = {
  'GPT-2': "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  'Llama 3':
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  'GPT-4o':
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  DeepSeek:
    '[!"#$%&\'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+',
  BLOOM: ' ?[^(\\s|[.,!?…。，、।۔،])]+',
  spaces: ' {2,}',
}

test.each(Object.entries(published))('the pattern of %s is safe', (_, pattern) => {
  expect(nestedQuantifier(pattern)).toBeUndefined()
})

test.each([
  ['(a+)+$', 4],
  ['(?:a*)*', 6],
  ['(a|a)*b', 5],
  ['((a{2,}))+', 9],
  ['(?=(x+y))*', 9],
  ['(\\w+\\s?){1,}', 8],
  ['(?<name>[a-z]+)+', 15],
  ['([)]+)+', 6],
])('%s can hang', (pattern, position) => {
  expect(nestedQuantifier(pattern)).toBe(position)
})

test.each(['(ab)+', '(a+)?', '(a|b){1,3}', '[(a+)+]*', '\\(a+\\)+', 'a+b+', '(?:a+b)'])('%s cannot', (pattern) => {
  expect(nestedQuantifier(pattern)).toBeUndefined()
})
