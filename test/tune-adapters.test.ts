/** Runs of `tune` that train parts of the language model too: saved, loaded, interrupted and resumed. */
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { llava } from '../datasets/llava.ts'
import { projectors } from '../projectors/index.ts'
import { mlp } from '../projectors/mlp.ts'
import type { Trainables } from '../src/graph/parameters.ts'
import { adapt } from '../src/llm/adapters/adapt.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import type { Encoder } from '../src/model/contracts.ts'
import { compose, type MultimodalModel } from '../src/model/multimodal-model.ts'
import { loadModel } from '../src/model/saved-model.ts'
import { type TuneOptions, type TuneSummary, tune } from '../src/training/tune.ts'
import { openEncoder, writeDataset, writeLanguageModel } from './tune-tiny-pair.ts'

let root: string
let base: LanguageModel
let encoder: Encoder<'image'>
let dataset: string

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-tune-adapters-'))
  await writeLanguageModel(join(root, 'llm'))
  dataset = await writeDataset(join(root, 'data'))
  base = await loadLanguageModel(join(root, 'llm'), { device: 'cpu', threads: 1 })
  encoder = await openEncoder(join(root, 'encoder.onnx'))
})
afterAll(async () => {
  await encoder?.dispose()
  await base?.dispose()
  await rm(root, { recursive: true, force: true })
})

async function adapted(): Promise<MultimodalModel> {
  const llm = await adapt(base, {
    lora: { rank: 2, alpha: 4, targets: ['q_proj', 'down_proj'], dropout: 0.2 },
    softPrompt: { tokens: 3 },
    unfreeze: ['model.norm.weight'],
    seed: 1,
  })
  return compose({ llm, image: { encoder, projector: mlp({ depth: 2 }) } })
}

interface Run {
  readonly losses: readonly number[]
  readonly summary: TuneSummary
}

async function run(
  model: MultimodalModel,
  output: string,
  { stopAfter, ...options }: Partial<TuneOptions> & { readonly stopAfter?: number } = {},
): Promise<Run> {
  const controller = new AbortController()
  const losses: number[] = []
  const settings = { epochs: 6, batchSize: 4, learningRate: 2e-2, device: 'cpu', threads: 1, prompts: [] } as const
  const steps = tune(model, llava(dataset), { ...settings, ...options, output, signal: controller.signal })
  for (;;) {
    const next = await steps.next()
    if (next.done === true) return { losses, summary: next.value }
    losses.push(next.value.loss)
    if (losses.length === stopAfter) controller.abort()
  }
}

const trainedNames = (values: Trainables): readonly string[] => Object.keys(values).filter((name) => name.startsWith('llm.'))

test('a run trains projector and adapters; the saved model answers as the one in memory; interrupted and resumed it ends the same', async () => {
  const model = await adapted()
  const first = model.parameters
  expect(trainedNames(first)).toHaveLength(2 * 2 * 2 + 2)
  const whole = join(root, 'whole')
  const { losses, summary } = await run(model, whole)
  expect(losses.at(-1)).toBeLessThan(0.8 * (losses[0] ?? 0))
  for (const [name, { data }] of Object.entries(model.parameters)) expect(data, name).not.toEqual(first[name]?.data)

  // Saved beside the projector: PEFT's folders, and what was unfrozen.
  const folder = summary.model ?? ''
  expect((await readdir(join(folder, 'adapters'))).sort()).toEqual(['lora', 'soft-prompt', 'unfrozen.safetensors'])
  expect(JSON.parse(await readFile(join(folder, 'adapters', 'lora', 'adapter_config.json'), 'utf8'))).toMatchObject({
    peft_type: 'LORA',
    r: 2,
    lora_alpha: 4,
  })
  const catalogues = { projectors, encoders: {} }
  const loaded = await loadModel(folder, catalogues, { encoders: { image: encoder }, device: 'cpu', threads: 1 })
  expect(loaded.parameters).toEqual(model.parameters)
  const ask = { root: join(root, 'data'), prompt: 'What colour is this?', maxNewTokens: 12 }
  const pictures = ['red.png', 'blue.png', 'white.png']
  const answers = await model.caption(pictures, ask)
  expect(await loaded.caption(pictures, ask)).toEqual(answers)
  expect(answers[0]).not.toBe('')
  await loaded.llm.dispose()

  const resumed = await adapted()
  const output = join(root, 'resumed')
  expect((await run(resumed, output, { stopAfter: 5 })).summary.model).toBeUndefined()
  const rest = await run(resumed, output, { resume: true })
  expect(rest.losses).toEqual(losses.slice(5))
  expect(resumed.parameters).toEqual(model.parameters)
  await Promise.all([model.llm.dispose(), resumed.llm.dispose()])
})

test('a run with other adapters is another run', async () => {
  const output = join(root, 'other')
  const model = await adapted()
  await run(model, output, { stopAfter: 1 })
  const llm = await adapt(base, {
    lora: { rank: 2, alpha: 8, targets: ['q_proj', 'down_proj'], dropout: 0.2 },
    softPrompt: { tokens: 3 },
    unfreeze: ['model.norm.weight'],
  })
  const changed = await compose({ llm, image: { encoder, projector: mlp({ depth: 2 }) } })
  await expect(run(changed, output, { resume: true })).rejects.toMatchObject({ code: 'TUNE_RESUME' })
})
