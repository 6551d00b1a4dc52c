import { basename } from 'node:path'
import { createInterface } from 'node:readline'
import { z } from 'zod'
import { errorData, ModalignError, renderError } from '../../errors.ts'
import { fileSource } from '../../io/byte-source.ts'
import type { GenerationOptions } from '../../llm/generation/generate-tokens.ts'
import { modalities } from '../../model/branches.ts'
import type { Modality, Part, Turn } from '../../model/contracts.ts'
import { pathSchema } from '../catalogues.ts'
import { defineCommand } from '../command.ts'
import { type ExitCode, exitCodes } from '../exit-codes.ts'
import { generationHelp, generationOptionsOf, generationSettings } from '../generation-settings.ts'
import { modelHelp, modelSettings, openTalker, type Talker } from '../model-source.ts'
import { didYouMean } from '../suggestion.ts'
import type { Terminal } from '../terminal.ts'

const settings = z.strictObject({
  question: z.string().min(1).optional(),
  image: z.array(pathSchema).optional(),
  audio: z.array(pathSchema).optional(),
  video: z.array(pathSchema).optional(),
  system: z.string().min(1).optional(),
  ...modelSettings,
  ...generationSettings,
})

export const chatCommand = defineCommand({
  settings,
  help: {
    image: 'a picture that the (first) question is about',
    audio: 'a sound that the (first) question is about',
    video: 'a video that the (first) question is about',
    system: 'what the model is told before the conversation',
    ...modelHelp,
    ...generationHelp,
  },
  positionals: [{ name: 'QUESTION', setting: 'question', help: 'answered once; without it a conversation begins' }],
  async run({ question, image = [], audio = [], video = [], system, ...rest }, { terminal }) {
    const media = [mediaOf('image', image), mediaOf('audio', audio), mediaOf('video', video)].flat()
    // What is wrong with a path or a setting shows before models are loaded.
    const options = generationOptionsOf(rest)
    for (const { source } of media) await fileSource(source)
    await using talker = await openTalker(rest, terminal, question === undefined)
    const conversation = new Conversation(talker, terminal, options, system)
    conversation.attach(media)
    if (question === undefined) return converse(conversation, terminal)
    await conversation.ask(question)
    return exitCodes.ok
  },
})

interface Medium {
  readonly type: Modality
  /** A path. */
  readonly source: string
}

const mediaOf = (type: Modality, paths: readonly string[]): readonly Medium[] => paths.map((source) => ({ type, source }))

/** Turns so far. A medium stays in the turn it came with; a turn that failed leaves no trace. */
class Conversation {
  readonly #talker: Talker
  readonly #terminal: Terminal
  readonly #options: GenerationOptions
  readonly #system: readonly Turn[]
  #turns: readonly Turn[]
  #media: readonly Medium[] = []

  constructor(talker: Talker, terminal: Terminal, options: GenerationOptions, system: string | undefined) {
    this.#talker = talker
    this.#terminal = terminal
    this.#options = options
    this.#system = system === undefined ? [] : [{ role: 'system', content: [{ type: 'text', text: system }] }]
    this.#turns = this.#system
  }

  get label(): string {
    return this.#talker.label
  }

  /** Media for the next question. @throws CLI_CHAT_IMAGE, CLI_CHAT_AUDIO, CLI_CHAT_VIDEO */
  attach(media: readonly Medium[]): void {
    const { modalities } = this.#talker
    for (const { type } of media) {
      if (modalities.includes(type)) continue
      throw new ModalignError({
        code: `CLI_CHAT_${type.toUpperCase()}`,
        got: `${nouns[type]} for a ${modalities.length === 0 ? 'language model alone' : `model with an encoder for ${modalities.join(' and ')}`}`,
        expected: modalities.length === 0 ? 'a model with an encoder' : `a model with an encoder for ${type}`,
        hint: 'name one that `modalign tune` wrote: --model DIR',
      })
    }
    this.#media = [...this.#media, ...media]
  }

  restart(): void {
    this.#turns = this.#system
    this.#media = []
  }

  async ask(question: string, signal?: AbortSignal): Promise<void> {
    const media = this.#media
    this.#media = []
    const asked: Turn = { role: 'user', content: [...media, text(media, question)] }
    const turns = [...this.#turns, asked]
    let answer = ''
    for await (const piece of this.#talker.answer(turns, { ...this.#options, signal })) {
      answer += piece
      this.#terminal.text(printable(piece, this.#terminal))
      if (this.#terminal.closed) break
    }
    this.#terminal.line()
    const of = (type: Modality): readonly string[] => media.filter((one) => one.type === type).map(({ source }) => source)
    const heard = { ...(of('audio').length > 0 && { audio: of('audio') }), ...(of('video').length > 0 && { videos: of('video') }) }
    this.#terminal.record({ type: 'answer', question, images: of('image'), ...heard, answer })
    this.#turns = [...turns, { role: 'assistant', content: [{ type: 'text', text: answer }] }]
  }
}

const nouns: Readonly<Record<Modality, string>> = { image: 'a picture', audio: 'a sound', video: 'a video' }

/** As the training data have it: media first, then the question on a line of its own. */
function text(media: readonly Medium[], question: string): Part {
  return { type: 'text', text: media.length === 0 ? question : `\n${question}` }
}

/** A model may say anything: on a terminal, control characters must not act. */
function printable(piece: string, { io }: Terminal): string {
  return io.stdout.isTTY === true ? piece.replace(/[^\P{Cc}\n\t]/gu, '\ufffd') : piece
}

const instructions = ['/image', '/audio', '/video', '/new', '/help', '/exit'] as const
const help = [
  '/image FILE  show a picture with the next question; so /audio and /video',
  '/new         forget the conversation',
  '/exit        end (so does Ctrl-D)',
].join('\n')

async function converse(conversation: Conversation, terminal: Terminal): Promise<ExitCode> {
  const { stdin, stderr } = terminal.io
  const isTerminal = stdin.isTTY === true && stderr.isTTY === true
  const lines = createInterface({ input: stdin, output: stderr, terminal: isTerminal, prompt: '> ' })
  let answering: AbortController | undefined
  let interrupted = false
  lines.on('SIGINT', () => {
    if (answering !== undefined) answering.abort()
    else {
      interrupted = true
      lines.close()
    }
  })
  if (isTerminal) {
    terminal.note(`${conversation.label}. /help lists what can be typed besides questions.`)
    lines.prompt()
  }
  try {
    for await (const line of lines) {
      const words = line.trim()
      if (words === '/exit' || terminal.closed) break
      answering = new AbortController()
      try {
        if (words.startsWith('/')) obey(words, conversation, terminal)
        else if (words !== '') await conversation.ask(words, answering.signal)
      } catch (error) {
        if (answering.signal.aborted) terminal.line()
        else if (error instanceof ModalignError && isTerminal) terminal.note(renderError(errorData(error)))
        else throw error
      } finally {
        answering = undefined
      }
      if (isTerminal) lines.prompt()
    }
  } finally {
    lines.close()
  }
  return interrupted ? exitCodes.interrupted : exitCodes.ok
}

/** @throws CLI_CHAT_INSTRUCTION */
function obey(words: string, conversation: Conversation, terminal: Terminal): void {
  const [name = '', ...rest] = words.split(/\s+/)
  const argument = rest.join(' ')
  const modality = modalities.find((one) => name === `/${one}`)
  if (modality !== undefined && argument !== '') {
    conversation.attach([{ type: modality, source: argument }])
    terminal.note(`${basename(argument)} goes with the next question`)
  } else if (name === '/new') conversation.restart()
  else if (name === '/help') terminal.note(help)
  else {
    const hint = didYouMean(name, instructions)
    throw new ModalignError({
      code: 'CLI_CHAT_INSTRUCTION',
      got: words,
      expected: `one of ${instructions.join(', ')}`,
      ...(hint && { hint }),
    })
  }
}
