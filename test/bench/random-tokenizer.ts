/** A byte-level BPE tokenizer of any size whose merges are drawn at random: as much to read and to build as a published one. */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { randomStream } from '../../src/random.ts'

const special = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', ...Array.from({ length: 14 }, (_, index) => `<reserved_${index}>`)]
const longest = 16

/** Writes `tokenizer.json` and `tokenizer_config.json`, formatted as Hugging Face writes them. */
export async function writeRandomTokenizer(folder: string, vocabularySize: number): Promise<void> {
  const random = randomStream({ seed: 1, stream: 'tokenizer' })
  const tokens = byteCharacters()
  const known = new Set([...special, ...tokens])
  const merges: string[] = []
  let draws = 0
  const draw = (): string => tokens[Math.floor(random.uniform(draws++) * tokens.length)] ?? ''
  while (known.size < vocabularySize) {
    const [left, right] = [draw(), draw()]
    const token = left + right
    if (token.length > longest || known.has(token)) continue
    known.add(token)
    tokens.push(token)
    merges.push(`${left} ${right}`)
  }
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true }
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: special.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: { type: 'Sequence', pretokenizers: [{ type: 'Digits', individual_digits: true }, byteLevel] },
    post_processor: null,
    decoder: byteLevel,
    model: { type: 'BPE', dropout: null, unk_token: null, vocab: Object.fromEntries([...known].map((token, id) => [token, id])), merges },
  }
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer, null, 2))
  const chatTemplate =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
  const config = { bos_token: '<|im_start|>', eos_token: '<|im_end|>', unk_token: '<|endoftext|>', chat_template: chatTemplate }
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(config, null, 2))
}

/** GPT-2's characters for the 256 bytes: printable ones stand for themselves, the others follow from U+0100 on. */
function byteCharacters(): string[] {
  let next = 256
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174
    return String.fromCodePoint(printable ? byte : next++)
  })
}
