/** Which files of a repository a model needs. Names are compared with what is known, never trusted: nothing else is downloaded. */
import { ModalignError } from '../../errors.ts'
import type { HubFile } from './hub-server.ts'
import { type ModelName, modelNameText } from './model-name.ts'

const textFiles: ReadonlySet<string> = new Set([
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
  'preprocessor_config.json',
  'processor_config.json',
  'genai_config.json',
  'model.safetensors.index.json',
])
const largestTextBytes = 128 * 2 ** 20
const single = 'model.safetensors'
const shard = /^model-\d{5}-of-\d{5}\.safetensors$/
const plainName = /^(?!\.)[\w.+-]{1,128}$/

/** Of what a model consists whose files have names of their own, as OpenCLIP's do. */
export interface OwnFiles {
  readonly config: string
  readonly weights: string
}

/**
 * `config.json` and its like, the tokenizer's files, and the weights: `model.safetensors`, or the numbered shards, or the only other `.safetensors` file. Where the name says
 * a file, that one: a GGUF file alone, an ONNX file with its `_data` and the text files. Where the model has files of its own names, these two alone.
 *
 * @throws ModalignError `HUB_FILE` where the repository has no such file or no weights that can be loaded, `HUB_LISTING` for sizes that no such file has
 */
export function neededFiles(name: ModelName, listed: readonly HubFile[], own?: OwnFiles): readonly HubFile[] {
  const texts = listed.filter(({ path }) => textFiles.has(path) || path === own?.config)
  const chosen =
    name.file !== undefined
      ? [...named(name.file, name, listed, texts)]
      : own !== undefined
        ? [...named(own.config, name, listed, []), ...named(own.weights, name, listed, [])]
        : [...texts, ...weightsOf(name, listed)]
  const large = texts.find(({ bytes }) => bytes > largestTextBytes)
  if (large !== undefined || new Set(chosen.map(({ path }) => path)).size < chosen.length) {
    throw new ModalignError({
      code: 'HUB_LISTING',
      file: modelNameText(name),
      got: large === undefined ? 'one file twice' : `${large.bytes} bytes of ${large.path}`,
      expected: 'the files of a model',
    })
  }
  return chosen
}

function weightsOf(name: ModelName, listed: readonly HubFile[]): readonly HubFile[] {
  const weights = listed.filter(({ path }) => path.endsWith('.safetensors') && plainName.test(path))
  const whole = weights.filter(({ path }) => path === single)
  const shards = weights.filter(({ path }) => shard.test(path))
  if (whole.length > 0) return whole
  if (shards.length > 0) return shards
  if (weights.length === 1) return weights
  throw noFile(name, listed, 'no model.safetensors')
}

function named(file: string, name: ModelName, listed: readonly HubFile[], texts: readonly HubFile[]): readonly HubFile[] {
  const data = new Set([`${file}_data`, `${file}.data`, ...Array.from({ length: 64 }, (_, index) => `${file}_data_${index}`)])
  const chosen = listed.filter(({ path }) => path === file || (file.endsWith('.onnx') && data.has(path)))
  if (!chosen.some(({ path }) => path === file)) throw noFile(name, listed, `no ${file}`)
  return file.endsWith('.gguf') ? chosen : [...texts, ...chosen]
}

function noFile(name: ModelName, listed: readonly HubFile[], got: string): ModalignError {
  const others = listed.filter(({ path }) => /\.(?:gguf|onnx)$/.test(path)).map(({ path }) => path)
  const rest = others.length > 4 ? `, and ${others.length - 4} more` : ''
  return new ModalignError({
    code: 'HUB_FILE',
    file: modelNameText(name),
    got,
    expected: 'weights as safetensors, GGUF or ONNX',
    hint: others.length === 0 ? undefined : `name one of its files as ${name.repo}/FILE: ${others.slice(0, 4).join(', ')}${rest}`,
  })
}
