/** The text files of a Hugging Face model folder. Beside what is made from them, because a browser has no folders. */
import { access, open } from 'node:fs/promises'
import { join } from 'node:path'
import { ModalignError } from '../errors.ts'
import { errnoOf, fileError } from '../io/file-error.ts'
import type { JsonValue } from '../io/json.ts'
import { type ChatTemplate, type ChatTemplateFiles, type ChatTemplateOptions, createChatTemplate } from './chat-template.ts'
import { createTokenizer, type Tokenizer } from './tokenizer.ts'
import type { TokenizerFiles } from './tokenizer-file.ts'

const mebibyte = 2 ** 20

/**
 * Loads the tokenizer of a Hugging Face model folder: `tokenizer.json`, and where they exist `tokenizer_config.json`, `special_tokens_map.json` and
 * `generation_config.json`.
 *
 * @throws ModalignError `TOKENIZER_MISSING`, `TOKENIZER_TOO_LARGE`, `TOKENIZER_INVALID`, `TOKENIZER_UNSUPPORTED`, `TOKENIZER_REGEX`
 * @example
 * const tokenizer = await loadTokenizer('models/SmolLM2-135M-Instruct')
 * tokenizer.decode(tokenizer.encode('Hello')) // 'Hello'
 */
export async function loadTokenizer(folder: string): Promise<Tokenizer> {
  return createTokenizer(await readTokenizerFiles(folder))
}

/**
 * Loads the chat template of a Hugging Face model folder: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`.
 *
 * @throws ModalignError `TEMPLATE_MISSING`, `TEMPLATE_INVALID`
 * @example
 * const template = await loadChatTemplate('models/SmolLM2-135M-Instruct')
 */
export async function loadChatTemplate(folder: string, options: ChatTemplateOptions = {}): Promise<ChatTemplate> {
  return createChatTemplate(await readTemplateFiles(folder), options)
}

/** @throws ModalignError `TOKENIZER_MISSING`, `TOKENIZER_TOO_LARGE`, `TOKENIZER_INVALID_JSON` */
export async function readTokenizerFiles(folder: string): Promise<TokenizerFiles> {
  const file = join(folder, 'tokenizer.json')
  // The largest published ones have some 35 MB.
  const tokenizer = await readJson(file, 128 * mebibyte)
  if (tokenizer === undefined) throw missing(file)
  const [config, specialTokensMap, generationConfig] = await Promise.all(
    ['tokenizer_config.json', 'special_tokens_map.json', 'generation_config.json'].map((name) =>
      readJson(join(folder, name), 16 * mebibyte),
    ),
  )
  return { tokenizer, config, specialTokensMap, generationConfig, file }
}

/** Finds out in a moment what `loadTokenizer` would say first. @throws ModalignError `TOKENIZER_MISSING` */
export async function requireTokenizer(folder: string): Promise<void> {
  const file = join(folder, 'tokenizer.json')
  await access(file).catch((error: unknown) => {
    throw errnoOf(error) === 'ENOENT' ? missing(file) : fileError(error, file, 'a file of a model folder')
  })
}

function missing(file: string): ModalignError {
  return new ModalignError({
    code: 'TOKENIZER_MISSING',
    file,
    got: 'nothing at this path',
    expected: 'the tokenizer.json of a Hugging Face model folder',
    hint: 'a folder that has only tokenizer.model or vocab.json must be converted with Transformers first (AutoTokenizer, save_pretrained)',
  })
}

/** The parsed file, or undefined where there is none. */
export async function readJson(file: string, largest: number): Promise<JsonValue | undefined> {
  const text = await readText(file, largest)
  if (text === undefined) return undefined
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new ModalignError({
      code: 'TOKENIZER_INVALID_JSON',
      file,
      got: error instanceof Error ? error.message : String(error),
      expected: 'JSON',
      cause: error,
    })
  }
}

/** The file as UTF-8 text without a byte order mark, or undefined where there is none. */
export async function readText(file: string, largest: number): Promise<string | undefined> {
  try {
    await using handle = await open(file, 'r')
    const { size } = await handle.stat()
    if (size > largest) throw new ModalignError({ code: 'TOKENIZER_TOO_LARGE', file, got: `${size} bytes`, expected: `at most ${largest}` })
    // Decoded at once: `readFile('utf8')` of an open file decodes piece by piece, which takes longer than parsing does.
    const text = (await handle.readFile()).toString('utf8')
    return text.startsWith('\ufeff') ? text.slice(1) : text
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw fileError(error, file, 'a file of a model folder')
  }
}

/** The files that can hold a chat template. */
export async function readTemplateFiles(folder: string): Promise<ChatTemplateFiles> {
  const [jinja, config, specialTokensMap] = await Promise.all([
    readText(join(folder, 'chat_template.jinja'), mebibyte),
    readJson(join(folder, 'tokenizer_config.json'), 16 * mebibyte),
    readJson(join(folder, 'special_tokens_map.json'), 16 * mebibyte),
  ])
  return { jinja, config, specialTokensMap, file: join(folder, jinja === undefined ? 'tokenizer_config.json' : 'chat_template.jinja') }
}
