/**
 * Generation with SmolLM2-135M's shape and random weights, float32 and 4 bits (blocks of 32 with a minimum each, as Q4_1 has them), one row and eight, around 256 tokens
 * of context: prompts and tokens a second as callers of the generator see them, beside what reading the weights and the cache alone would take.
 */
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Decoder } from '../../src/llm/decoder.ts'
import { createGenerator, type TextGenerator } from '../../src/llm/generation/generator.ts'
import { hugePageSetting, hugePageTunables } from '../../src/runtime/huge-pages.ts'
import { type Bandwidth, openBandwidth } from './bandwidth.ts'
import { productSeconds } from './products.ts'
import { quantisedSmollm2, randomSmollm2, smollm2 } from './smollm2.ts'

const context = 256
const tokens = 24
/** A speed is that of the best so many tokens in a row, others use the machine, too; so is the bandwidth's: a token at float32 reads half a gigabyte, as one pass does. */
const window = 4
const rounds = 3

export interface GenerateFigures extends Readonly<Record<string, number>> {
  readonly threads: number
  /** 1 where this process asked for huge pages when it started: `GLIBC_TUNABLES`, see `huge-pages.ts`. */
  readonly hugePages: number
  readonly bandwidthGBs: number
  /** float32, one row: the bound's seconds over the measured ones. */
  readonly ratioToBandwidth: number
  /** The same for ONNX Runtime's products of one row alone: the limit of decoding on it. Measured by itself, so the two differ by what others do on the machine. */
  readonly productsRatioToBandwidth: number
  /** Tokens a second at 4 bits over float32, one row. */
  readonly ratio4Bit: number
  /** Tokens a second of eight rows over one, float32 and 4 bits. */
  readonly ratioBatch8: number
  readonly ratioBatch8At4Bit: number
}

export async function benchGenerate(): Promise<GenerateFigures> {
  const folder = await mkdtemp(join(tmpdir(), 'modalign-bench-'))
  // What ONNX Runtime takes by itself: the physical cores.
  const threads = Math.min(availableParallelism(), 16)
  try {
    await using bandwidth = await openBandwidth(threads, window)
    const full = await randomSmollm2(folder)
    const blocks = join(folder, 'blocks')
    await mkdir(blocks)
    const small = await quantisedSmollm2(folder, blocks)
    const single = await measured(full, weightBytes(), threads, bandwidth)
    const quantised = await measured(small.decoder, small.bytes, threads, bandwidth)
    const products = await productSeconds(folder, threads, window)
    const rate = await bandwidth.measure()
    const ratio = ({ bytes, seconds }: Speed): number => bytes / rate / seconds
    return {
      threads,
      hugePages: Number(process.env.GLIBC_TUNABLES === hugePageTunables && hugePageSetting() === 'madvise'),
      bandwidthGBs: rate / 1e9,
      ...figures('fp32', single, ratio),
      ...figures('q4', quantised, ratio),
      ratioToBandwidth: ratio(single.one),
      productsRatioToBandwidth: weightBytes() / rate / products,
      ratio4Bit: single.one.seconds / quantised.one.seconds,
      ratioBatch8: (8 * single.one.seconds) / single.eight.seconds,
      ratioBatch8At4Bit: (8 * quantised.one.seconds) / quantised.eight.seconds,
    }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

interface Speed {
  readonly batch: number
  /** Of one step: a token for every row. */
  readonly seconds: number
  /** From the call to the first token of every row. */
  readonly promptSeconds: number
  /** That a step must read. */
  readonly bytes: number
}
interface Speeds {
  readonly one: Speed
  readonly eight: Speed
}

function figures(name: string, { one, eight }: Speeds, ratio: (speed: Speed) => number): Readonly<Record<string, number>> {
  return Object.fromEntries(
    [one, eight].flatMap((speed) => {
      const { batch, seconds, promptSeconds } = speed
      const label = `${name}Batch${batch}`
      return [
        [`${label}PromptTokensPerSecond`, (batch * context) / promptSeconds],
        [`${label}TokensPerSecond`, batch / seconds],
        [`${label}RatioToBandwidth`, ratio(speed)],
      ]
    }),
  )
}

async function measured(decoder: Decoder, bytes: number, threads: number, bandwidth: Bandwidth): Promise<Speeds> {
  const open = (batchSize: number): TextGenerator =>
    createGenerator({ decoder, stopTokenIds: [], defaults: {} }, { device: 'cpu', threads, batchSize })
  await using single = open(1)
  await using several = open(8)
  const measure = (batch: number, round: number): Promise<Speed> =>
    speed(batch === 1 ? single : several, decoder, { batch, round, weights: bytes })
  let [one, eight] = [await measure(1, 0), await measure(8, 0)]
  for (let round = 1; round < rounds; round++) {
    await bandwidth.measure()
    one = faster(one, await measure(1, round))
    eight = faster(eight, await measure(8, round))
  }
  return { one, eight }
}

function faster(a: Speed, b: Speed): Speed {
  return { ...a, seconds: Math.min(a.seconds, b.seconds), promptSeconds: Math.min(a.promptSeconds, b.promptSeconds) }
}

async function speed(
  generator: TextGenerator,
  decoder: Decoder,
  { batch, round, weights }: { readonly batch: number; readonly round: number; readonly weights: number },
): Promise<Speed> {
  const started = performance.now()
  const times = await tokenTimes(generator, batch, round)
  const [first = started] = times
  const spans = times.slice(window).map((time, index) => time - (times[index] ?? 0))
  const { layers, kvHeads, headDim } = decoder
  return {
    batch,
    seconds: Math.min(...spans) / window / 1000,
    promptSeconds: (((first - started) / 1000) * context) / (context - tokens / 2),
    bytes: weights + batch * layers * 2 * kvHeads * headDim * context * Float32Array.BYTES_PER_ELEMENT,
  }
}

/** @returns when each token of the last row came. No two prompts begin alike: what is kept of one would spare reading it again. */
export async function tokenTimes(generator: TextGenerator, batch: number, round: number): Promise<readonly number[]> {
  const requests = Array.from({ length: batch }, (_, row) => ({
    ids: Array.from(
      { length: context - tokens / 2 },
      (_, place) => (place * 7919 + (8 * round + row + 1) * 104_729 + batch) % smollm2.vocab_size,
    ),
  }))
  const times: number[] = []
  for await (const event of generator.generate(requests, { maxNewTokens: tokens }))
    if (event.type === 'token' && event.row === batch - 1) times.push(performance.now())
  return times
}

/** Every matrix is read once a step; of the tied embeddings that is the head's part. */
function weightBytes(): number {
  const {
    hidden_size: width,
    intermediate_size: inner,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    vocab_size: vocabulary,
  } = smollm2
  const kvWidth = (width / heads) * (smollm2.num_key_value_heads ?? heads)
  const values = layers * (2 * width * width + 2 * width * kvWidth + 3 * width * inner + 2 * width) + vocabulary * width + width
  return values * Float32Array.BYTES_PER_ELEMENT
}
