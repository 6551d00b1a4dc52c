import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { ErrorData } from '../src/errors.ts'
import type { Part, Sample } from '../src/model/contracts.ts'
import { datasets } from './index.ts'
import { type LlavaOptions, llava } from './llava.ts'

let folder: string
let files = 0
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-llava-'))
})
afterAll(() => rm(folder, { recursive: true }))

async function write(content: string | Uint8Array): Promise<string> {
  const path = join(folder, `${files++}.json`)
  await writeFile(path, content)
  return path
}

async function read(
  content: string | readonly unknown[],
  options?: LlavaOptions,
): Promise<{ samples: Sample[]; bad: ErrorData[]; path: string }> {
  const path = await write(typeof content === 'string' ? content : JSON.stringify(content))
  const samples: Sample[] = []
  const bad: ErrorData[] = []
  for await (const sample of llava(path, options).samples({ onBad: (error) => bad.push(error.details) })) samples.push(sample)
  return { samples, bad, path }
}

const asks = (value: unknown) => ({ from: 'human', value })
const answers = (value: unknown) => ({ from: 'gpt', value })
const talk = [asks('<image>\nWhat is this?'), answers('A bus.')]

describe('records', () => {
  test('the example of the LLaVA documentation', async () => {
    const { samples, path } = await read([
      {
        id: '997bb945-628d-4724-b370-b84de974a19f',
        image: 'part-000001/997bb945-628d-4724-b370-b84de974a19f.jpg',
        conversations: [
          { from: 'human', value: '<image>\nWrite a prompt for Stable Diffusion to generate this image.' },
          { from: 'gpt', value: 'a beautiful painting of chernobyl by nekro, pascal blanche' },
        ],
      },
    ])
    expect(samples).toEqual([
      {
        id: '997bb945-628d-4724-b370-b84de974a19f',
        turns: [
          {
            role: 'user',
            content: [
              { type: 'image', source: 'part-000001/997bb945-628d-4724-b370-b84de974a19f.jpg' },
              { type: 'text', text: '\nWrite a prompt for Stable Diffusion to generate this image.' },
            ],
          },
          { role: 'assistant', content: [{ type: 'text', text: 'a beautiful painting of chernobyl by nekro, pascal blanche' }] },
        ],
        origin: { file: path, record: 0, dataset: '0', fields: {} },
      },
    ])
  })

  test('placeholders anywhere, in any turn: the k-th stands for the k-th image', async () => {
    const { samples } = await read([
      {
        image: ['a.jpg', 'b.jpg', 'c.jpg'],
        conversations: [
          asks('Compare <image> with <image>.'),
          answers('In <image> there is more.'),
          asks('And\n<image>'),
          answers('Less.'),
        ],
      },
    ])
    expect(samples[0]?.turns.map((turn) => turn.content)).toEqual([
      [
        { type: 'text', text: 'Compare ' },
        { type: 'image', source: 'a.jpg' },
        { type: 'text', text: ' with ' },
        { type: 'image', source: 'b.jpg' },
        { type: 'text', text: '.' },
      ],
      [{ type: 'text', text: 'In <image> there is more.' }],
      [
        { type: 'text', text: 'And\n' },
        { type: 'image', source: 'c.jpg' },
      ],
      [{ type: 'text', text: 'Less.' }],
    ])
  })

  test('text only, an empty list of images, a system turn, all role names', async () => {
    const turns = [
      { from: 'system', value: 'Be brief. <image> is text here.' },
      { from: 'user', value: 'Hi' },
      { from: 'assistant', value: 'Hello' },
    ]
    const { samples, bad } = await read([{ conversations: turns }, { image: [], conversations: [asks('Hi'), answers('Hello')] }])
    expect(bad).toEqual([])
    expect(samples.map(({ turns }) => turns.map(({ role }) => role))).toEqual([
      ['system', 'user', 'assistant'],
      ['user', 'assistant'],
    ])
    expect(samples[0]?.turns[0]?.content).toEqual([{ type: 'text', text: 'Be brief. <image> is text here.' }])
  })

  test('JSON Lines give the same samples as an array', async () => {
    const records = [
      { id: 'a', image: 'a.jpg', conversations: talk },
      { id: 'b', conversations: [asks('Hi'), answers('Hello')] },
    ]
    const array = await read(records, { name: 'data' })
    const lines = await read(`${records.map((record) => JSON.stringify(record)).join('\r\n')}\n`, { name: 'data' })
    const withoutFile = ({ samples }: { samples: Sample[] }) =>
      samples.map(({ origin, ...sample }) => ({ ...sample, origin: { ...origin, file: '' } }))
    expect(withoutFile(lines)).toEqual(withoutFile(array))
  })

  test('ids: numbers become strings with every digit, absent ones name the record', async () => {
    const conversations = JSON.stringify([asks('Hi'), answers('Hello')])
    const { samples } = await read(
      `[{"id": 17, "conversations": ${conversations}}, {"id": 9007199254740993, "conversations": ${conversations}}, {"conversations": ${conversations}}]`,
      { name: 'data' },
    )
    expect(samples.map(({ id }) => id)).toEqual(['17', '9007199254740993', 'data#2'])
  })

  test('unused keys are kept, those of turns too, and no digit is lost', async () => {
    const { samples } = await read(
      `[{"model": "", "url": "http://x", "n": [9007199254740993, 0.5], "__proto__": {"a": 1}, "conversations": [{"from": "human", "value": "Hi", "lang": "en"}, {"from": "gpt", "value": "Hello"}]}]`,
    )
    const { fields } = samples[0]?.origin ?? {}
    expect(Object.entries(fields ?? {})).toEqual([
      ['model', ''],
      ['url', 'http://x'],
      ['n', ['9007199254740993', 0.5]],
      ['__proto__', { a: 1 }],
      ['conversations', [{ lang: 'en' }, {}]],
    ])
  })

  test('{ path } objects, as the datasets library writes them, name an image', async () => {
    const { samples } = await read([{ image: { path: 'a.jpg', bytes: null }, conversations: talk }])
    expect(samples[0]?.turns[0]?.content[0]).toEqual({ type: 'image', source: 'a.jpg' })
  })

  test('law: splitting at placeholders loses nothing', async () => {
    const pieces = fc.array(fc.constantFrom('<image>', '\n', 'a', ' ', '<', 'image>', '<Image>', 'é'), { minLength: 1, maxLength: 8 })
    await fc.assert(
      fc.asyncProperty(fc.array(pieces, { minLength: 1, maxLength: 4 }), async (questions) => {
        const texts = questions.map((words) => `q${words.join('')}`)
        const count = texts.join('').split('<image>').length - 1
        const image = Array.from({ length: count }, (_, i) => `${i}.jpg`)
        const { samples, bad } = await read([{ image, conversations: texts.flatMap((text) => [asks(text), answers('ok')]) }])
        expect(bad).toEqual([])
        const turns = samples[0]?.turns ?? []
        const back = (part: Part) => (part.type === 'text' ? part.text : '<image>')
        expect(turns.filter(({ role }) => role === 'user').map(({ content }) => content.map(back).join(''))).toEqual(texts)
        expect(turns.flatMap(({ content }) => content.flatMap((part) => (part.type === 'image' ? [part.source] : [])))).toEqual(image)
      }),
      { numRuns: 60 },
    )
  })
})

describe('bad records', () => {
  const table: readonly (readonly [name: string, record: unknown, code: string, details: Partial<ErrorData>])[] = [
    ['a list', [], 'DATASET_RECORD_TYPE', { got: 'a list' }],
    ['null', null, 'DATASET_RECORD_TYPE', { got: 'null' }],
    ['no conversations', { id: 'a' }, 'DATASET_CONVERSATIONS', { field: '/conversations', got: 'no such key' }],
    ['messages instead', { messages: [] }, 'DATASET_CONVERSATIONS', { hint: 'the record has "messages": this is another format' }],
    ['conversations of the wrong type', { conversations: 'Hi' }, 'DATASET_CONVERSATIONS', { got: 'the string "Hi"' }],
    ['no turns', { conversations: [] }, 'DATASET_CONVERSATIONS', { got: 'an empty list' }],
    ['a turn that is a string', { conversations: ['Hi'] }, 'DATASET_TURN_TYPE', { field: '/conversations/0' }],
    [
      'an unknown role',
      { conversations: [asks('Hi'), { from: 'GPT', value: 'Hello' }] },
      'DATASET_ROLE',
      { field: '/conversations/1/from', got: 'GPT', expected: 'one of human, user, gpt, assistant, system' },
    ],
    ['a tool turn', { conversations: [asks('Hi'), { from: 'tool', value: 'x' }] }, 'DATASET_ROLE', { got: 'tool' }],
    [
      'role instead of from',
      { conversations: [{ role: 'user', content: 'Hi' }] },
      'DATASET_ROLE',
      { hint: 'the turn has "role": this is another format' },
    ],
    ['a role of the wrong type', { conversations: [{ from: 1, value: 'Hi' }] }, 'DATASET_ROLE', { got: 'the number 1' }],
    ['an inherited name as role', { conversations: [{ from: 'constructor', value: 'Hi' }] }, 'DATASET_ROLE', { got: 'constructor' }],
    [
      'the assistant first',
      { conversations: [answers('Hello'), asks('Hi'), answers('Hello')] },
      'DATASET_ROLE_ORDER',
      { field: '/conversations/0/from', got: 'assistant first' },
    ],
    [
      'two questions in a row',
      { conversations: [asks('Hi'), asks('Hi'), answers('Hello')] },
      'DATASET_ROLE_ORDER',
      { field: '/conversations/1/from', got: 'user after user' },
    ],
    [
      'two answers in a row',
      { conversations: [asks('Hi'), answers('a'), answers('b')] },
      'DATASET_ROLE_ORDER',
      { field: '/conversations/2/from' },
    ],
    [
      'a question last',
      { conversations: [asks('Hi'), answers('Hello'), asks('And?')] },
      'DATASET_ROLE_ORDER',
      { field: '/conversations/2/from', got: 'user as the last turn' },
    ],
    [
      'a late system turn',
      { conversations: [asks('Hi'), answers('a'), { from: 'system', value: 'x' }] },
      'DATASET_ROLE_ORDER',
      { hint: 'a system turn can only be the first' },
    ],
    ['only a system turn', { conversations: [{ from: 'system', value: 'x' }] }, 'DATASET_ROLE_ORDER', {}],
    [
      'a value of null',
      { conversations: [asks('Hi'), answers(null)] },
      'DATASET_VALUE_TYPE',
      { field: '/conversations/1/value', got: 'null' },
    ],
    ['no value', { conversations: [{ from: 'human' }] }, 'DATASET_VALUE_TYPE', { got: 'no such key' }],
    ['a value of content parts', { conversations: [asks([{ type: 'text' }]), answers('a')] }, 'DATASET_VALUE_TYPE', { got: 'a list' }],
    ['an empty answer', { conversations: [asks('Hi'), answers('')] }, 'DATASET_TURN_EMPTY', { field: '/conversations/1/value' }],
    ['an answer of spaces', { conversations: [asks('Hi'), answers(' \n')] }, 'DATASET_TURN_EMPTY', { got: 'only white space' }],
    [
      'an image without a placeholder',
      { image: 'a.jpg', conversations: [asks('Hi'), answers('a')] },
      'DATASET_PLACEHOLDER_COUNT',
      { field: '/image', got: '0 <image> placeholders', expected: '1 (the record has 1 image)' },
    ],
    [
      'a placeholder without an image',
      { conversations: talk },
      'DATASET_PLACEHOLDER_COUNT',
      { field: '/conversations/0/value', got: '1 <image> placeholder', expected: '0 (the record has 0 images)' },
    ],
    [
      'two placeholders, one image',
      { image: 'a.jpg', conversations: [asks('<image>'), answers('a'), asks('<image>'), answers('b')] },
      'DATASET_PLACEHOLDER_COUNT',
      { field: '/conversations/2/value' },
    ],
    [
      'one placeholder, two images',
      { image: ['a.jpg', 'b.jpg'], conversations: talk },
      'DATASET_PLACEHOLDER_COUNT',
      { field: '/image', hint: 'every file in "image" needs its own placeholder' },
    ],
    [
      '<Image>',
      { image: 'a.jpg', conversations: [asks('<Image>\nHi'), answers('a')] },
      'DATASET_PLACEHOLDER_COUNT',
      { hint: 'write <image> instead of <Image>' },
    ],
    [
      'a placeholder in an answer only',
      { image: 'a.jpg', conversations: [asks('Hi'), answers('<image>')] },
      'DATASET_PLACEHOLDER_COUNT',
      { got: '0 <image> placeholders' },
    ],
    [
      'images under another key',
      { images: ['a.jpg'], conversations: talk },
      'DATASET_PLACEHOLDER_COUNT',
      { hint: 'the record has "images", which this format does not read: its key is "image"' },
    ],
    ['image null', { image: null, conversations: talk }, 'DATASET_IMAGE_TYPE', { field: '/image', got: 'null' }],
    ['a list with null', { image: ['a.jpg', null], conversations: talk }, 'DATASET_IMAGE_TYPE', { field: '/image/1' }],
    ['image bytes', { image: { bytes: 'aGk=', path: 'a.jpg' }, conversations: talk }, 'DATASET_IMAGE_TYPE', { got: 'an object' }],
    ['an id of the wrong type', { id: [], conversations: talk, image: 'a.jpg' }, 'DATASET_ID_TYPE', { field: '/id' }],
    ['an empty path', { image: '', conversations: talk }, 'PATH_INVALID', { field: '/image' }],
    [
      'a path that climbs',
      { image: ['../../etc/passwd'], conversations: talk },
      'PATH_ESCAPE',
      { field: '/image/0', got: '../../etc/passwd' },
    ],
  ]

  test.each(table)('%s', async (_name, record, code, details) => {
    const good = { image: 'a.jpg', conversations: talk }
    const { samples, bad, path } = await read([good, record, good])
    expect(bad).toHaveLength(1)
    expect(bad[0]).toMatchObject({ code, file: path, record: 1, line: 1, ...details })
    expect(samples.map(({ origin }) => origin?.record)).toEqual([0, 2])
    const firstBad = async () => {
      for await (const _ of llava(path).samples());
    }
    await expect(firstBad()).rejects.toMatchObject({ code, details: bad[0] })
  })

  test('paths that leave the root or are no paths', async () => {
    const refused: readonly (readonly [string, string])[] = [
      ['/etc/passwd', 'PATH_ESCAPE'],
      ['C:/a.jpg', 'PATH_ESCAPE'],
      ['c:a.jpg', 'PATH_ESCAPE'],
      ['a/../../b.jpg', 'PATH_ESCAPE'],
      ['a/%2e%2E/b.jpg', 'PATH_ESCAPE'],
      ['..', 'PATH_ESCAPE'],
      ['..\\a.jpg', 'PATH_INVALID'],
      ['\\\\server\\a.jpg', 'PATH_INVALID'],
      ['http://x/a.jpg', 'PATH_URL'],
      ['FILE:///etc/passwd', 'PATH_URL'],
      ['data:image/png;base64,AA', 'PATH_URL'],
      ['a\0.jpg', 'PATH_INVALID'],
      ['a//b.jpg', 'PATH_INVALID'],
      ['a/ b. /c.jpg', 'PATH_INVALID'],
      ['a.jpg.', 'PATH_INVALID'],
      ['a.jpg ', 'PATH_INVALID'],
      ['x'.repeat(5000), 'PATH_INVALID'],
    ]
    const { bad, samples } = await read(refused.map(([image]) => ({ image, conversations: talk })))
    expect(samples).toEqual([])
    expect(bad.map(({ code }, i) => [refused[i]?.[0], code])).toEqual(refused)
    for (const { got } of bad) expect(got?.length).toBeLessThanOrEqual(120)
  })

  test('legitimate names are accepted', async () => {
    const names = [
      'a.jpg',
      './a.jpg',
      'a/b c/é 😀.jpg',
      'VG_100K/2.jpg',
      '...jpg',
      'a..b.jpg',
      'photo: 1.jpg',
      '100%.jpg',
      '.hidden/a.jpg',
      'a+b~c#d?e.jpg',
      'ノート.png',
    ]
    const { bad, samples } = await read(names.map((image) => ({ image, conversations: talk })))
    expect(bad).toEqual([])
    expect(samples.map(({ turns }) => turns[0]?.content[0])).toEqual(names.map((source) => ({ type: 'image', source })))
  })

  test('faults of the JSON itself come through the same way', async () => {
    const good = JSON.stringify({ conversations: [asks('Hi'), answers('a')] })
    const { samples, bad, path } = await read(`[${good},\n{"score": NaN},\n${good}`)
    expect(bad).toMatchObject([
      { code: 'JSON_NAN', record: 1, line: 2, field: '/score', file: path },
      { code: 'JSON_TRUNCATED', record: 3 },
    ])
    expect(samples).toHaveLength(2)
  })

  test.each(['', '[]', ' \n'])('an empty file is an error: %j', async (content) => {
    await expect(read(content)).rejects.toMatchObject({ code: 'DATASET_EMPTY' })
  })

  test('a missing file is a typed error', async () => {
    await expect(llava(join(folder, 'absent.json')).samples()[Symbol.asyncIterator]().next()).rejects.toMatchObject({
      code: 'FILE_MISSING',
    })
  })
})

describe('options', () => {
  test('missingPlaceholder: prepend puts every image before the first question', async () => {
    const { samples, bad } = await read(
      [{ image: ['a.jpg', 'b.jpg'], conversations: [{ from: 'system', value: 's' }, asks('Hi'), answers('a')] }],
      { missingPlaceholder: 'prepend' },
    )
    expect(bad).toEqual([])
    expect(samples[0]?.turns[1]?.content).toEqual([
      { type: 'image', source: 'a.jpg' },
      { type: 'text', text: '\n' },
      { type: 'image', source: 'b.jpg' },
      { type: 'text', text: '\nHi' },
    ])
    const other = await read([{ image: ['a.jpg', 'b.jpg'], conversations: talk }], { missingPlaceholder: 'prepend' })
    expect(other.bad, 'a wrong count stays an error').toMatchObject([{ code: 'DATASET_PLACEHOLDER_COUNT' }])
  })

  test('leadingAssistant: drop leaves the first answer out', async () => {
    const { samples, bad } = await read([{ image: 'a.jpg', conversations: [answers('Hello'), ...talk] }], { leadingAssistant: 'drop' })
    expect(bad).toEqual([])
    expect(samples[0]?.turns.map(({ role }) => role)).toEqual(['user', 'assistant'])
  })

  test('name and root', () => {
    expect(llava('data/llava_instruct.json')).toMatchObject({ name: 'llava_instruct', root: 'data' })
    expect(llava('data/a.json', { name: 'n', root: 'images' })).toMatchObject({ name: 'n', root: 'images' })
  })

  test('the catalogue is an exact-key map', () => {
    expect(Object.keys(datasets)).toEqual(['llava', 'messages'])
  })

  test('an aborted signal ends the iteration', async () => {
    const path = await write(JSON.stringify([{ conversations: [asks('Hi'), answers('a')] }]))
    const iterator = llava(path).samples({ signal: AbortSignal.abort() })[Symbol.asyncIterator]()
    await expect(iterator.next()).rejects.toMatchObject({ name: 'AbortError' })
  })
})
