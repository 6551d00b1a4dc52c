/** Token ids for people: what the model reads, and which part of it it learns. */
import type { LabelledIds } from './label-spans.ts'
import type { Tokenizer } from './tokenizer.ts'

export interface PreviewOptions {
  readonly tokenizer: Tokenizer
  /** Colours for a terminal instead of brackets. Default false. */
  readonly ansi?: boolean
}

const learned = { plain: ['⟦', '⟧'], ansi: ['\u001b[32m', '\u001b[39m'] } as const
const medium = { plain: ['', ''], ansi: ['\u001b[36m', '\u001b[39m'] } as const

/**
 * The decoded ids with the supervised spans marked: `⟦…⟧`, or green on a terminal; a weight other than 1 is written in front of its span. Special tokens are
 * visible, media are `⟨image 1: 49 tokens⟩`. Control characters are escaped, except for line ends.
 *
 * @example
 * renderPreview(labelSpans(sample, options), { tokenizer })
 * // '<|im_start|>user\n⟨image 1: 49 tokens⟩What is this?<|im_end|>\n<|im_start|>assistant\n⟦A cat.<|im_end|>⟧\n'
 */
export function renderPreview({ ids, weights, media }: LabelledIds, { tokenizer, ansi = false }: PreviewOptions): string {
  const style = ansi ? 'ansi' : 'plain'
  const decoder = tokenizer.streamDecoder()
  const mediumAt = new Map(media.map((span, i) => [span.start, { ...span, name: `${span.part.type} ${i + 1}` }]))
  let out = ''
  let text = ''
  let weight = 0
  const flush = () => {
    const [open, close] = weight > 0 ? learned[style] : ['', '']
    if (text !== '') out += `${open}${weight > 0 && weight !== 1 ? `${weight}: ` : ''}${visible(text)}${close}`
    text = ''
  }
  for (let i = 0; i < ids.length; i++) {
    const found = mediumAt.get(i)
    if (found !== undefined) {
      text += decoder.end()
      flush()
      const [open, close] = medium[style]
      out += `${open}⟨${found.name}: ${found.length} tokens⟩${close}`
      i += found.length - 1
      continue
    }
    const next = weights[i] ?? 0
    if (next !== weight) {
      flush()
      weight = next
    }
    text += decoder.push(ids[i] ?? 0)
  }
  text += decoder.end()
  flush()
  return out
}

function visible(text: string): string {
  return text.replace(/[^\P{Cc}\n]|\p{Bidi_Control}/gu, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`)
}
