/** The WebAssembly that is committed is what its text says. */
import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { assemble } from './wat.ts'

const source = (file: string): string => readFileSync(new URL(`../src/${file}`, import.meta.url), 'utf8')

test.each(['media/resize-simd', 'media/jpeg-simd', 'pixel-planes', 'weights/float16-simd'])('%s.ts holds the program of %s.wat', (file) => {
  const literals = /const program =\n((?:\s*'[^']*'(?: \+)?\n)+)/.exec(source(`${file}.ts`))?.[1] ?? ''
  const text = [...literals.matchAll(/'([^']*)'/g)].map(([, part]) => part).join('')
  const committed = Buffer.from(text, 'base64')
  expect(WebAssembly.validate(committed)).toBe(true)
  expect(Buffer.from(assemble(source(`${file}.wat`))).toString('hex')).toBe(committed.toString('hex'))
})
