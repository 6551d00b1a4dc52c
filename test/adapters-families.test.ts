/** Adapters on every family: each linear layer is found, trained, and named as the checkpoint names it. Checkpoints: test/fixtures/llm-families/make.py. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { initialValues } from '../src/graph/initial-values.ts'
import { adaptedDecoder, planAdapters } from '../src/llm/adapters/plan.ts'
import { parseAdapterOptions } from '../src/llm/adapters/settings.ts'
import { checkpointWeights } from '../src/llm/checkpoint-weights.ts'
import type { BuildDecoder, Decoder } from '../src/llm/decoder.ts'
import { buildDecoder } from '../src/llm/families/index.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import type { TensorValue } from '../src/tensors.ts'
import { collate } from '../src/training/batch.ts'
import { stepGraph } from '../src/training/step-graph.ts'
import { openCheckpoint } from '../src/weights/checkpoint.ts'

const folder = fileURLToPath(new URL('./fixtures/llm-families/', import.meta.url))
/** In the ordinary run those whose layers lie or are named in different ways; `npm run test:long` takes all. */
const different = ['bloom', 'flan-t5', 'gpt2', 'phi3', 'qwen3']
const models = readdirSync(folder).filter(
  (name) => existsSync(join(folder, name, 'config.json')) && (process.env.MODALIGN_LONG === '1' || different.includes(name)),
)

/** Tables and the head are no linear layers. */
const noLayer = /(embed|wte|wpe|shared|lm_head|embed_out|relative_attention_bias)/

function largestOf(gradient: TensorValue | undefined): number {
  if (gradient?.dtype !== 'float32') throw new Error('no gradient')
  return gradient.data.reduce((most, value) => Math.max(most, Math.abs(value)), 0)
}

test.each(models)('%s', async (name) => {
  const checkpoint = await openCheckpoint(join(folder, name))
  const config: unknown = JSON.parse(readFileSync(join(folder, name, 'config.json'), 'utf8'))
  const build: BuildDecoder = (change = (same) => same) => buildDecoder(config, change(checkpointWeights(checkpoint)))
  const plan = planAdapters(build, parseAdapterOptions({ lora: { rank: 2 } }), 1)

  const matrices = [...checkpoint.tensors].filter(([key, { shape }]) => shape.length === 2 && key.endsWith('.weight') && !noLayer.test(key))
  expect([...plan.lora.values()].map(({ layer }) => layer.weight).sort()).toEqual(matrices.map(([key]) => key).sort())
  for (const { layer } of plan.lora.values()) {
    const { inFeatures, outFeatures, layout, weight, module } = layer
    expect(checkpoint.tensor(weight).shape).toEqual(layout === 'out-in' ? [outFeatures, inFeatures] : [inFeatures, outFeatures])
    // A checkpoint may leave out the first part of the path, which adapter files always have.
    expect(`${module}.weight`.endsWith(weight), `${module} and ${weight}`).toBe(true)
  }

  const adapted: Decoder = {
    ...adaptedDecoder(build, plan, ({ tensor }) => tensor),
    trained: { parameters: plan.parameters, present: () => ({ decoder: build(), softPrompt: new Float32Array(0) }) },
  }
  const items = [{ ids: Int32Array.of(5, 9, 7, 3, 8, 6), weights: Float32Array.of(0, 0, 0, 1, 1, 1), targets: 3, media: [], features: [] }]
  const run = async (decoder: Decoder, fetch: readonly string[]) => {
    const { model, headChunks } = stepGraph({ decoder, media: [] })
    const { bytes, externalRoot } = model
    await using session = await createLocalSession(
      { bytes, ...(externalRoot !== undefined && { externalRoot }) },
      { device: 'cpu', threads: 1 },
    )
    const values = decoder.trained === undefined ? {} : initialValues(plan.parameters, 0)
    const parameters = Object.entries(values).map(([key, { dims, data }]) => [key, { dtype: 'float32' as const, dims, data }] as const)
    const { feeds } = collate(items, { media: [], headChunks, source: decoder.hasEncoder === true })
    return await session.run({ ...feeds, ...Object.fromEntries(parameters) }, { fetch })
  }
  // B is 0 at first: nothing has changed, and B alone has a gradient.
  const gradients = plan.parameters.map((parameter) => `gradient.${parameter.name}`)
  const [before, after] = [await run(build(), ['loss']), await run(adapted, ['loss', ...gradients])]
  expect(Number(after.loss?.data[0])).toBeCloseTo(Number(before.loss?.data[0]), 4)
  for (const gradient of gradients) {
    const largest = largestOf(after[gradient])
    if (gradient.endsWith('lora_B.weight')) expect(largest, gradient).toBeGreaterThan(0)
    else expect(largest, gradient).toBe(0)
  }
})
