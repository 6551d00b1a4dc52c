import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { exitCodeOf, exitCodes } from './exit-codes.ts'
import { packageRoot } from './package-root.ts'

/** Every quoted word in capitals that stands where an error code stands. */
function codesIn(text: string): readonly string[] {
  const places = [
    /\bcode: '([A-Z][A-Z0-9_]+)'/g,
    /\b(?:fail|refuse|fault|note|wrong|damaged)\(\s*'([A-Z][A-Z0-9]*_[A-Z0-9_]+)'/g,
    /\bCode: '([A-Z][A-Z0-9_]+)'/g,
  ]
  return places.flatMap((place) => [...text.matchAll(place)].map(([, code = '']) => code))
}

function sources(folder: string): readonly string[] {
  return readdirSync(join(packageRoot(), folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts') && !name.endsWith('.test.ts') && !name.includes('node_modules'))
    .map((name) => join(packageRoot(), folder, name))
}

const found = new Map(
  ['src', 'encoders', 'projectors', 'datasets', 'examples'].flatMap((folder) =>
    sources(folder).flatMap((file) => codesIn(readFileSync(file, 'utf8')).map((code) => [code, file] as const)),
  ),
)

test('every error code of the source has an exit code', () => {
  expect(found.size).toBeGreaterThan(150)
  expect([...found].filter(([code]) => exitCodeOf({ code }) === undefined)).toEqual([])
})

test.each([
  ['CONFIG_VALUE', exitCodes.usage],
  ['FILE_MISSING', exitCodes.usage],
  ['FILE_PERMISSION', exitCodes.environment],
  ['IMAGE_EMPTY', exitCodes.data],
  ['DATASET_ROLE', exitCodes.data],
  ['JOB_MOSTLY_BAD', exitCodes.data],
  ['JOB_ROW_MALFORMED', exitCodes.artefact],
  ['JOB_SPEC_CHANGED', exitCodes.usage],
  ['DISK_FULL', exitCodes.environment],
  ['OUTPUT_LOCKED', exitCodes.environment],
  ['RUNTIME_DEVICE_UNAVAILABLE', exitCodes.environment],
  ['RUNTIME_FEED_SHAPE', exitCodes.internal],
  ['SAFETENSORS_TOO_SHORT', exitCodes.artefact],
  ['MODEL_MISMATCH', exitCodes.usage],
  ['MODEL_MANIFEST', exitCodes.artefact],
  ['ABORTED', exitCodes.interrupted],
  ['INTERNAL', exitCodes.internal],
])('%s is %d', (code, exit) => {
  expect(exitCodeOf({ code })).toBe(exit)
})

test('a file that a record names is the data, not the command line', () => {
  expect(exitCodeOf({ code: 'FILE_MISSING', record: 3 })).toBe(exitCodes.data)
})

test('unknown codes are not guessed', () => {
  expect(exitCodeOf({ code: 'NOBODY_KNOWS' })).toBeUndefined()
})
