import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { openSafetensors } from '../safetensors.ts'
import { blockFormats } from './blocks/index.ts'
import { dequantise, dequantised } from './dequantise.ts'
import { openGguf } from './gguf.ts'

const fixture = (name: string): string => fileURLToPath(new URL(`../../../test/fixtures/gguf/${name}`, import.meta.url))
const file = await openGguf(fixture('blocks.gguf'))
const expected = await openSafetensors(fixture('blocks.safetensors'))

const bitsOf = (values: Float32Array): Uint32Array => new Uint32Array(values.buffer, values.byteOffset, values.length)

describe("blocks become the float32 values that llama.cpp's package gives, bit for bit", () => {
  test.each([...expected.tensors.keys()])('%s', async (name) => {
    const { dims, data } = await expected.read(name)
    if (!(data instanceof Float32Array)) throw new Error('the fixture is float32')
    expect(file.tensors.get(name)).toMatchObject({ shape: dims, type: { name } })
    expect(bitsOf(await dequantise(file, name))).toEqual(bitsOf(data))
  })

  test('every storage type in wide use is among them', () => {
    const wide = 'F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS'.split(' ')
    expect([...expected.tensors.keys()].sort()).toEqual([...wide].sort())
    expect(wide.filter((name) => !blockFormats.has(name))).toEqual([])
  })
})

test('a storage type that nothing reads, and a tensor that is not there', async () => {
  const [[name, tensor] = ['', undefined]] = file.tensors
  if (tensor === undefined) throw new Error('the fixture has tensors')
  const odd = { ...file, tensors: new Map([[name, { ...tensor, type: { ...tensor.type, name: 'IQ1_S' } }]]) }
  await expect(dequantised(odd, name).next()).rejects.toMatchObject({
    code: 'GGUF_TYPE_UNSUPPORTED',
    details: { field: name, got: 'IQ1_S' },
  })
  await expect(dequantise(odd, 'nothing')).rejects.toMatchObject({ code: 'TENSOR_MISSING' })
})
