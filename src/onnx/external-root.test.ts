import fc from 'fast-check'
import { expect, test } from 'vitest'
import { commonRoot } from './external-root.ts'

test.each([
  [['/models/a/x.safetensors'], '/models/a', ['x.safetensors']],
  [['/models/a/x.safetensors', '/models/b/y.safetensors'], '/models', ['a/x.safetensors', 'b/y.safetensors']],
  [['/models/a/x', '/models/a/deeper/y'], '/models/a', ['x', 'deeper/y']],
  [['/models/ab/x', '/models/ac/y'], '/models', ['ab/x', 'ac/y']],
  [['/a', '/b/c'], '/', ['a', 'b/c']],
  [['C:\\models\\a\\x', 'C:\\models\\y'], 'C:/models', ['a/x', 'y']],
  [['C:\\x', 'C:\\deep\\y'], 'C:/', ['x', 'deep/y']],
  [['/models/x', '/models/x'], '/models', ['x', 'x']],
  // One file is named as the folder of another: the root is above both.
  [['/m/a', '/m/a/b'], '/m', ['a', 'a/b']],
])('%j', (files, root, locations) => {
  const found = commonRoot(files)
  expect(found?.root).toBe(root)
  expect(files.map((file) => found?.locationOf(file))).toEqual(locations)
})

test('no files have no root', () => {
  expect(commonRoot([])).toBeUndefined()
})

test('root and location make the path again, and no location leaves the root', () => {
  const name = fc.constantFrom('a', 'b', 'model', 'x.safetensors', '..a', 'ü')
  const path = fc.array(name, { minLength: 1, maxLength: 5 }).map((names) => `/${names.join('/')}`)
  fc.assert(
    fc.property(fc.array(path, { minLength: 1, maxLength: 6 }), (files) => {
      const found = commonRoot(files)
      if (found === undefined) throw new Error('no root')
      for (const file of files) {
        const location = found.locationOf(file)
        expect(location).not.toBe('')
        expect(location.startsWith('/')).toBe(false)
        expect(`${found.root.replace(/\/$/, '')}/${location}`).toBe(file)
      }
    }),
  )
})
