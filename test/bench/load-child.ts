/**
 * One measurement of `load.ts`, in a process of its own: `node load-child.js '{"mode": ...}'` prints one JSON object. Modules are loaded before the clock starts.
 */
import { readFile } from 'node:fs/promises'
import type { z } from 'zod'
import { thisPlatform } from '../../src/runtime/native.ts'
import { jobSchema, type LoadJob, type modelSchema, type ortSchema } from './load-job.ts'
import { anonymousBytes } from './memory.ts'

const seconds = (since: number): number => (performance.now() - since) / 1000

async function ort({ graph, externalRoot }: LoadJob & { mode: 'ort' }): Promise<z.infer<typeof ortSchema>> {
  const { ortSessionOptions } = await import('../../src/runtime/devices.ts')
  const { InferenceSession } = await import('onnxruntime-node')
  const bytes = await readFile(graph)
  const options = ortSessionOptions('cpu', { memoryPattern: false }, thisPlatform, externalRoot)
  const started = performance.now()
  const session = await InferenceSession.create(bytes, options)
  const taken = seconds(started)
  await session.release()
  return { seconds: taken }
}

async function model({ folder, preload, prepacking }: LoadJob & { mode: 'model' }): Promise<z.infer<typeof modelSchema>> {
  const { loadLanguageModel } = await import('../../src/index.ts')
  const before = anonymousBytes()
  let [buffers, anonymous] = [0, 0]
  const look = (): void => {
    const { arrayBuffers, external } = process.memoryUsage()
    buffers = Math.max(buffers, arrayBuffers, external)
    // Slow beside what is timed, where pages are many.
    if (!prepacking) anonymous = Math.max(anonymous, (anonymousBytes() ?? 0) - (before ?? 0))
  }
  const watch = setInterval(look, 20)
  const started = performance.now()
  await using llm = await loadLanguageModel(folder, { device: 'cpu', preload, prepacking })
  const loadSeconds = seconds(started)
  const asked = performance.now()
  const opening = llm.session()
  const ids = llm.tokenizer.encode(
    llm.template.render([{ role: 'user', content: 'What is the capital of France?' }], { addGenerationPrompt: true }),
  )
  await opening
  const [openSeconds, startSeconds] = [seconds(asked), seconds(started)]
  for await (const event of llm.generate([{ ids }], { maxNewTokens: 1 })) if (event.type === 'token') break
  const tokenSeconds = seconds(started)
  look()
  clearInterval(watch)
  return {
    loadSeconds,
    openSeconds,
    startSeconds,
    tokenSeconds,
    bufferBytes: buffers,
    ...(before !== undefined && !prepacking && { anonymousBytes: anonymous }),
  }
}

const job = jobSchema.parse(JSON.parse(process.argv[2] ?? ''))
console.log(JSON.stringify(job.mode === 'ort' ? await ort(job) : await model(job)))
