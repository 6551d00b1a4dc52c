/** The web entry in a real browser: a projector is tuned in a page, on WASM and on WebGPU, as it is on the CPU provider. */
import { readFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { z } from 'zod'
import { createLocalSession } from '../src/runtime/local.ts'
import { memorySource } from '../src/web.ts'
import { type StepOutcome, trainingStep, weightFile } from './browser-step.ts'
import { bundledFiles, bundleForBrowsers, findChromium, withPage } from './chromium.ts'
import { skipWithout } from './skip.ts'

const read = (name: string): unknown => JSON.parse(readFileSync(new URL(`fixtures/text/${name}`, import.meta.url), 'utf8'))
const chat = z
  .object({ tokenizer: z.string(), template: z.string(), special: z.record(z.string(), z.string()) })
  .parse(read('template.smollm2.json'))
const text = { tokenizer: { tokenizer: z.json().parse(read(`${chat.tokenizer}.json`)), config: chat.special }, template: chat.template }

/** What the page runs. The weights come from the server, as a page gets them. */
const page = `
  import { createWebSession, httpSource } from '../src/web.ts'
  import { trainingStep } from './browser-step.ts'
  export const step = async (text, options) =>
    trainingStep(await httpSource(new URL('/model.safetensors', location.href)), text, (model) => createWebSession(model, options))
`

const outcomeSchema = z.object({
  device: z.string(),
  losses: z.tuple([z.number(), z.number()]),
  gradientNorm: z.number(),
  targets: z.number(),
  gradients: z.record(z.string(), z.array(z.number())),
})

/** |a - b| / |b|. */
function relativeDifference(a: readonly number[], b: readonly number[]): number {
  const norm = (values: readonly number[]): number => Math.hypot(...values)
  return a.length === b.length ? norm(a.map((value, i) => value - (b[i] ?? Number.NaN))) / norm(b) : Number.NaN
}

skipWithout(findChromium().missing).describe('a training step in Chromium', () => {
  test('WASM and WebGPU give the loss and the gradients of the CPU provider', async () => {
    const weights = await weightFile()
    const expected = await trainingStep(memorySource(weights), text, (model) => createLocalSession(model, { device: 'cpu' }))
    expect(expected.device).toBe('cpu')
    expect(expected.targets).toBeGreaterThan(8)
    expect(expected.losses[1]).toBeLessThan(expected.losses[0])
    expect(Math.min(...Object.values(expected.gradients).map((gradient) => Math.hypot(...gradient)))).toBeGreaterThan(1e-3)

    const bundle = await bundleForBrowsers(page, dirname(fileURLToPath(import.meta.url)))
    const files = new Map([...bundledFiles(bundle), ['model.safetensors', weights]])
    const outcomes = await withPage(files, async (tab) => {
      const step = async (options: object): Promise<StepOutcome> =>
        outcomeSchema.parse(
          await tab.evaluate(`import('/page.js').then(({ step }) => step(${JSON.stringify(text)}, ${JSON.stringify(options)}))`),
        )
      return {
        isolated: await tab.evaluate('crossOriginIsolated'),
        wasm: await step({ device: 'wasm', threads: 2 }),
        webgpu: await step({ device: 'webgpu' }),
      }
    })
    expect(outcomes.isolated).toBe(true)
    for (const device of ['wasm', 'webgpu'] as const) {
      const { losses, gradientNorm, gradients, ...rest } = outcomes[device]
      expect(rest, device).toEqual({ device, targets: expected.targets })
      expect(Math.abs(losses[0] - expected.losses[0]), `${device}: loss`).toBeLessThan(1e-5)
      expect(Math.abs(losses[1] - expected.losses[1]), `${device}: loss after the update`).toBeLessThan(1e-4)
      expect(Math.abs(gradientNorm / expected.gradientNorm - 1), `${device}: gradient norm`).toBeLessThan(1e-4)
      expect(Object.keys(gradients)).toEqual(Object.keys(expected.gradients))
      for (const [name, gradient] of Object.entries(gradients))
        expect(relativeDifference(gradient, expected.gradients[name] ?? []), `${device}: gradient of ${name}`).toBeLessThan(1e-4)
    }
  }, 600_000)
})
