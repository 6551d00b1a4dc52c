import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import { failNth } from '../io/fs-faults.ts'
import { memorySource } from '../io/memory-source.ts'
import { bytesPerElement, type DataType, elementCount, type TensorValue } from '../tensors.ts'
import {
  openSafetensors,
  readSafetensors,
  type SafetensorsFile,
  safetensorsBytes,
  type TensorToWrite,
  writeSafetensors,
} from './safetensors.ts'
import { safetensorsDtypes } from './safetensors-header.ts'
import { tensorFromBytes } from './safetensors-source.ts'

const fixtures = join(dirname(fileURLToPath(import.meta.url)), '../../test/fixtures/safetensors')
const base64 = z.string().transform((text) => new Uint8Array(Buffer.from(text, 'base64')))
const dtype = z.enum(Object.keys(bytesPerElement) as [DataType, ...DataType[]])

const corpus = z
  .object({
    cases: z.array(
      z.object({
        name: z.string(),
        bytes: base64,
        accept: z.boolean(),
        tensors: z.array(z.object({ name: z.string(), dtype: z.string(), shape: z.array(z.number()), data: base64 })).default([]),
      }),
    ),
  })
  .parse(JSON.parse(await readFile(join(fixtures, 'corpus.json'), 'utf8'))).cases

/** Files that the reference reader takes and we refuse, and why. Everything else must agree. */
const stricter: ReadonlyMap<string, string> = new Map([
  ['leading space', 'SAFETENSORS_START'], // the format says: the header MUST begin with {
  ['leading newline', 'SAFETENSORS_START'],
  ['dtype F8_E4M3', 'SAFETENSORS_DTYPE'], // no TensorValue can hold these
  ['dtype F8_E5M2', 'SAFETENSORS_DTYPE'],
  ['dtype C64', 'SAFETENSORS_DTYPE'],
  ['dtype F4', 'SAFETENSORS_DTYPE'],
  ['shape: zero and 2^53+1', 'SAFETENSORS_SHAPE'], // not exact in a JavaScript number
  ['shape: 65 ones', 'SAFETENSORS_SHAPE'], // our limit
  ['name of 5000', 'SAFETENSORS_LIMIT'], // our limit
  ['the same name twice', 'SAFETENSORS_DUPLICATE'], // the format says: duplicate keys are disallowed
  ['the same name twice, escaped', 'SAFETENSORS_DUPLICATE'],
  ['another key twice', 'SAFETENSORS_DUPLICATE'],
  ['metadata key twice', 'SAFETENSORS_DUPLICATE'],
  ['entry array', 'SAFETENSORS_ENTRY'], // the format says: an object
  ['metadata null', 'SAFETENSORS_METADATA'],
])

const codes: Readonly<Record<string, string>> = {
  'empty file': 'SAFETENSORS_TOO_SHORT',
  '7 bytes': 'SAFETENSORS_TOO_SHORT',
  'header of 2^64-1': 'SAFETENSORS_HEADER_LENGTH',
  'header of 2^53+1': 'SAFETENSORS_HEADER_LENGTH',
  'header of 2^32+2': 'SAFETENSORS_HEADER_LENGTH',
  'header of 100000001': 'SAFETENSORS_HEADER_LENGTH',
  'header length 0': 'SAFETENSORS_START',
  'byte order mark': 'SAFETENSORS_START',
  'array at the top': 'SAFETENSORS_START',
  'not UTF-8 in a name': 'SAFETENSORS_UTF8',
  'trailing NUL': 'SAFETENSORS_JSON',
  'lone surrogate': 'SAFETENSORS_JSON',
  'deep array': 'SAFETENSORS_ENTRY',
  'offsets: -0': 'SAFETENSORS_OFFSETS_TYPE',
  'offsets: float': 'SAFETENSORS_OFFSETS_TYPE',
  'offsets: exponent': 'SAFETENSORS_OFFSETS_TYPE',
  'offsets: 2^53+1': 'SAFETENSORS_OFFSETS_TYPE',
  'offsets: three': 'SAFETENSORS_OFFSETS_TYPE',
  'offsets: reversed': 'SAFETENSORS_OFFSETS',
  'shape: -1': 'SAFETENSORS_SHAPE',
  'shape: too large': 'SAFETENSORS_SIZE',
  'shape: overflow to 4': 'SAFETENSORS_SIZE',
  'hole at the beginning': 'SAFETENSORS_OFFSETS',
  'hole between': 'SAFETENSORS_OFFSETS',
  overlap: 'SAFETENSORS_OFFSETS',
  'trailing bytes': 'SAFETENSORS_LENGTH',
  'data cut off': 'SAFETENSORS_LENGTH',
  'metadata number': 'SAFETENSORS_METADATA',
  'metadata nested': 'SAFETENSORS_METADATA',
  'dtype FOO': 'SAFETENSORS_DTYPE',
  'Git LFS pointer': 'WEIGHTS_LFS_POINTER',
  'zip, as torch.save writes': 'WEIGHTS_PICKLE',
  GGUF: 'WEIGHTS_GGUF',
}

const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  )
const bytesOf = ({ data }: TensorValue) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength)

async function contents(file: SafetensorsFile): Promise<Map<string, TensorValue>> {
  const all = new Map<string, TensorValue>()
  for (const name of file.tensors.keys()) all.set(name, await file.read(name))
  return all
}

describe('against the reference reader', () => {
  test('the fixture has what it should', () => {
    const names = new Set(corpus.map(({ name }) => name))
    expect(names.size).toBe(corpus.length)
    for (const name of [...stricter.keys(), ...Object.keys(codes)]) expect(names).toContain(name)
    for (const { name, accept } of corpus) if (stricter.has(name)) expect(accept, name).toBe(true)
  })

  test.each(corpus)('$name', async ({ name, bytes, accept, tensors }) => {
    const opened = readSafetensors(memorySource(bytes), 'a.safetensors')
    if (!accept || stricter.has(name)) {
      const error = await failure(opened)
      expect(error).toBeInstanceOf(ModalignError)
      expect(error).toMatchObject({ details: { file: 'a.safetensors' } })
      const code = stricter.get(name) ?? codes[name]
      if (code !== undefined) expect(error).toMatchObject({ code })
      return
    }
    const file = await opened
    expect([...file.tensors.keys()].sort()).toEqual(tensors.map((tensor) => tensor.name).sort())
    for (const expected of tensors) {
      const value = await file.read(expected.name)
      expect(value.dtype).toBe(safetensorsDtypes.get(expected.dtype))
      expect(value.dims).toEqual(expected.shape)
      expect(bytesOf(value)).toEqual(expected.data)
      expect(file.tensors.get(expected.name)?.byteLength).toBe(expected.data.length)
    }
  })

  test('metadata is a map of strings, whatever the names', async () => {
    const open = async (name: string) => {
      const found = corpus.find((entry) => entry.name === name)
      if (found === undefined) throw new Error(name)
      return [...(await readSafetensors(memorySource(found.bytes))).metadata]
    }
    expect(await open('metadata')).toEqual([
      ['format', 'pt'],
      ['a\n', 'é'],
    ])
    expect(await open('metadata __proto__')).toEqual([['__proto__', '1']])
  })

  test('errors name the tensor, what was found and what is supported', async () => {
    const at = (name: string) =>
      failure(readSafetensors(memorySource(corpus.find((entry) => entry.name === name)?.bytes ?? new Uint8Array())))
    expect(await at('dtype F8_E4M3')).toMatchObject({
      details: { field: '/a/dtype', got: 'F8_E4M3', expected: expect.stringContaining('F64, F32') },
    })
    expect(await at('overlap')).toMatchObject({
      details: { field: '/b/data_offsets/0', got: 'an overlap: begins at 4', expected: '8, the end of "a"' },
    })
    expect(await at('hole between')).toMatchObject({ details: { field: '/b/data_offsets/0', got: 'a hole: begins at 5' } })
    expect(await at('shape: too large')).toMatchObject({ details: { got: '4 bytes', expected: '8: F32 of shape [2]' } })
    expect(await at('data cut off')).toMatchObject({ details: { hint: expect.stringContaining('download it again') } })
  })
})

const { files: written } = z
  .object({
    files: z.array(
      z.object({
        name: z.string(),
        bytes: base64,
        metadata: z.record(z.string(), z.string()).nullable(),
        tensors: z.array(z.object({ name: z.string(), dtype, dims: z.array(z.number()), data: base64 })),
      }),
    ),
  })
  .parse(JSON.parse(await readFile(join(fixtures, 'written.json'), 'utf8')))

describe('against the reference writer', () => {
  test.each(written)('$name: the same bytes, whatever the order of the tensors', async ({ bytes, metadata, tensors }) => {
    const toWrite = tensors.map(({ name, data, dims, dtype }) => ({ name, value: tensorFromBytes(data, { dtype, shape: dims }, { name }) }))
    expect(Buffer.from(await safetensorsBytes(toWrite, metadata ?? undefined)).toString('latin1')).toBe(
      Buffer.from(bytes).toString('latin1'),
    )
    expect(await safetensorsBytes(toWrite.toReversed(), metadata ?? undefined)).toEqual(bytes)
  })
})

describe('limits', () => {
  const header = (text: string) => {
    const json = new TextEncoder().encode(text)
    const bytes = new Uint8Array(8 + json.length)
    new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true)
    bytes.set(json, 8)
    return bytes
  }

  test('more than 100,000 tensors are refused early', async () => {
    const entries = Array.from({ length: 300_000 }, (_, i) => `"t${i}":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}`)
    const started = performance.now()
    expect(await failure(readSafetensors(memorySource(header(`{${entries.join(',')}}`))))).toMatchObject({ code: 'SAFETENSORS_LIMIT' })
    expect(performance.now() - started).toBeLessThan(5000)
    const file = await readSafetensors(memorySource(header(`{${entries.slice(0, 100_000).join(',')}}`)))
    expect(file.tensors.size).toBe(100_000)
  })

  test('a name of a megabyte, metadata without end, nesting without end', async () => {
    expect(await failure(readSafetensors(memorySource(header(`{"${'n'.repeat(1e6)}":1}`))))).toMatchObject({ code: 'SAFETENSORS_LIMIT' })
    const metadata = Array.from({ length: 100_001 }, (_, i) => `"${i}":""`).join(',')
    expect(await failure(readSafetensors(memorySource(header(`{"__metadata__":{${metadata}}}`))))).toMatchObject({
      code: 'SAFETENSORS_LIMIT',
    })
    for (const deep of [`${'['.repeat(1e5)}${']'.repeat(1e5)}`, `${'{"a":'.repeat(1e5)}1${'}'.repeat(1e5)}`]) {
      expect(await failure(readSafetensors(memorySource(header(`{"a":{"x":${deep}}}`))))).toMatchObject({ code: 'SAFETENSORS_LIMIT' })
    }
  })

  test('a lying length allocates nothing', async () => {
    let read = 0
    const source = {
      size: 10 ** 12,
      read: async (_: number, length: number) => {
        read += length
        return new Uint8Array(length).fill(0xff)
      },
    }
    expect(await failure(readSafetensors(source))).toMatchObject({ code: 'SAFETENSORS_HEADER_LENGTH' })
    expect(read).toBeLessThan(100)
  })

  test('data past 2 GiB has the right offset', async () => {
    const size = 3 * 2 ** 30
    const json = `{"big":{"dtype":"U8","shape":[${size}],"data_offsets":[0,${size}]},"last":{"dtype":"U8","shape":[1],"data_offsets":[${size},${size + 1}]}}`
    const start = header(json)
    const file = await readSafetensors({
      size: start.length + size + 1,
      read: async (offset, length) =>
        offset < start.length ? start.slice(offset, offset + length) : new Uint8Array(length).fill(offset % 251),
    })
    expect(file.tensors.get('last')).toMatchObject({ offset: start.length + size, byteLength: 1 })
    expect((await file.read('last')).data[0]).toBe((start.length + size) % 251)
  })
})

describe('files', () => {
  let folder: string
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'modalign-safetensors-'))
  })
  afterEach(() => rm(folder, { recursive: true }))
  const two = (): TensorToWrite[] => [
    { name: 'b', value: { dtype: 'int8', dims: [3], data: new Int8Array([1, -2, 3]) } },
    { name: 'a', value: { dtype: 'float32', dims: [2, 1], data: new Float32Array([0.5, Number.NaN]) } },
  ]

  test('written, opened, read; absolute path and offsets are there for others', async () => {
    const path = join(folder, 'a.safetensors')
    await writeSafetensors(path, two(), { format: 'pt' })
    const file = await openSafetensors(path)
    expect(file.file).toBe(path)
    expect([...file.metadata]).toEqual([['format', 'pt']])
    expect([...file.tensors.keys()]).toEqual(['a', 'b'])
    expect(await file.read('a')).toEqual({ dtype: 'float32', dims: [2, 1], data: new Float32Array([0.5, Number.NaN]) })
    const { offset, byteLength } = file.tensors.get('b') ?? { offset: 0, byteLength: 0 }
    expect([...(await readFile(path)).subarray(offset, offset + byteLength)]).toEqual([1, 254, 3])
    expect(await failure(file.read('c'))).toMatchObject({ code: 'TENSOR_MISSING', details: { file: path, expected: 'one of a, b' } })
    await truncate(path, file.size - 1)
    expect(await failure(file.read('a'))).toMatchObject({ code: 'FILE_CHANGED' })
    expect(await failure(openSafetensors(path))).toMatchObject({ code: 'SAFETENSORS_LENGTH' })
    expect(await failure(openSafetensors(join(folder, 'no')))).toMatchObject({ code: 'FILE_MISSING' })
  })

  test('tensors can be loaded when their turn comes, and must be what was declared', async () => {
    const path = join(folder, 'a.safetensors')
    const lazy = (dims: readonly number[]): TensorToWrite => ({
      name: 'x',
      dtype: 'uint8',
      dims: [2],
      load: async () => ({ dtype: 'uint8', dims, data: new Uint8Array([7, 8]) }),
    })
    await writeSafetensors(path, [lazy([2])])
    const before = await readFile(path)
    expect((await (await openSafetensors(path)).read('x')).data).toEqual(new Uint8Array([7, 8]))
    expect(await failure(writeSafetensors(path, [lazy([1, 2])]))).toMatchObject({ code: 'SAFETENSORS_SHAPE' })
    expect(await readFile(path)).toEqual(before)
    expect(await readdir(folder)).toEqual(['a.safetensors'])
  })

  test('a failing disk leaves the old file, at every operation', async () => {
    const path = join(folder, 'a.safetensors')
    await writeSafetensors(path, [])
    const old = await readFile(path)
    for (let n = 1; ; n++) {
      const fs = failNth(n, 'ENOSPC')
      const error = await failure(writeSafetensors(path, two(), undefined, { fs }))
      if (!fs.hit) break
      expect(error).toMatchObject({ code: 'DISK_FULL' })
      const now = await readFile(path)
      if (!now.equals(old)) expect((await openSafetensors(path)).tensors.size).toBe(2)
      expect(await readdir(folder)).toEqual(['a.safetensors'])
      await writeFile(path, old)
    }
  })

  test.each([
    [[{ name: 'a', value: { dtype: 'bool', dims: [2], data: new Uint8Array(3) } }], 'SAFETENSORS_SHAPE'],
    [[{ name: 'a', value: { dtype: 'bool', dims: [1.5, 2], data: new Uint8Array(3) } }], 'SAFETENSORS_SHAPE'],
    [[two()[0], two()[0]].filter((tensor) => tensor !== undefined), 'SAFETENSORS_DUPLICATE'],
    [[{ name: '__metadata__', value: { dtype: 'bool', dims: [0], data: new Uint8Array(0) } }], 'SAFETENSORS_LIMIT'],
    [[{ name: '\ud800', value: { dtype: 'bool', dims: [0], data: new Uint8Array(0) } }], 'SAFETENSORS_LIMIT'],
  ] satisfies [TensorToWrite[], string][])('what no file can hold is refused (%#)', async (tensors, code) => {
    expect(await failure(safetensorsBytes(tensors))).toMatchObject({ code })
  })

  test('a boolean that is neither 0 nor 1', async () => {
    const bytes = await safetensorsBytes([{ name: 'a', value: { dtype: 'bool', dims: [2], data: new Uint8Array([1, 2]) } }])
    expect(await failure((await readSafetensors(memorySource(bytes))).read('a'))).toMatchObject({ code: 'SAFETENSORS_BOOL' })
  })
})

const tensorNames = fc
  .oneof(fc.string({ unit: 'binary', maxLength: 20 }), fc.constantFrom('__proto__', 'constructor', '', 'a.b.c'))
  .filter((name) => name !== '__metadata__')
const tensorValues = fc
  .tuple(fc.constantFrom(...safetensorsDtypes.values()), fc.array(fc.nat(4), { maxLength: 4 }))
  .chain(([type, dims]) => {
    const length = elementCount(dims) * bytesPerElement[type]
    const bytes = fc.uint8Array({ minLength: length, maxLength: length, max: type === 'bool' ? 1 : 255 })
    return bytes.map((data) => tensorFromBytes(data, { dtype: type, shape: dims }, { name: '' }))
  })
const tensorFiles = fc.uniqueArray(fc.tuple(tensorNames, tensorValues), { selector: ([name]) => name, maxLength: 8 })

test('round trip: every value comes back, bit for bit', async () => {
  await fc.assert(
    fc.asyncProperty(
      tensorFiles,
      fc.dictionary(fc.string({ unit: 'binary' }), fc.string({ unit: 'binary' })),
      async (tensors, metadata) => {
        const bytes = await safetensorsBytes(
          tensors.map(([name, value]) => ({ name, value })),
          metadata,
        )
        const file = await readSafetensors(memorySource(bytes))
        const read = await contents(file)
        expect(read.size).toBe(tensors.length)
        for (const [name, value] of tensors) {
          const back = read.get(name)
          expect(back?.dtype).toBe(value.dtype)
          expect(back?.dims).toEqual(value.dims)
          expect(back === undefined ? undefined : bytesOf(back)).toEqual(bytesOf(value))
          expect((file.tensors.get(name)?.offset ?? 1) % bytesPerElement[value.dtype]).toBe(0)
        }
        expect(new Map(Object.entries(metadata))).toEqual(file.metadata)
      },
    ),
    { numRuns: 200 },
  )
})

const mutantCount = process.env.MODALIGN_LONG === '1' ? 100_000 : 2000

test(`${mutantCount} mutants: a typed error, or tensors within the file that cover it`, async () => {
  const seeds = corpus.filter(({ bytes, accept }) => accept && bytes.length < 1200).map(({ bytes }) => bytes)
  const random = mulberry32(20_260)
  const prototypeKeys = Object.getOwnPropertyNames(Object.prototype).join()
  let accepted = 0
  for (let i = 0; i < mutantCount; i++) {
    const bytes = mutant(seeds, random)
    let requested = 0
    const memory = memorySource(bytes)
    const source = {
      size: memory.size,
      read: (offset: number, length: number) => {
        requested += length
        return memory.read(offset, length)
      },
    }
    const started = performance.now()
    try {
      const file = await readSafetensors(source)
      expect(requested).toBeLessThanOrEqual(bytes.length + 48)
      accepted++
      let covered = 8 + file.header.length
      for (const { offset, byteLength } of file.tensors.values()) {
        expect(offset).toBe(covered)
        covered += byteLength
      }
      expect(covered).toBe(bytes.length)
      const read = await contents(file).catch((error: unknown) => {
        expect(error).toMatchObject({ code: 'SAFETENSORS_BOOL' })
        return undefined
      })
      if (read !== undefined) {
        const again = await safetensorsBytes([...read].map(([name, value]) => ({ name, value })))
        expect([...(await readSafetensors(memorySource(again))).tensors.keys()].sort()).toEqual([...file.tensors.keys()].sort())
      }
    } catch (error) {
      if (!(error instanceof ModalignError)) throw new Error(`mutant ${i}: ${Buffer.from(bytes).toString('base64')}`, { cause: error })
      expect(error.code).toMatch(/^(SAFETENSORS|WEIGHTS)_/)
      expect(requested).toBeLessThanOrEqual(bytes.length + 48)
    }
    expect(performance.now() - started).toBeLessThan(1000)
  }
  expect(Object.getOwnPropertyNames(Object.prototype).join()).toBe(prototypeKeys)
  expect(accepted).toBeGreaterThan(mutantCount / 100)
  expect(accepted).toBeLessThan(mutantCount / 2)
})

/** One to three small damages to the header, the data or both; the length usually fits the damaged header, so that the damage reaches the code behind the first check. */
function mutant(seeds: readonly Uint8Array[], random: () => number): Uint8Array {
  const pick = (n: number) => Math.floor(random() * n)
  const seed = seeds[pick(seeds.length)] ?? new Uint8Array(8)
  const headerEnd = Math.min(seed.length, 8 + Number(new DataView(seed.buffer, seed.byteOffset).getBigUint64(0, true)))
  const header = [...seed.subarray(8, headerEnd)]
  const data = [...seed.subarray(headerEnd)]
  for (let rounds = 1 + pick(3); rounds > 0; rounds--) damage(pick(5) === 0 ? data : header, seeds[pick(seeds.length)] ?? seed, pick)
  const result = Uint8Array.from([...new Uint8Array(8), ...header, ...data])
  const lengths = [
    0n,
    1n,
    127n,
    255n,
    2n ** 31n - 1n,
    2n ** 32n - 1n,
    2n ** 32n,
    2n ** 53n,
    2n ** 63n,
    2n ** 64n - 1n,
    BigInt(result.length),
    BigInt(result.length - 8),
  ]
  new DataView(result.buffer).setBigUint64(0, pick(10) === 0 ? (lengths[pick(lengths.length)] ?? 0n) : BigInt(header.length), true)
  return pick(50) === 0 ? result.subarray(0, pick(result.length)) : result
}

function damage(bytes: number[], other: Uint8Array, pick: (n: number) => number): void {
  const at = pick(bytes.length + 1)
  const span = 1 + pick(12)
  switch (pick(7)) {
    case 0:
      bytes.splice(at, 1, pick(256))
      break
    case 1:
      bytes.splice(at, 1, (bytes[at] ?? 0) ^ (1 << pick(8)))
      break
    case 2:
      bytes.splice(at, 0, ...Array.from({ length: span }, () => pick(256)))
      break
    case 3:
      bytes.splice(at, span)
      break
    case 4:
      bytes.splice(at, 0, ...bytes.slice(at, at + span * 4))
      break
    case 5:
      bytes.splice(at, span, ...other.subarray(8 + pick(other.length), 8 + pick(other.length)))
      break
    default: {
      const tokens = [
        '{',
        '}',
        '[',
        ']',
        '"',
        ',',
        ':',
        '0',
        '-1',
        '9007199254740993',
        '1e400',
        '\\u0000',
        '\\',
        'null',
        ' ',
        '"shape"',
        '"__metadata__"',
      ]
      bytes.splice(at, span % 3, ...Buffer.from(tokens[pick(tokens.length)] ?? ''))
    }
  }
}

function mulberry32(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}
