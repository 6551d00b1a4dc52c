import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { type InputItem, type InputOptions, inputItems } from './inputs.ts'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-inputs-'))
})
afterEach(() => rm(folder, { recursive: true }))

async function files(...names: string[]): Promise<void> {
  for (const name of names) {
    await mkdir(dirname(join(folder, name)), { recursive: true })
    await writeFile(join(folder, name), name)
  }
}
async function all(input: string, options?: InputOptions): Promise<InputItem[]> {
  const items: InputItem[] = []
  for await (const item of (await inputItems(input, options)).items) items.push(item)
  return items
}
const ids = async (input: string, options?: InputOptions) => (await all(input, options)).map(({ id }) => id)
const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  )

describe('a folder', () => {
  test('recursive, sorted, by extension, without hidden files; again the same', async () => {
    await files('b.jpg', 'a/2.PNG', 'a/10.jpg', 'a.jpg', 'notes.txt', '.hidden.jpg', '._b.jpg', '.git/x.jpg', 'é ü.webp', 'new\nline.gif')
    expect(await ids(folder)).toEqual(['a/10.jpg', 'a/2.PNG', 'a.jpg', 'b.jpg', 'new\nline.gif', 'é ü.webp'])
    const { items, root, kind } = await inputItems(folder)
    expect([root, kind]).toEqual([folder, 'folder'])
    const twice = []
    for (let round = 0; round < 2; round++) for await (const item of items) twice.push(item)
    expect(twice).toHaveLength(12)
    expect(twice[0]).toEqual({ id: 'a/10.jpg', source: 'a/10.jpg', path: join(folder, 'a/10.jpg') })
    expect(await ids(folder, { extensions: ['.txt'] })).toEqual(['notes.txt'])
  })

  test('links: inside is fine; outside, broken and looping ones are bad items', async () => {
    await files('in/a.jpg')
    const outside = await mkdtemp(join(tmpdir(), 'modalign-outside-'))
    try {
      await writeFile(join(outside, 'x.jpg'), '')
      await symlink('a.jpg', join(folder, 'in/b.jpg'))
      await symlink(join(outside, 'x.jpg'), join(folder, 'in/c.jpg'))
      await symlink('nowhere', join(folder, 'in/d.jpg'))
      await symlink('e.jpg', join(folder, 'in/e.jpg'))
      const items = await all(join(folder, 'in'))
      expect(items.map(({ id, error }) => [id, error?.code])).toEqual([
        ['a.jpg', undefined],
        ['b.jpg', undefined],
        ['c.jpg', 'PATH_ESCAPE'],
        ['d.jpg', 'FILE_MISSING'],
        ['e.jpg', 'FILE_MISSING'],
      ])
      expect(JSON.stringify(items.map(({ error }) => error))).not.toContain(folder)
      expect((await all(join(folder, 'in'), { root: tmpdir() })).map(({ error }) => error?.code)).toEqual([
        undefined,
        undefined,
        undefined,
        'FILE_MISSING',
        'FILE_MISSING',
      ])
    } finally {
      await rm(outside, { recursive: true })
    }
  })

  test('nothing to do is said', async () => {
    await files('notes.txt')
    expect(await failure(ids(folder))).toMatchObject({ code: 'INPUT_EMPTY', details: { file: folder } })
    expect(await failure(ids(join(folder, 'no')))).toMatchObject({ code: 'FILE_MISSING' })
  })
})

describe('a pattern', () => {
  test('is relative to its fixed part', async () => {
    await files('cats/1.jpg', 'cats/old/2.png', 'dogs/3.jpg', 'cats/readme.md')
    expect(await ids(join(folder, 'cats/**/*.{jpg,png}'))).toEqual(['1.jpg', 'old/2.png'])
    expect(await ids(join(folder, '*/*.jpg'))).toEqual(['cats/1.jpg', 'dogs/3.jpg'])
    expect((await inputItems(join(folder, '*/*.jpg'))).root).toBe(folder)
    expect(await failure(ids(join(folder, '*/*.tiff')))).toMatchObject({ code: 'INPUT_EMPTY' })
    expect(await failure(inputItems(join(folder, 'no/*.jpg')))).toMatchObject({ code: 'FILE_MISSING' })
  })

  test('a folder whose name looks like a pattern is that folder', async () => {
    await files('{a}/1.jpg')
    expect(await ids(join(folder, '{a}'))).toEqual(['1.jpg'])
  })
})

test('one medium', async () => {
  await files('a.jpg')
  expect(await all(join(folder, 'a.jpg'))).toEqual([{ id: 'a.jpg', source: 'a.jpg', path: join(folder, 'a.jpg') }])
})

describe('a JSONL file', () => {
  const list = join('lists', 'list.jsonl')
  const write = async (...lines: (object | string)[]) => {
    await files(list)
    await writeFile(join(folder, list), lines.map((line) => `${typeof line === 'string' ? line : JSON.stringify(line)}\n`).join(''))
  }

  test('paths are relative to it; ids are its own or the paths', async () => {
    await files('lists/x/a.jpg', 'lists/b.jpg')
    await write({ id: 'first', source: 'x/a.jpg' }, { id: 7, image: './b.jpg' }, { image: 'b.jpg', more: [1] })
    expect(await all(join(folder, list))).toEqual([
      { id: 'first', source: 'x/a.jpg', path: join(folder, 'lists/x/a.jpg') },
      { id: '7', source: './b.jpg', path: join(folder, 'lists/b.jpg') },
      { id: 'b.jpg', source: 'b.jpg', path: join(folder, 'lists/b.jpg') },
    ])
  })

  test.each([
    ['{"id":"a",', 'JSONL_MALFORMED', undefined, 'line:2'],
    ['[1]', 'INPUT_RECORD', undefined, 'line:2'],
    ['null', 'INPUT_RECORD', undefined, 'line:2'],
    [{ id: 'a' }, 'INPUT_SOURCE', '/source', 'a'],
    [{ id: 'a', image: ['x.jpg'] }, 'INPUT_SOURCE', '/image', 'a'],
    [{ id: 1.5, source: 'b.jpg' }, 'INPUT_ID', '/id', 'line:2'],
    [{ id: {}, source: 'b.jpg' }, 'INPUT_ID', '/id', 'line:2'],
    [{ id: 'a', source: 'no.jpg' }, 'FILE_MISSING', '/source', 'a'],
    [{ id: 'a', source: '' }, 'FILE_MISSING', '/source', 'a'],
    [{ id: 'a', source: '../../../etc/passwd' }, 'PATH_ESCAPE', '/source', 'a'],
    [{ id: 'a', source: '/etc/passwd' }, 'PATH_ESCAPE', '/source', 'a'],
    [{ id: 'a', source: 'http://169.254.169.254/x.jpg' }, 'PATH_URL', '/source', 'a'],
    [{ id: 'a', source: 'file:///etc/passwd' }, 'PATH_URL', '/source', 'a'],
    [{ id: 'a', source: 'data:image/png;base64,AA' }, 'PATH_URL', '/source', 'a'],
    [{ id: 'a', source: 'b.jpg\0.png' }, 'FILE_MISSING', '/source', 'a'],
  ])('a bad record is an item with an error: %j is %s', async (line, code, field, id) => {
    await files('lists/b.jpg')
    await write({ source: 'b.jpg' }, line, { id: 'last', source: 'b.jpg' })
    const items = await all(join(folder, list))
    expect(items.map((item) => item.id)).toEqual(['b.jpg', id, 'last'])
    expect(items[1]).toMatchObject({ path: '', error: { code, file: 'list.jsonl', line: 2, record: 1 } })
    expect(items[1]?.error?.field).toBe(field)
  })

  test('the same prefix is not the same folder; a wider root allows what lies in it', async () => {
    await files('lists-private/x.jpg')
    await write({ source: '../lists-private/x.jpg' })
    expect((await all(join(folder, list)))[0]?.error?.code).toBe('PATH_ESCAPE')
    await write({ source: 'lists-private/x.jpg' }, { id: 'absolute', source: join(folder, 'lists-private/x.jpg') })
    expect((await all(join(folder, list), { root: folder })).map(({ error }) => error)).toEqual([undefined, undefined])
  })

  test('an id twice names both lines; no records is said', async () => {
    await files('lists/b.jpg')
    await write({ id: 'a', source: 'b.jpg' }, '', { id: 'a', source: 'b.jpg' })
    expect(await failure(ids(join(folder, list)))).toMatchObject({
      code: 'INPUT_ID_TWICE',
      details: { line: 3, expected: expect.stringContaining('line 1') },
    })
    await write()
    expect(await failure(ids(join(folder, list)))).toMatchObject({ code: 'INPUT_EMPTY' })
  })
})
