import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { ast } from '../encoders/ast.ts'
import type { SoundFamilyOptions } from '../encoders/blocks/sound-family.ts'
import { hubert } from '../encoders/hubert.ts'
import type { SoundEncoder } from '../encoders/sound-encoder.ts'
import { wav2vec2 } from '../encoders/wav2vec2.ts'
import { wavlm } from '../encoders/wavlm.ts'
import { whisper } from '../encoders/whisper.ts'
import { encoderCatalogue } from '../src/cli/catalogues.ts'
import { gradients } from '../src/graph/gradients.ts'
import { reduceSum } from '../src/graph/operators/reduce-sum.ts'
import { gridTokens } from '../src/model/token-grid.ts'
import { lower } from '../src/onnx/lower.ts'
import { createSession } from '../src/runtime/node.ts'

const floats = z.base64().transform((text) => {
  const bytes = Uint8Array.from(Buffer.from(text, 'base64'))
  return new Float32Array(bytes.buffer)
})
const fixtureSchema = z.object({
  transformers: z.string(),
  results: z.array(
    z.object({ length: z.int(), layer: z.union([z.int(), z.literal('last')]), tokens: z.int(), width: z.int(), features: floats }),
  ),
})

/** A sweep over a hum with clicks: the formula of make_families.py. */
function sound(length: number, rate = 16_000): Float32Array {
  return Float32Array.from({ length }, (_, at) => {
    const time = at / rate
    const sweep = 0.5 * Math.sin(2 * Math.PI * (100 + 900 * time) * time)
    return sweep + 0.2 * Math.sin(2 * Math.PI * 50 * time) + 0.05 * (((at * 7919) % 1009) / 504.5 - 1) + 0.01
  })
}

const folderOf = (name: string): string => fileURLToPath(new URL(`fixtures/audio/families/${name}`, import.meta.url))

interface Case {
  readonly name: string
  readonly open: (options: SoundFamilyOptions) => Promise<SoundEncoder>
  /** Tokens behind the sound's end are dropped here, and kept by Transformers. */
  readonly padded?: boolean
  /** Transformers' order of tokens as ours. */
  readonly order?: (values: Float32Array, width: number) => Float32Array
}
const cases: readonly Case[] = [
  { name: 'whisper', open: whisper, padded: true },
  { name: 'wav2vec2-group', open: wav2vec2 },
  { name: 'wav2vec2-layer', open: wav2vec2 },
  { name: 'hubert', open: hubert },
  { name: 'wavlm', open: wavlm },
  { name: 'wavlm-stable', open: wavlm },
  { name: 'ast', open: ast, padded: true, order: astOrder },
]

/** Without the two prefix tokens, time by time: Transformers has frequency by frequency. */
function astOrder(values: Float32Array, width: number): Float32Array {
  const bands = 12
  const times = (values.length / width - 2) / bands
  return values.slice(2 * width).map((_, at) => {
    const [token, channel] = [Math.floor(at / width), at % width]
    const [time, band] = [Math.floor(token / bands), token % bands]
    return values[(2 + band * times + time) * width + channel] ?? Number.NaN
  })
}

describe.each(cases)('$name', ({ name, open, padded = false, order = (values) => values }) => {
  const folder = folderOf(name)
  const { results } = fixtureSchema.parse(JSON.parse(readFileSync(`${folder}/features.json`, 'utf8')))
  // A session for each layer: one family shows that all of them are found.
  const all = process.env.MODALIGN_LONG === '1' || name === 'wav2vec2-group'
  const layers = [...new Set(results.map(({ layer }) => layer))].filter((layer) => all || layer === 'last')

  test.each(layers)('gives the features of Transformers, layer %s', async (layer) => {
    const encoder = await open({ model: folder, layer, device: 'cpu', threads: 1 })
    try {
      for (const result of results.filter((each) => each.layer === layer)) {
        const input = await encoder.preprocess({ sampleRateHz: 16_000, samples: sound(result.length) })
        const { tokens, width, data } = await encoder.encode([input])
        expect(width).toBe(result.width)
        expect(tokens).toBe(gridTokens(encoder.grid({ seconds: result.length / 16_000 })))
        const expected = order(result.features, width)
        if (!padded) expect(tokens).toBe(result.tokens)
        const difference = data.reduce((largest, value, at) => Math.max(largest, Math.abs(value - (expected[at] ?? Number.NaN))), 0)
        expect(difference).toBeLessThan(1e-4)
      }
    } finally {
      await encoder.dispose()
    }
  })
})

test('a saved recipe makes the same encoder, with its layer and its windows', async () => {
  const options = { model: folderOf('whisper'), layer: 1, windowSeconds: 1, dropPadding: false, maxWindows: 1 } as const
  const encoder = await whisper({ ...options, device: 'cpu', threads: 1 })
  try {
    const { family = '', model, options: saved } = encoder.recipe ?? {}
    const again = await encoderCatalogue({ device: 'cpu', threads: 1 })[family]?.({ ...saved, ...(model !== undefined && { model }) })
    expect(again?.fingerprint).toBe(encoder.fingerprint)
    await again?.dispose()
    expect(encoder.gridVaries).toBe(false)
    expect(gridTokens(encoder.grid({}))).toBe(50)

    // A training step can hold the layers.
    const { graph } = encoder
    const preprocessed = await encoder.preprocess({ sampleRateHz: 16_000, samples: sound(9_000) })
    const [mel] = graph?.inputs ?? []
    const features = graph?.build(graph.inputs)
    if (graph === undefined || mel === undefined || features === undefined) throw new Error('no graph')
    expect(mel.shape.slice(1)).toEqual([80, 100])
    const slope = gradients(reduceSum(features, [0, 1, 2]), [mel])[0]
    if (slope === undefined) throw new Error('no gradient')
    const lowered = lower({ outputs: { features, slope }, inputs: [mel] })
    const session = await createSession(
      { bytes: lowered.bytes, ...(lowered.externalRoot !== undefined && { externalRoot: lowered.externalRoot }) },
      { device: 'cpu', threads: 1 },
    )
    const result = await session.run(graph.feeds(graph.units(preprocessed)))
    await session.dispose()
    const encoded = await encoder.encode([preprocessed])
    expect(
      Array.from(result.features?.data ?? [], Number).map((one, at) => Math.abs(one - (encoded.data[at] ?? Number.NaN)) < 1e-5),
    ).not.toContain(false)
    expect(result.slope?.dims).toEqual([1, 80, 100])
    expect(Array.from(result.slope?.data ?? [], Number).some((one) => one !== 0)).toBe(true)
  } finally {
    await encoder.dispose()
  }
})
