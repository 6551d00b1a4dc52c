/**
 * Decoding the same real weights with modalign, transformers.js and onnxruntime-genai, one after another in the same minutes: 28 prompt tokens, 128 new ones, greedy.
 *
 *     npx tsx test/bench/peers/main.ts GGUF WORK [--python PYTHON]
 *
 * WORK is a folder for what is installed and made (a few gigabytes), used again if it is there. transformers.js comes from npm. PYTHON is one with the packages that
 * `prepare.py` names; without it a virtual environment is made in WORK. Each program runs in a process of its own, rounds alternate, and the best of each counts.
 */
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { copyFile, mkdir, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs, promisify } from 'node:util'
import { z } from 'zod'

const run = promisify(execFile)
const here = fileURLToPath(new URL('.', import.meta.url))
const tokens = 128
const rounds = 4
/** "What is the capital of France?" in SmolLM2's chat template, cut or filled to 28 tokens. */
const promptTokens = 28

const result = z.object({ firstTokenMs: z.number(), tokensPerSecond: z.number(), ids: z.array(z.int()) })
type Result = z.infer<typeof result>

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { python: { type: 'string' } } })
  const [gguf, target] = positionals
  if (gguf === undefined || target === undefined) throw new Error('usage: main.ts GGUF WORK [--python PYTHON]')
  const work = resolve(target)
  await mkdir(join(work, 'npm'), { recursive: true })
  const python = values.python ?? (await environment(work))
  if (!existsSync(join(work, 'npm', 'node_modules'))) {
    await writeFile(join(work, 'npm', 'package.json'), '{"private":true,"type":"module"}')
    await run('npm', ['install', '--ignore-scripts', '@huggingface/transformers@4'], { cwd: join(work, 'npm') })
  }
  await copyFile(join(here, 'transformers-js.mjs'), join(work, 'npm', 'transformers-js.mjs'))
  await run(python, [join(here, 'prepare.py'), resolve(gguf), work], { maxBuffer: 2 ** 28 })

  const ids = JSON.stringify(Array.from({ length: promptTokens }, (_, place) => [1, 9690, 198, 2683, 359, 253, 5356, 5646][place % 8]))
  const ours = (model: string) => (): Promise<Result> =>
    child(process.execPath, ['--import', 'tsx', join(here, 'ours.ts'), model, ids, String(tokens)])
  const genai = (name: string) => (): Promise<Result> =>
    child(python, [join(here, 'genai.py'), join(work, 'genai', name), ids, String(tokens)])
  const transformersJs = (dtype: string) => (): Promise<Result> =>
    child(process.execPath, ['transformers-js.mjs', join(work, 'hub'), dtype, ids, String(tokens)], join(work, 'npm'))
  const programs: Readonly<Record<string, () => Promise<Result>>> = {
    'modalign fp32': ours(join(work, 'hf')),
    'transformers.js fp32': transformersJs('fp32'),
    'onnxruntime-genai fp32': genai('fp32'),
    'modalign 4 bits': ours(resolve(gguf)),
    'transformers.js 4 bits': transformersJs('q4'),
    'onnxruntime-genai 4 bits': genai('int4'),
  }
  const best = new Map<string, Result>()
  for (let round = 0; round < rounds; round++) {
    for (const [name, program] of Object.entries(programs)) {
      const now = await program()
      const before = best.get(name) ?? now
      best.set(name, {
        ids: now.ids,
        firstTokenMs: Math.min(before.firstTokenMs, now.firstTokenMs),
        tokensPerSecond: Math.max(before.tokensPerSecond, now.tokensPerSecond),
      })
    }
  }
  const [reference] = best.values()
  for (const [name, { firstTokenMs, tokensPerSecond, ids: said }] of best) {
    const same = said.findIndex((id, index) => id !== reference?.ids[index])
    console.log(
      `${name.padEnd(26)} ${tokensPerSecond.toFixed(1).padStart(6)} tokens/s   first token ${firstTokenMs.toFixed(0).padStart(4)} ms   same tokens as the first: ${same < 0 ? said.length : same}`,
    )
  }
}

async function environment(work: string): Promise<string> {
  const python = join(work, 'venv', 'bin', 'python')
  if (existsSync(python)) return python
  await run('python3', ['-m', 'venv', join(work, 'venv')])
  const packages = ['torch', 'transformers', 'gguf', 'sentencepiece', 'onnx', 'onnx-ir', 'onnxruntime', 'onnxruntime-genai']
  await run(python, ['-m', 'pip', 'install', '--quiet', ...packages], { maxBuffer: 2 ** 28 })
  return python
}

async function child(command: string, args: readonly string[], cwd = process.cwd()): Promise<Result> {
  const { stdout } = await run(command, [...args], { cwd, maxBuffer: 2 ** 26 })
  return result.parse(JSON.parse(stdout.trim().split('\n').at(-1) ?? ''))
}

await main()
