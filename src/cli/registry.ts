/** The commands by name. A command is one file and one line here; its file is loaded when it is called. */
import type { Command } from './command.ts'

export interface RegisteredCommand {
  /** One word, or a group and a word. */
  readonly name: string
  readonly summary: string
  /** It reads a language model's weights over and over: worth a process with huge pages. */
  readonly readsWeights?: true
  load(): Promise<Command>
}

export const groups = { data: 'look at instruction data' } as const

export const commands: readonly RegisteredCommand[] = [
  {
    name: 'tune',
    summary: 'train a projector on instruction data',
    readsWeights: true,
    load: async () => (await import('./commands/tune.ts')).tuneCommand,
  },
  {
    name: 'chat',
    summary: 'ask one question, or converse, about pictures or without',
    readsWeights: true,
    load: async () => (await import('./commands/chat.ts')).chatCommand,
  },
  {
    name: 'caption',
    summary: 'caption a folder, a pattern or a list of pictures; resumes',
    readsWeights: true,
    load: async () => (await import('./commands/caption.ts')).captionCommand,
  },
  {
    name: 'encode',
    summary: 'encode media once, into a store that tuning reads; resumes',
    load: async () => (await import('./commands/encode.ts')).encodeCommand,
  },
  {
    name: 'doctor',
    summary: 'try every device and program for real',
    load: async () => (await import('./commands/doctor.ts')).doctorCommand,
  },
  {
    name: 'inspect',
    summary: 'say what a model file or folder is',
    load: async () => (await import('./commands/inspect.ts')).inspectCommand,
  },
  {
    name: 'data validate',
    summary: 'check a whole dataset and report every problem',
    load: async () => (await import('./commands/data-validate.ts')).dataValidateCommand,
  },
  {
    name: 'data preview',
    summary: 'show what the language model reads and which part of it it learns',
    load: async () => (await import('./commands/data-preview.ts')).dataPreviewCommand,
  },
  {
    name: 'demo',
    summary: 'tune the tiny pair on emoji drawings and ask it about others',
    load: async () => (await import('./commands/demo.ts')).demoCommand,
  },
]

/** @returns the command that the words of a command line name, options left out; undefined where they name none */
export function commandOf(argv: readonly string[]): RegisteredCommand | undefined {
  const words = argv.filter((word) => !word.startsWith('-'))
  return commands.find(({ name }) => name.split(' ').every((word, i) => words[i] === word))
}
