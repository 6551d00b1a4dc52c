/** A random language model of the Llama family with a tokenizer of its own, a convolution as an encoder, and coloured pictures to talk about: all in one folder. */
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import sharp from 'sharp'
import { type OnnxImageEncoder, onnxImage } from '../encoders/onnx-image.ts'
import { trainByteLevelBpe } from '../examples/tiny/train-tokenizer.ts'
import { constant } from '../src/graph/tensor.ts'
import type { WeightLookup } from '../src/llm/decoder.ts'
import { llama, llamaConfig } from '../src/llm/families/llama.ts'
import { makeGraph, makeModel, makeNode, makeTensor, makeValueInfo } from '../src/onnx/build.ts'
import { encodeModel } from '../src/onnx/codec.ts'
import { normals } from '../src/random.ts'
import { float32Tensor, type TensorValue } from '../src/tensors.ts'
import { writeSafetensors } from '../src/weights/safetensors.ts'

export const colours = {
  red: [220, 30, 30],
  green: [30, 180, 60],
  blue: [30, 60, 220],
  white: [240, 240, 240],
  black: [15, 15, 15],
  yellow: [230, 220, 40],
} as const
const names = Object.keys(colours)

const chatTemplate =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

const base = {
  model_type: 'llama' as const,
  hidden_size: 32,
  intermediate_size: 64,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  vocab_size: 320,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  hidden_act: 'silu' as const,
  tie_word_embeddings: true,
}

/** A Hugging Face folder. `seed`: of its weights. */
export async function writeLanguageModel(folder: string, seed = 0, maxPositions = 128): Promise<void> {
  const config = { ...base, max_position_embeddings: maxPositions }
  await mkdir(folder, { recursive: true })
  const corpus = ['user', 'assistant', 'What colour is this?', ...names.map((name) => `It is ${name}.`)]
  const specialTokens = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
  const bpe = trainByteLevelBpe([...corpus, ...corpus], { vocabularySize: config.vocab_size, specialTokens })
  const tokenizerConfig = {
    tokenizer_class: 'PreTrainedTokenizerFast',
    eos_token: '<|im_end|>',
    pad_token: '<|endoftext|>',
    chat_template: chatTemplate,
  }
  const tensors = new Map<string, TensorValue>()
  const weight: WeightLookup = (name, shape) => {
    const length = shape.reduce((product, size) => product * size, 1)
    const data = shape.length === 1 ? new Float32Array(length).fill(1) : normals(length, { seed, stream: name }, { deviation: 0.25 })
    const value = tensors.get(name) ?? float32Tensor(data, shape)
    tensors.set(name, value)
    return constant(value)
  }
  // Building the decoder asks for all its weights by name and shape.
  const decoder = llama(llamaConfig.parse(config), weight)
  decoder.decode(decoder.embed(constant({ dtype: 'int64', dims: [1, 1], data: BigInt64Array.of(0n) })), {
    positions: constant({ dtype: 'int64', dims: [1, 1], data: BigInt64Array.of(0n) }),
  })
  await Promise.all([
    writeFile(join(folder, 'tokenizer.json'), JSON.stringify(bpe)),
    writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(tokenizerConfig)),
    writeFile(join(folder, 'config.json'), JSON.stringify(config)),
    writeSafetensors(
      join(folder, 'model.safetensors'),
      [...tensors].map(([name, value]) => ({ name, value })),
    ),
  ])
}

/** 16x16 pictures to 4 tokens of width 8. `seed`: of its weights. */
export async function openEncoder(file: string, seed = 0): Promise<OnnxImageEncoder> {
  const model = makeModel({
    graph: makeGraph({
      nodes: [
        makeNode({
          opType: 'Conv',
          inputs: ['pixels', 'weight'],
          outputs: ['map'],
          attributes: { kernel_shape: { ints: [8, 8] }, strides: { ints: [8, 8] } },
        }),
        makeNode({ opType: 'Tanh', inputs: ['map'], outputs: ['features'] }),
      ],
      inputs: [makeValueInfo('pixels', 'float32', ['batch', 3, 16, 16])],
      outputs: [makeValueInfo('features', 'float32')],
      initializers: [
        makeTensor('weight', float32Tensor(normals(8 * 3 * 8 * 8, { seed, stream: 'encoder' }, { deviation: 0.1 }), [8, 3, 8, 8])),
      ],
    }),
  })
  await writeFile(file, encodeModel(model))
  return onnxImage({
    model: file,
    output: 'features',
    device: 'cpu',
    preprocessing: { resize: { size: { height: 16, width: 16 }, filter: 'bilinear' }, rescaleFactor: 1 / 255 },
  })
}

export interface LlavaRecord {
  readonly id: string
  readonly image?: string | readonly string[]
  readonly conversations: readonly { readonly from: string; readonly value: string }[]
}

export function recordOf(id: string, colour: string, image: string | undefined = `${colour}.png`): LlavaRecord {
  return {
    id,
    image,
    conversations: [
      { from: 'human', value: '<image>\nWhat colour is this?' },
      { from: 'gpt', value: `It is ${colour}.` },
    ],
  }
}

/** One record for each colour, and one of text alone. */
export const records: readonly LlavaRecord[] = [
  ...names.map((colour) => recordOf(colour, colour)),
  {
    id: 'text',
    conversations: [
      { from: 'human', value: 'What colour?' },
      { from: 'gpt', value: 'It is white.' },
    ],
  },
]

/** `data.json` beside a PNG of each colour. Returns the file's path. */
export async function writeDataset(folder: string, content: readonly LlavaRecord[] | string = records): Promise<string> {
  await mkdir(folder, { recursive: true })
  for (const [name, [r, g, b]] of Object.entries(colours)) {
    await sharp({ create: { width: 20, height: 18, channels: 3, background: { r, g, b } } })
      .png()
      .toFile(join(folder, `${name}.png`))
  }
  const file = join(folder, 'data.json')
  await writeFile(file, typeof content === 'string' ? content : JSON.stringify(content))
  return file
}
