import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { entry, type GgufParts, ggufBytes, number, type TensorEntry, text, typeNumber } from '../../../test/gguf-bytes.ts'
import { mutantCount, mutantOf, pickFrom } from '../../../test/mutants.ts'
import { skipWithout, testDataMissing } from '../../../test/skip.ts'
import { ModalignError } from '../../errors.ts'
import { type ByteSource, memorySource } from '../../io/byte-source.ts'
import { openGguf, readGguf } from './gguf.ts'
import { ggmlTypes, scalarBytes, valueTypes } from './types.ts'

const read = (parts: GgufParts) => readGguf(memorySource(ggufBytes(parts)))
const tensor = (name: string, sizes: readonly number[], rest: Partial<TensorEntry> = {}): TensorEntry => ({
  name,
  sizes: sizes.map(BigInt),
  type: 0,
  ...rest,
})
const scalars = valueTypes.flatMap((type) => (type === 'string' || type === 'array' ? [] : [type]))
/** Every type of value, alone and in an array. */
const everyEntry = [
  entry.string('a text', 'Größe \u{1F600}'),
  entry.strings('texts', ['', 'b', '\0']),
  ...scalars.flatMap((type) => {
    const one = new Array<number>(scalarBytes[type]).fill(1)
    return [
      { key: type, type: typeNumber(type), value: one },
      { key: `${type}s`, type: typeNumber('array'), value: [...number(typeNumber(type), 4), ...number(3, 8), ...one, ...one, ...one] },
    ]
  }),
]
const everyTensor = [...ggmlTypes].map(([type, { name, blockElements }]) => tensor(name, [2 * blockElements, 3], { type }))

/** The kinds of tests/test-gguf.cpp of llama.cpp. Its files have arrays of anything, and tensors of any type. */
const kinds: readonly (readonly [string, GgufParts, string | undefined])[] = [
  ['HEADER_BAD_MAGIC', { magic: 'FUGG' }, 'GGUF_BYTE_ORDER'],
  ['HEADER_BAD_VERSION_0', { version: 0 }, 'GGUF_VERSION'],
  ['HEADER_BAD_VERSION_1', { version: 1 }, 'GGUF_VERSION'],
  ['HEADER_BAD_VERSION_FUTURE', { version: 4 }, 'GGUF_VERSION'],
  ['HEADER_BAD_N_KV', { entryCount: -1n }, 'GGUF_COUNT'],
  ['HEADER_BAD_N_TENSORS', { tensorCount: -1n }, 'GGUF_COUNT'],
  ['HEADER_EMPTY', {}, undefined],
  ['KV_BAD_KEY_SIZE', { entries: [{ ...entry.uint32('k', 1), keyLength: -1n }] }, 'GGUF_STRING'],
  ['KV_EMPTY_KEY', { entries: [entry.uint32('', 1), entry.uint32('b', 1)] }, 'GGUF_KEY'],
  ['KV_BAD_TYPE', { entries: [{ ...entry.uint32('k', 1), type: 13 }] }, 'GGUF_VALUE_TYPE'],
  ['KV_DUPLICATE_KEY', { entries: [entry.uint32('k', 1), entry.uint32('k', 1)] }, 'GGUF_DUPLICATE_KEY'],
  ['KV_BAD_ALIGN', { entries: [entry.uint32('general.alignment', 13)] }, 'GGUF_ALIGNMENT'],
  ['KV_WRONG_TYPE_ALIGN', { entries: [entry.int32('general.alignment', 32)] }, 'GGUF_ALIGNMENT'],
  ['KV_SUCCESS', { entries: everyEntry }, undefined],
  ['TENSORS_BAD_NAME_SIZE', { tensors: [tensor('t'.repeat(64), [4])] }, 'GGUF_TENSOR_NAME'],
  ['TENSORS_BAD_N_DIMS', { tensors: [tensor('t', [4], { rank: 5 })] }, 'GGUF_RANK'],
  ['TENSORS_BAD_SHAPE', { tensors: [tensor('t', [-1])] }, 'GGUF_SHAPE'],
  ['TENSORS_ZERO_DIM', { tensors: [tensor('t', [4, 0]), tensor('u', [4])] }, undefined],
  ['TENSORS_NE_TOO_BIG', { tensors: [tensor('t', [4 * (2 ** 31 - 1), 4 * (2 ** 31 - 1)])], dataBytes: 64 }, 'GGUF_SHAPE'],
  ['TENSORS_NBYTES_TOO_BIG', { tensors: [tensor('t', [1_533_916_891, 1_533_916_891], { type: 27 })], dataBytes: 64 }, 'GGUF_SIZE'],
  ['TENSORS_BAD_TYPE', { tensors: [tensor('t', [4], { type: 42 })] }, 'GGUF_TENSOR_TYPE'],
  ['TENSORS_BAD_OFFSET', { tensors: [tensor('t', [4], { offset: -1n })] }, 'GGUF_OFFSET'],
  ['TENSORS_DUPLICATE_NAME', { tensors: [tensor('t', [4]), tensor('t', [4])] }, 'GGUF_DUPLICATE_TENSOR'],
  ['TENSORS_BAD_ALIGN', { entries: [entry.uint32('general.alignment', 13)], tensors: [tensor('t', [4])], alignment: 13 }, 'GGUF_ALIGNMENT'],
  ['TENSORS_INCONSISTENT_ALIGN', { tensors: [tensor('t', [4]), tensor('u', [4])], alignment: 1, dataBytes: 128 }, 'GGUF_OFFSET'],
  ['TENSORS_SUCCESS', { tensors: everyTensor }, undefined],
  ['TENSORS_CUSTOM_ALIGN', { entries: [entry.uint32('general.alignment', 1)], tensors: everyTensor, alignment: 1 }, undefined],
  ['DATA_NOT_ENOUGH_DATA', { tensors: [tensor('t', [4]), tensor('u', [8])], dataBytes: 63 }, 'GGUF_TRUNCATED'],
  ['DATA_BAD_ALIGN', { entries: [entry.uint32('general.alignment', 13)], tensors: everyTensor, alignment: 13 }, 'GGUF_ALIGNMENT'],
  ['DATA_INCONSISTENT_ALIGN', { tensors: everyTensor, alignment: 1 }, 'GGUF_OFFSET'],
  [
    'DATA_MEM_SIZE_OVERFLOW',
    { tensors: [0, 1].map((n) => ({ name: `t${n}`, sizes: [0x7fff_ffff_ffff_ffc0n], type: 24 })), dataBytes: 32 },
    'GGUF_SIZE',
  ],
  ['DATA_SUCCESS', { entries: everyEntry, tensors: everyTensor }, undefined],
  ['DATA_CUSTOM_ALIGN', { entries: [entry.uint32('general.alignment', 64)], tensors: everyTensor, alignment: 64 }, undefined],
]

describe("the kinds of files of llama.cpp's own test", () => {
  test('there are 33', () => {
    expect(kinds).toHaveLength(33)
  })

  test.each(kinds)('%s', async (_, parts, code) => {
    const opened = read(parts)
    if (code === undefined) await expect(opened).resolves.toMatchObject({ version: 3 })
    else await expect(opened).rejects.toMatchObject({ name: 'ModalignError', code })
  })
})

describe('further rules', () => {
  test.each<readonly [string, GgufParts, string]>([
    ['no GGUF at all', { magic: 'ONNX' }, 'GGUF_MAGIC'],
    ['a Git LFS pointer', { magic: 'vers' }, 'WEIGHTS_LFS_POINTER'],
    ['the other byte order', { version: 0x0300_0000 }, 'GGUF_BYTE_ORDER'],
    ['an alignment of 0', { entries: [entry.uint32('general.alignment', 0)] }, 'GGUF_ALIGNMENT'],
    ['more entries than bytes', { entryCount: 3n, entries: [entry.uint32('k', 1)] }, 'GGUF_COUNT'],
    ['an array of arrays', { entries: [{ key: 'k', type: 9, value: [...number(9, 4), ...number(0, 8)] }] }, 'GGUF_ARRAY'],
    [
      'an array of 2^63 texts in a file of 43 bytes',
      { entries: [{ key: 'kkk', type: 9, value: [...number(8, 4), ...number(2n ** 63n, 8)] }] },
      'GGUF_ARRAY',
    ],
    ['an array that ends the file', { entries: [{ key: 'k', type: 9, value: [...number(4, 4), ...number(9, 8)] }] }, 'GGUF_ARRAY'],
    ['a text beyond the file', { entries: [{ key: 'k', type: 8, value: text('ab', 3n) }] }, 'GGUF_STRING'],
    ['a text that is no UTF-8', { entries: [{ key: 'k', type: 8, value: [...number(2, 8), 0xc0, 0xae] }] }, 'GGUF_UTF8'],
    ['a bool that is 2', { entries: [{ key: 'k', type: 7, value: [2] }] }, 'GGUF_BOOL'],
    ['a value cut off', { entries: [{ key: 'k', type: 10, value: [1, 2, 3] }] }, 'GGUF_TRUNCATED'],
    ['rows that are no whole blocks', { tensors: [tensor('t', [33], { type: 2 })] }, 'GGUF_BLOCK'],
    ['a type that was removed', { tensors: [tensor('t', [32], { type: 4 })] }, 'GGUF_TENSOR_TYPE'],
    ['a hole between tensors', { tensors: [tensor('t', [4]), tensor('u', [4], { offset: 64n })], dataBytes: 128 }, 'GGUF_OFFSET'],
    ['one tensor over another', { tensors: [tensor('t', [4]), tensor('u', [4], { offset: 0n })] }, 'GGUF_OFFSET'],
  ])('%s', async (_, parts, code) => {
    await expect(read(parts)).rejects.toMatchObject({ name: 'ModalignError', code })
  })

  test('a key that is no UTF-8', async () => {
    const bytes = ggufBytes({ entries: [entry.uint32('k', 1)] })
    bytes[bytes.indexOf(0x6b)] = 0xff
    await expect(readGguf(memorySource(bytes))).rejects.toMatchObject({ code: 'GGUF_UTF8', details: { field: 'metadata entry 0' } })
  })

  test('a file that ends anywhere is a typed error', async () => {
    const bytes = ggufBytes({ entries: everyEntry, tensors: everyTensor.slice(0, 4) })
    for (let end = 0; end < bytes.length; end++) {
      const error: unknown = await readGguf(memorySource(bytes.slice(0, end))).catch((failure: unknown) => failure)
      expect(error).toBeInstanceOf(ModalignError)
    }
  })

  test('keys like properties of objects are keys', async () => {
    const { metadata } = await read({ entries: [entry.uint32('__proto__', 1), entry.uint32('constructor', 2)] })
    expect([...metadata.keys()]).toEqual(['__proto__', 'constructor'])
    expect(metadata.get('constructor')).toEqual({ type: 'uint32', value: 2 })
  })
})

test('values, shapes and places are those that were written', async () => {
  const { metadata, tensors, dataStart, source } = await read({
    version: 2,
    entries: [
      entry.string('name', 'ein Modell'),
      entry.float32('epsilon', 1e-5),
      entry.bool('yes', true),
      entry.uint64('big', 2n ** 64n - 1n),
      entry.strings('tokens', ['Ġa', 'b']),
      entry.int32s('types', [1, -3]),
      entry.float32s('scores', [-0.5, 2]),
    ],
    tensors: [tensor('first', [3, 2]), tensor('second', [64], { type: 2 })],
  })
  expect(Object.fromEntries(metadata)).toEqual({
    name: { type: 'string', value: 'ein Modell' },
    epsilon: { type: 'float32', value: Math.fround(1e-5) },
    yes: { type: 'bool', value: true },
    big: { type: 'uint64', value: 2n ** 64n - 1n },
    tokens: { type: 'array', value: { type: 'string', values: ['Ġa', 'b'] } },
    types: { type: 'array', value: { type: 'int32', values: Int32Array.of(1, -3) } },
    scores: { type: 'array', value: { type: 'float32', values: Float32Array.of(-0.5, 2) } },
  })
  expect(tensors.get('first')).toMatchObject({ shape: [2, 3], offset: dataStart, byteLength: 24 })
  expect(tensors.get('second')).toMatchObject({ shape: [64], offset: dataStart + 32, byteLength: 36 })
  // Data count upwards from 0.
  expect(await source.read(dataStart + 32, 2)).toEqual(Uint8Array.of(32, 33))
})

test('whatever the pieces in which a file is read, the result is the same', async () => {
  // Texts of 10 bytes lie across the ends of the pieces, of 1 MiB.
  const words = Array.from({ length: 120_000 }, (_, index) => `word ${index}`)
  const bytes = ggufBytes({
    entries: [...everyEntry, entry.strings('words', words), entry.string('long', 'x'.repeat(2 ** 20))],
    tensors: everyTensor,
  })
  const folder = await mkdtemp(join(tmpdir(), 'modalign-gguf-'))
  try {
    await writeFile(join(folder, 'a.gguf'), bytes)
    const [opened, inMemory] = [await openGguf(join(folder, 'a.gguf')), await readGguf(memorySource(bytes))]
    expect(opened.tensors).toEqual(inMemory.tensors)
    expect(opened.metadata).toEqual(inMemory.metadata)
    expect(opened.metadata.get('words')).toEqual({ type: 'array', value: { type: 'string', values: words } })
  } finally {
    await rm(folder, { recursive: true })
  }
})

describe('hostile files', () => {
  const seeds = [
    ggufBytes({ entries: everyEntry.slice(0, 12), tensors: everyTensor.slice(0, 3) }),
    ggufBytes({ entries: everyEntry.slice(12), tensors: everyTensor.slice(3, 5) }),
    ggufBytes({ entries: [entry.uint32('general.alignment', 8)], tensors: [tensor('t', [3, 2]), tensor('u', [4])], alignment: 8 }),
    ggufBytes({ version: 2, entries: [entry.string('general.architecture', 'llama'), entry.strings('tokens', ['a', 'b', 'ab'])] }),
  ]

  test(`${mutantCount} mutants: a typed error, or tensors that cover the data`, async () => {
    const pick = pickFrom(20_261)
    const prototypeKeys = Object.getOwnPropertyNames(Object.prototype).join()
    let accepted = 0
    for (let index = 0; index < mutantCount; index++) {
      const bytes = mutantOf(seeds, pick)
      const { source, requested } = counted(bytes)
      const started = performance.now()
      try {
        const file = await readGguf(source)
        accepted++
        let end = file.dataStart
        for (const { offset, byteLength } of file.tensors.values()) {
          expect(offset).toBe(end)
          end = offset + Math.ceil(byteLength / file.alignment) * file.alignment
        }
        expect(end).toBeLessThanOrEqual(Math.max(bytes.length, file.dataStart))
      } catch (error) {
        if (!(error instanceof ModalignError))
          throw new Error(`mutant ${index}: ${Buffer.from(bytes).toString('base64')}`, { cause: error })
        expect(error.code).toMatch(/^(GGUF|WEIGHTS)_/)
      }
      // Small files are one piece, read once: the parser's own memory is what it was asked to keep of it.
      expect(requested()).toBeLessThanOrEqual(bytes.length)
      expect(performance.now() - started).toBeLessThan(1000)
    }
    expect(Object.getOwnPropertyNames(Object.prototype).join()).toBe(prototypeKeys)
    expect(accepted).toBeGreaterThan(mutantCount / 100)
    expect(accepted).toBeLessThan(mutantCount / 2)
  })

  test('a length that lies makes nothing of that length', async () => {
    const lies = fc.record({ type: fc.nat(12), length: fc.bigInt(0n, 2n ** 64n - 1n), rest: fc.uint8Array({ maxLength: 40 }) })
    await fc.assert(
      fc.asyncProperty(lies, async ({ type, length, rest }) => {
        const { source, requested } = counted(
          ggufBytes({ entries: [{ key: 'k', type: 9, value: [...number(type, 4), ...number(length, 8), ...rest] }] }),
        )
        const before = process.memoryUsage().arrayBuffers
        await readGguf(source).catch((error: unknown) => expect(error).toBeInstanceOf(ModalignError))
        expect(requested()).toBeLessThanOrEqual(source.size)
        expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(16 * 2 ** 20)
      }),
      { numRuns: 300 },
    )
  })
})

function counted(bytes: Uint8Array): { readonly source: ByteSource; readonly requested: () => number } {
  const memory = memorySource(bytes)
  let total = 0
  const source = {
    size: memory.size,
    read: (offset: number, length: number) => {
      total += length
      return memory.read(offset, length)
    },
  }
  return { source, requested: () => total }
}

const data = process.env.MODALIGN_TEST_DATA
skipWithout(data === undefined ? testDataMissing : undefined).test('a real file: SmolLM2-135M-Instruct as Q4_1', async () => {
  const file = await openGguf(join(data ?? '', 'smollm2_135m_instruct/SmolLM2-135M-Instruct.Q4_1.gguf'))
  expect(file.tensors.size).toBe(272)
  expect(file.tensors.get('token_embd.weight')).toMatchObject({ shape: [49_152, 576], type: { name: 'Q8_0' } })
  expect(file.metadata.get('llama.block_count')).toEqual({ type: 'uint32', value: 30 })
})
