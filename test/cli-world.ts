/** Small real models and data for the command line's tests: a random Llama with its own tokenizer, an ONNX encoder, pictures and records. */
import { EventEmitter } from 'node:events'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import sharp from 'sharp'
import { trainByteLevelBpe } from '../examples/tiny/train-tokenizer.ts'
import { run } from '../src/cli/run.ts'
import { makeGraph, makeModel, makeNode, makeTensor, makeValueInfo } from '../src/onnx/build.ts'
import { encodeModel } from '../src/onnx/codec.ts'
import { normals } from '../src/random.ts'
import { float32Tensor } from '../src/tensors.ts'
import { writeSafetensors } from '../src/weights/safetensors.ts'

export interface World extends AsyncDisposable {
  readonly folder: string
  readonly llm: string
  readonly encoder: string
  readonly pictures: string
  readonly records: string
  /** A run file that names all of these; its output is `runs/first` beside it. */
  readonly runFile: string
  path(...names: readonly string[]): string
}

const colours = { red: '#d01010', green: '#10b010', blue: '#1010d0', black: '#000000' } as const

export async function makeWorld(): Promise<World> {
  const folder = await mkdtemp(join(tmpdir(), 'modalign-cli-'))
  const path = (...names: readonly string[]): string => join(folder, ...names)
  await writeLanguageModel(path('llm'))
  await writeEncoder(path('encoder.onnx'))
  await mkdir(path('pictures'))
  for (const [name, background] of Object.entries(colours))
    await sharp({ create: { width: 12, height: 8, channels: 3, background } })
      .png()
      .toFile(path('pictures', `${name}.png`))
  await writeFile(path('records.json'), JSON.stringify(Object.keys(colours).map((name) => recordOf(name))))
  await writeFile(path('run.yaml'), runText)
  return {
    folder,
    path,
    llm: path('llm'),
    encoder: path('encoder.onnx'),
    pictures: path('pictures'),
    records: path('records.json'),
    runFile: path('run.yaml'),
    [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }),
  }
}

export function recordOf(name: string, image = `pictures/${name}.png`): object {
  return {
    id: name,
    image,
    conversations: [
      { from: 'human', value: '<image>\nWhat is this?' },
      { from: 'gpt', value: `${name} paint` },
    ],
  }
}

const runText = `# everything relative to this file
llm: llm
image:
  encoder:
    family: onnxImage
    model: encoder.onnx
    output: map
    preprocessing: { resize: { size: { height: 8, width: 8 }, filter: bilinear }, rescaleFactor: 0.00392156862745098 }
  projector: { name: mlp, depth: 2 }
data: { path: records.json }
output: runs/first
batchSize: 2
epochs: 6
learningRate: 1e-2
checkpointEvery: 4
device: cpu
threads: 1
`

async function writeLanguageModel(folder: string): Promise<void> {
  await mkdir(folder)
  const corpus = ['What is this?', 'red paint', 'green paint', 'blue paint', 'black paint', 'user', 'assistant', 'system']
  const tokenizer = trainByteLevelBpe(corpus, { vocabularySize: 300, specialTokens: ['<|endoftext|>', '<|im_start|>', '<|im_end|>'] })
  const vocabulary = Object.keys(tokenizer.model.vocab).length
  const template =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
  const width = 32
  const inner = 48
  const config = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_size: width,
    intermediate_size: inner,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    vocab_size: vocabulary,
    max_position_embeddings: 128,
    tie_word_embeddings: true,
    eos_token_id: 2,
  }
  await writeFile(join(folder, 'config.json'), JSON.stringify(config))
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer))
  await writeFile(
    join(folder, 'tokenizer_config.json'),
    JSON.stringify({ eos_token: '<|im_end|>', pad_token: '<|endoftext|>', chat_template: template }),
  )
  const shapes: (readonly [string, readonly number[]])[] = [
    ['model.embed_tokens.weight', [vocabulary, width]],
    ['model.norm.weight', [width]],
  ]
  for (const layer of [0, 1]) {
    const name = `model.layers.${layer}`
    shapes.push([`${name}.input_layernorm.weight`, [width]], [`${name}.post_attention_layernorm.weight`, [width]])
    shapes.push([`${name}.self_attn.q_proj.weight`, [width, width]], [`${name}.self_attn.o_proj.weight`, [width, width]])
    shapes.push([`${name}.self_attn.k_proj.weight`, [width / 2, width]], [`${name}.self_attn.v_proj.weight`, [width / 2, width]])
    shapes.push([`${name}.mlp.gate_proj.weight`, [inner, width]], [`${name}.mlp.up_proj.weight`, [inner, width]])
    shapes.push([`${name}.mlp.down_proj.weight`, [width, inner]])
  }
  const tensors = shapes.map(([name, dims]) => {
    const length = dims.reduce((product, size) => product * size, 1)
    const data = dims.length === 1 ? new Float32Array(length).fill(1) : normals(length, { seed: 1, stream: name }, { deviation: 0.2 })
    return { name, value: float32Tensor(data, dims) }
  })
  await writeSafetensors(join(folder, 'model.safetensors'), tensors, { format: 'pt' })
}

/** pixels [batch, 3, 8, 8] -> map [batch, 6, 2, 2] -> pooled. */
async function writeEncoder(file: string): Promise<void> {
  const weight = float32Tensor(normals(6 * 3 * 16, { seed: 2, stream: 'conv' }, { deviation: 0.3 }), [6, 3, 4, 4])
  const nodes = [
    makeNode({ opType: 'Conv', inputs: ['pixels', 'weight'], outputs: ['map'], attributes: { strides: { ints: [4, 4] } } }),
    makeNode({ opType: 'GlobalAveragePool', inputs: ['map'], outputs: ['pooled'] }),
  ]
  const graph = makeGraph({
    nodes,
    inputs: [makeValueInfo('pixels', 'float32', ['batch', 3, 8, 8])],
    outputs: [makeValueInfo('pooled', 'float32', ['batch', 6, 1, 1])],
    initializers: [makeTensor('weight', weight)],
  })
  await writeFile(file, encodeModel(makeModel({ graph })))
}

export interface Called {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
  /** Lines of stdout as JSON. */
  records(): readonly Readonly<Record<string, unknown>>[]
}

export interface CallOptions {
  readonly input?: string
  /** Called as stderr grows; `signal` is what the process would get. */
  readonly onError?: (text: string, signal: (name: 'SIGINT' | 'SIGTERM') => void) => void
  readonly onOutput?: (text: string, signal: (name: 'SIGINT' | 'SIGTERM') => void) => void
}

/** One call in this process. */
export async function call(argv: readonly string[], { input = '', onError, onOutput }: CallOptions = {}): Promise<Called> {
  const [stdin, stdout, stderr] = [new PassThrough(), new PassThrough(), new PassThrough()]
  const signals = new EventEmitter()
  const send = (name: 'SIGINT' | 'SIGTERM'): void => {
    signals.emit(name)
  }
  let out = ''
  let err = ''
  stdout.setEncoding('utf8').on('data', (text: string) => {
    out += text
    onOutput?.(out, send)
  })
  stderr.setEncoding('utf8').on('data', (text: string) => {
    err += text
    onError?.(err, send)
  })
  stdin.end(input)
  const exits: number[] = []
  const code = await run(argv, { stdin, stdout, stderr, env: { NO_COLOR: '1' }, signals, exit: (exit) => exits.push(exit) })
  await new Promise((resolve) => setImmediate(resolve))
  return {
    code: exits[0] ?? code,
    stdout: out,
    stderr: err,
    records: () => out.split('\n').flatMap((line) => (line === '' ? [] : [JSON.parse(line)])),
  }
}
