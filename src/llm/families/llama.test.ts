import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import { beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { size } from '../../graph/dim.ts'
import { input } from '../../graph/tensor.ts'
import { lower } from '../../onnx/lower.ts'
import { createLocalSession } from '../../runtime/local.ts'
import type { Session } from '../../runtime/session.ts'
import { int64Tensor } from '../../tensors.ts'
import { openCheckpoint } from '../../weights/checkpoint.ts'
import { checkpointWeights } from '../checkpoint-weights.ts'
import type { Decoder } from '../decoder.ts'
import { buildDecoder } from './index.ts'
import { llamaConfig } from './llama.ts'

const folder = fileURLToPath(new URL('../../../test/fixtures/parity/llama/tied/', import.meta.url))
let decoder: Decoder

beforeAll(async () => {
  const config: unknown = JSON.parse(readFileSync(`${folder}config.json`, 'utf8'))
  decoder = buildDecoder(config, checkpointWeights(await openCheckpoint(folder)))
})

const [batch, tokens] = [size('batch'), size('tokens')]
const ids = input('ids', 'int64', [batch, tokens])
const positions = input('positions', 'int64', [batch, tokens])
const segments = input('segments', 'int64', [batch, tokens])

async function open(packed: boolean): Promise<Session> {
  const { hidden } = decoder.decode(decoder.embed(ids), packed ? { positions, segments } : { positions })
  const { bytes, externalRoot } = lower({ outputs: { hidden } })
  const session = await createLocalSession({ bytes, ...(externalRoot !== undefined && { externalRoot }) }, { device: 'cpu', threads: 1 })
  onTestFinished(() => session.dispose())
  return session
}

async function hiddenOf(
  session: Session,
  rows: readonly (readonly number[])[],
  extra: Readonly<Record<string, readonly number[]>> = {},
): Promise<Float32Array> {
  const length = rows[0]?.length ?? 0
  const dims = [rows.length, length]
  const { hidden } = await session.run({
    ids: int64Tensor(rows.flat(), dims),
    positions: int64Tensor(extra.positions ?? rows.flatMap((row) => row.map((_, index) => index)), dims),
    ...(extra.segments !== undefined && { segments: int64Tensor(extra.segments, dims) }),
  })
  if (hidden?.dtype !== 'float32') throw new Error('hidden states are float32')
  return hidden.data
}

function largestDifference(a: Float32Array, b: Float32Array): number {
  expect(a.length).toBe(b.length)
  return a.reduce((most, value, index) => Math.max(most, Math.abs(value - (b[index] ?? Number.NaN))), 0)
}

const sequence = fc.array(fc.nat({ max: 95 }), { minLength: 1, maxLength: 9 })

describe('attention', () => {
  test('sees nothing that comes later', async () => {
    const session = await open(false)
    await fc.assert(
      fc.asyncProperty(sequence, sequence, sequence, async (start, one, other) => {
        const length = Math.min(one.length, other.length)
        const both = await hiddenOf(session, [
          [...start, ...one.slice(0, length)],
          [...start, ...other.slice(0, length)],
        ])
        const each = both.length / 2
        const common = start.length * decoder.hiddenSize
        expect(largestDifference(both.subarray(0, common), both.subarray(each, each + common))).toBeLessThan(1e-5)
      }),
      { numRuns: 10 },
    )
  })

  test('sees the order: positions count', async () => {
    const session = await open(false)
    const [straight, shifted] = [await hiddenOf(session, [[5, 6, 7]]), await hiddenOf(session, [[5, 6, 7]], { positions: [0, 2, 4] })]
    expect(largestDifference(straight, shifted)).toBeGreaterThan(1e-3)
    // Rotary angles are relative: the same distances elsewhere are the same thing.
    const moved = await hiddenOf(session, [[5, 6, 7]], { positions: [20, 21, 22] })
    expect(largestDifference(straight, moved)).toBeLessThan(1e-4)
  })

  test('packed sequences, each with its own segment and positions, are as good as each in a row of its own', async () => {
    const [packed, plain] = [await open(true), await open(false)]
    await fc.assert(
      fc.asyncProperty(fc.array(sequence, { minLength: 1, maxLength: 4 }), async (sequences) => {
        const together = await hiddenOf(packed, [sequences.flat()], {
          positions: sequences.flatMap((own) => own.map((_, index) => index)),
          segments: sequences.flatMap((own, segment) => own.map(() => segment)),
        })
        let start = 0
        for (const own of sequences) {
          const length = own.length * decoder.hiddenSize
          expect(largestDifference(together.subarray(start, start + length), await hiddenOf(plain, [own]))).toBeLessThan(1e-4)
          start += length
        }
      }),
      { numRuns: 10 },
    )
  })
})

describe('config', () => {
  const config = {
    model_type: 'llama',
    hidden_size: 64,
    intermediate_size: 96,
    num_hidden_layers: 1,
    num_attention_heads: 4,
    vocab_size: 10,
  }

  test("what is left out is LlamaConfig's default", () => {
    expect(llamaConfig.parse(config)).toMatchObject({
      max_position_embeddings: 2048,
      rms_norm_eps: 1e-6,
      rope_theta: 10_000,
      tie_word_embeddings: false,
      attention_bias: false,
      mlp_bias: false,
    })
  })

  test('null is as good as nothing where Transformers writes null; unknown keys are ignored', () => {
    const written = {
      ...config,
      num_key_value_heads: null,
      head_dim: null,
      rope_scaling: null,
      architectures: ['LlamaForCausalLM'],
      use_cache: true,
    }
    expect(llamaConfig.safeParse(written).success).toBe(true)
  })
})
