import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { errorData } from '../errors.ts'
import { memorySource } from '../io/memory-source.ts'
import { checkContainer, identifyContainer } from './containers.ts'

const box = (type: string, ...content: readonly Uint8Array[]): Buffer => {
  const body = Buffer.concat(content)
  const head = Buffer.alloc(8)
  head.writeUInt32BE(body.length + 8)
  head.write(type, 4, 'latin1')
  return Buffer.concat([head, body])
}
const entry = (name: string): Buffer => box('stsd', Buffer.from([0, 0, 0, 0, 0, 0, 0, 1]), box(name, Buffer.alloc(78)))
const ftyp = box('ftyp', Buffer.from('isom\0\0\x02\0isomiso2', 'latin1'))
const film = (name = 'avc1'): Buffer => Buffer.concat([ftyp, box('moov', box('trak', entry(name))), box('mdat', Buffer.alloc(100))])

const outcome = async (bytes: Uint8Array, truncated: 'refuse' | 'accept' = 'refuse') => {
  const source = memorySource(bytes)
  try {
    const format = await identifyContainer(source, 'VIDEO')
    await checkContainer(source, format, 'VIDEO', truncated)
    return { code: 'WHOLE', got: format }
  } catch (error) {
    return errorData(error)
  }
}

describe('ISO base media files', () => {
  test('whole, cut and encrypted ones', async () => {
    expect(await outcome(film())).toEqual({ code: 'WHOLE', got: 'mov' })
    expect(await outcome(film().subarray(0, -1))).toMatchObject({ code: 'VIDEO_TRUNCATED', got: expect.stringContaining('"mdat"') })
    expect(await outcome(film().subarray(0, -1), 'accept')).toEqual({ code: 'WHOLE', got: 'mov' })
    expect(await outcome(Buffer.concat([ftyp, box('mdat', Buffer.alloc(9))]))).toMatchObject({
      code: 'VIDEO_TRUNCATED',
      got: expect.stringContaining('moov'),
    })
    expect(await outcome(Buffer.concat([ftyp, box('moof', Buffer.alloc(9)), box('mdat')]))).toMatchObject({ code: 'WHOLE' })
    for (const name of ['encv', 'enca', 'drmi', 'drms']) expect(await outcome(film(name))).toMatchObject({ code: 'VIDEO_ENCRYPTED' })
  })

  test('sizes of 64 bits, to the end, and impossible ones', async () => {
    const long = Buffer.alloc(16 + 20)
    long.writeUInt32BE(1)
    long.write('mdat', 4, 'latin1')
    long.writeBigUInt64BE(36n, 8)
    expect(await outcome(Buffer.concat([film(), long]))).toMatchObject({ code: 'WHOLE' })
    long.writeBigUInt64BE(2n ** 63n, 8)
    expect(await outcome(Buffer.concat([film(), long]))).toMatchObject({ code: 'VIDEO_TRUNCATED' })
    const toTheEnd = box('mdat', Buffer.alloc(50))
    toTheEnd.writeUInt32BE(0)
    expect(await outcome(Buffer.concat([film(), toTheEnd]))).toMatchObject({ code: 'WHOLE' })
    toTheEnd.writeUInt32BE(3)
    expect(await outcome(Buffer.concat([film(), toTheEnd]))).toMatchObject({
      code: 'VIDEO_TRUNCATED',
      got: expect.stringContaining('3 bytes'),
    })
  })
})

test('AVI that ends early', async () => {
  const avi = Buffer.concat([Buffer.from('RIFF\x64\0\0\0AVI LIST', 'latin1'), Buffer.alloc(92)])
  expect(await outcome(avi)).toEqual({ code: 'WHOLE', got: 'avi' })
  expect(await outcome(avi.subarray(0, 60))).toMatchObject({ code: 'VIDEO_TRUNCATED', got: '60 bytes of 108' })
})

test('any bytes are judged with an error of ours or none', async () => {
  const start = film()
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(start.length - 1), fc.nat(255)), { maxLength: 8 }),
      fc.nat(start.length),
      async (changes, cut) => {
        const bytes = Buffer.from(start)
        for (const [at, value] of changes) bytes[at] = value
        expect((await outcome(bytes.subarray(0, cut))).code).toMatch(/^(WHOLE|VIDEO_(EMPTY|CONTAINER|TRUNCATED|ENCRYPTED))$/)
      },
    ),
    { numRuns: 500 },
  )
})
