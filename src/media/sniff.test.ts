import fc from 'fast-check'
import { expect, test } from 'vitest'
import { endsEarly, imageFormats, sniff } from './sniff.ts'

const latin1 = (text: string): Uint8Array => Buffer.from(text, 'latin1')

test.each([
  ['\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf', { type: 'image', format: 'avif' }],
  ['\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf', { type: 'image', format: 'avif' }],
  ['\0\0\0\x18ftypheic\0\0\0\0mif1heic', { type: 'image', format: 'heic' }],
  ['\0\0\0\x18ftypisom\0\0\x02\0isomiso2', { type: 'container', format: 'mov' }],
  ['RIFF\x10\0\0\0AVI LIST', { type: 'container', format: 'avi' }],
  ['\xff\xfb\x90\x44', { type: 'container', format: 'mp3' }],
  ['\xff\xf1\x50\x80', { type: 'container', format: 'aac' }],
  ['\x1aE\xdf\xa3', { type: 'container', format: 'matroska' }],
  ['BM is how this sentence begins', { type: 'unknown' }],
  ['', { type: 'unknown' }],
  ['<svgish>', { type: 'other', looksLike: 'XML' }],
  ['<!doctype SVG><x>', { type: 'image', format: 'svg' }],
  ['<!-- <svg> --><html>', { type: 'other', looksLike: 'HTML' }],
  ['<svg:svg xmlns:svg="http://www.w3.org/2000/svg">', { type: 'image', format: 'svg' }],
  ['\xef\xbb\xbf  <?xml version="1.0"?>\n<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN">\n<svg>', { type: 'image', format: 'svg' }],
] as const)('%j', (start, expected) => {
  expect(sniff(latin1(start))).toEqual(expected)
})

test('any bytes, however short, are named without an error, and so is their end', () => {
  const starts = [
    '',
    '\xff\xd8\xff',
    '\x89PNG\r\n\x1a\n',
    'RIFF\0\0\0\0WEBP',
    'GIF89a',
    'II*\0',
    'BM',
    '\0\0\0\x1cftypavif',
    '<svg',
    '<!--',
    '{',
  ]
  fc.assert(
    fc.property(fc.constantFrom(...starts), fc.uint8Array({ maxLength: 600 }), fc.constantFrom(...imageFormats), (start, rest, format) => {
      const bytes = Buffer.concat([latin1(start), rest])
      expect(['image', 'container', 'other', 'unknown']).toContain(sniff(bytes).type)
      expect(typeof endsEarly(bytes, format)).toBe('boolean')
    }),
    { numRuns: 2000 },
  )
})

test('a document made to confuse the search for <svg is named in no time', () => {
  const start = performance.now()
  sniff(latin1(`<?xml${'<!--'.repeat(250)}`))
  sniff(latin1(`<!doctype svg${' '.repeat(500)}[${']'.repeat(400)}`))
  sniff(latin1('<!-- -->'.repeat(128)))
  expect(performance.now() - start).toBeLessThan(1000)
})
