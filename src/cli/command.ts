/** What a command is: settings with one schema, arguments, and what it does. */
import type { z } from 'zod'
import type { ExitCode } from './exit-codes.ts'
import { type Flag, flagsOf, type GivenFlag } from './flags.ts'
import { type RunFile, readRunFile } from './run-file.ts'
import { resolveSettings } from './settings.ts'
import type { CliIo, Terminal } from './terminal.ts'

export interface CommandContext {
  readonly io: CliIo
  readonly terminal: Terminal
  /** The arguments as they were given, the command's name first: to say how to go on. */
  readonly argv: readonly string[]
}

export interface Positional {
  /** In capitals, as help shows it. */
  readonly name: string
  readonly help: string
  /** The setting that it gives; absent: it is the run file. */
  readonly setting?: string
}

export interface CommandDefinition<S extends z.ZodObject> {
  readonly settings: S
  /** What each flag does, by its name without dashes. */
  readonly help: Readonly<Record<string, string>>
  readonly positionals?: readonly Positional[]
  run(settings: z.output<S>, context: CommandContext): Promise<ExitCode>
}

/** A command line taken apart. */
export interface Invocation {
  readonly flags: readonly GivenFlag[]
  /** By the positionals' names. */
  readonly positionals: ReadonlyMap<string, string>
  readonly runFile: string | undefined
}

export interface Command {
  readonly flags: readonly Flag[]
  readonly positionals: readonly Positional[]
  readonly help: Readonly<Record<string, string>>
  execute(invocation: Invocation, context: CommandContext): Promise<ExitCode>
}

/** Ties a command's parts together; flags follow from the schema. */
export function defineCommand<S extends z.ZodObject>(definition: CommandDefinition<S>): Command {
  const { settings: schema, help, positionals = [] } = definition
  const all = flagsOf(schema)
  const positionalOf = (path: readonly PropertyKey[]): Positional | undefined =>
    positionals.find(({ setting }) => setting !== undefined && setting === path.join('.'))
  const nameOf = (path: readonly PropertyKey[]): string | undefined => {
    const flag = all.find((one) => one.path.join('.') === path.join('.'))
    return positionalOf(path)?.name ?? (flag && `--${flag.name}`)
  }
  return {
    flags: all.filter(({ path }) => positionalOf(path) === undefined),
    positionals,
    help,
    async execute({ flags, positionals: words, runFile }, context) {
      const file: RunFile | undefined = runFile === undefined ? undefined : await readRunFile(runFile)
      const arguments_ = all.flatMap((flag): readonly GivenFlag[] => {
        const text = words.get(positionalOf(flag.path)?.name ?? '')
        return text === undefined ? [] : [{ flag, texts: [text] }]
      })
      const settings = resolveSettings({ schema, runFile: file, given: [...arguments_, ...flags], nameOf })
      return definition.run(settings, context)
    },
  }
}
