/** A Hugging Face folder: `config.json`, `*.safetensors`, `tokenizer.json`, `tokenizer_config.json`, `generation_config.json`, `chat_template.jinja`. */
import { basename, join, resolve } from 'node:path'
import { ModalignError } from '../../errors.ts'
import { fileSource } from '../../io/byte-source.ts'
import { fingerprint } from '../../io/fingerprint.ts'
import { type ChatTemplate, createChatTemplate } from '../../text/chat-template.ts'
import { loadTokenizer, readJson, readTemplateFiles, requireTokenizer } from '../../text/model-folder.ts'
import { chosenTemplate } from '../../text/template-choice.ts'
import { type Checkpoint, openCheckpoint } from '../../weights/checkpoint.ts'
import { toFloat32 } from '../../weights/float16.ts'
import type { TensorToWrite } from '../../weights/safetensors.ts'
import { tensorFromBytes } from '../../weights/safetensors-source.ts'
import { checkpointWeights } from '../checkpoint-weights.ts'
import { cachedCheckpoint } from '../weight-cache.ts'
import type { ModelSource, SourceOptions } from './model-source.ts'
import { sampledRms } from './sampled-rms.ts'

const largestConfigBytes = 1_048_576
/** From so many bytes of 16-bit weights on, an expanded copy on the disk is worth it; below, every session makes its own as it loads. */
const worthExpanding = 64 * 2 ** 20
const pieceElements = 2 ** 21

/** @throws ModalignError `LLM_CONFIG_MISSING`, `CHECKPOINT_*`, `TOKENIZER_*` */
export async function openFolder(folder: string, options: SourceOptions): Promise<ModelSource> {
  const configFile = join(folder, 'config.json')
  const config = await readJson(configFile, largestConfigBytes)
  if (config === undefined) {
    throw new ModalignError({
      code: 'LLM_CONFIG_MISSING',
      file: configFile,
      expected: 'a Hugging Face model folder with config.json',
      hint: 'name the folder that holds config.json, *.safetensors and tokenizer.json, a .gguf file, or the folder of an ONNX export',
    })
  }
  const [published, templateFiles, chosen] = await Promise.all([
    openCheckpoint(folder),
    readTemplateFiles(folder),
    chosenTemplate(options.template),
    requireTokenizer(folder),
  ])
  const files = new Set([...published.tensors.values()].map((tensor) => tensor.file))
  const fingerprints = fingerprintsOf(files)
  const checkpoint = await mappable(published, fingerprints, options)
  return {
    label: basename(resolve(folder)),
    path: resolve(folder),
    config,
    configFile,
    weights: checkpointWeights(checkpoint),
    fingerprints,
    rms: (name) => sampledRms(checkpoint, name),
    tokenizer: () => loadTokenizer(folder),
    template: once(() => createChatTemplate({ ...templateFiles, ...chosen })),
    generationConfig: await readJson(join(folder, 'generation_config.json'), largestConfigBytes),
  }
}

/** The checkpoint itself where its weights are float32; else one whose 16-bit weights are float32, from the cache. */
export async function mappable(
  published: Checkpoint,
  fingerprints: ModelSource['fingerprints'],
  options: SourceOptions,
): Promise<Checkpoint> {
  const small = [...published.tensors.values()].filter(({ dtype }) => dtype === 'float16' || dtype === 'bfloat16')
  if (small.reduce((sum, { byteLength }) => sum + byteLength, 0) < worthExpanding) return published
  return cachedCheckpoint('float32', await fingerprints(), () => [...published.tensors.keys()].map((name) => expanded(published, name)), {
    ...(options.cacheFolder === undefined ? {} : { folder: options.cacheFolder }),
    ...(options.onUnpack === undefined ? {} : { onBuild: options.onUnpack }),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  })
}

function expanded(checkpoint: Checkpoint, name: string): TensorToWrite {
  const { dtype, shape: dims, file, offset, byteLength } = checkpoint.tensor(name)
  if (dtype !== 'float16' && dtype !== 'bfloat16') return { name, dtype, dims, load: () => checkpoint.read(name) }
  async function* pieces(): AsyncGenerator<Uint8Array, void, undefined> {
    const source = await fileSource(file)
    for (let at = 0; at < byteLength; at += 2 * pieceElements) {
      const bytes = await source.read(offset + at, Math.min(2 * pieceElements, byteLength - at))
      const values = toFloat32(tensorFromBytes(bytes, { dtype, shape: [bytes.length / 2] }, { name, file }))
      yield new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
    }
  }
  return { name, dtype: 'float32', dims, pieces }
}

/** Computed when they are first asked for. */
export function fingerprintsOf(files: Iterable<string>): ModelSource['fingerprints'] {
  let computed: Promise<readonly string[]> | undefined
  return () => {
    computed ??= Promise.all(Array.from(files, async (file) => fingerprint(await fileSource(file))))
    return computed
  }
}

export function once(make: () => ChatTemplate): () => ChatTemplate {
  let made: ChatTemplate | undefined
  return () => {
    made ??= make()
    return made
  }
}
