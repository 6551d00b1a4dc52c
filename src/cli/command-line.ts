/** The command line as a program of commander: help, parsing, and nothing else. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Command as Commander, CommanderError, Option } from 'commander'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import type { Command, Invocation } from './command.ts'
import type { GivenFlag } from './flags.ts'
import { packageRoot } from './package-root.ts'
import { commandOf, commands, groups, type RegisteredCommand } from './registry.ts'
import type { Terminal } from './terminal.ts'

export type ParsedLine =
  /** Help or the version was shown. */
  | { readonly kind: 'shown'; readonly wanted: boolean }
  | { readonly kind: 'command'; readonly command: Command; readonly invocation: Invocation }

/** @throws ModalignError `CLI_USAGE` */
export async function parseCommandLine(argv: readonly string[], terminal: Terminal): Promise<ParsedLine> {
  const chosen = commandOf(argv)
  const command = await chosen?.load()
  const program = await emptyProgram(terminal)
  let parsed: ParsedLine | undefined
  for (const registered of commands) {
    const place = parentOf(registered, program).command(registered.name.split(' ').at(-1) ?? registered.name)
    place.description(registered.summary)
    if (registered === chosen && command !== undefined) {
      fill(place, command, (invocation) => {
        parsed = { kind: 'command', command, invocation }
      })
    }
  }
  try {
    await program.parseAsync([...argv], { from: 'user' })
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    if (error.exitCode === 0) return { kind: 'shown', wanted: true }
    if (error.code === 'commander.help') return { kind: 'shown', wanted: false }
    throw usageError(error, chosen)
  }
  return parsed ?? { kind: 'shown', wanted: false }
}

async function emptyProgram(terminal: Terminal): Promise<Commander> {
  const program = new Commander('modalign')
  const { stdout, stderr } = terminal.io
  program
    .description(
      'Graft eyes and ears onto a language model: tune a projector between a frozen encoder and a frozen language model, and talk about pictures, sounds and films.',
    )
    .version(await packageVersion())
    .exitOverride()
    .configureOutput({
      writeOut: (text) => stdout.write(text),
      writeErr: (text) => stderr.write(text),
      outputError: () => undefined,
      getOutHelpWidth: () => terminal.columns,
      getErrHelpWidth: () => terminal.columns,
      getOutHasColors: () => terminal.colors(),
      getErrHasColors: () => terminal.colors(stderr),
    })
    .helpCommand(false)
  for (const [name, summary] of Object.entries(groups)) program.command(name).description(summary).helpCommand(false)
  return program
}

function parentOf({ name }: RegisteredCommand, program: Commander): Commander {
  const [group, rest] = name.split(' ')
  return rest === undefined ? program : (program.commands.find((one) => one.name() === group) ?? program)
}

function fill(place: Commander, command: Command, onParsed: (invocation: Invocation) => void): void {
  const texts = new Map<string, (string | boolean)[]>()
  const given = (name: string, text: string | boolean): void => {
    texts.set(name, [...(texts.get(name) ?? []), text])
  }
  const takesRunFile = command.positionals.some(({ setting }) => setting === undefined)
  for (const { name, help } of command.positionals) place.argument(`[${name}]`, help)
  for (const flag of command.flags) {
    const { name, kind, list, choices } = flag
    const word = choices !== undefined ? 'choice' : kind === 'structured' ? 'value' : kind
    const help = `${command.help[name] ?? ''}${choices === undefined ? '' : ` (${choices.join(', ')})`}${list ? ' (may be repeated)' : ''}`
    place.addOption(new Option(kind === 'boolean' ? `--${name}` : `--${name} <${word}>`, help))
    place.on(`option:${name}`, (text: string | null | undefined) => given(name, text ?? true))
    if (kind !== 'boolean') continue
    place.addOption(new Option(`--no-${name}`).hideHelp())
    place.on(`option:no-${name}`, () => given(name, false))
  }
  let config: string | undefined
  if (!takesRunFile) {
    place.addOption(new Option('--config <file>', 'a YAML file with settings; flags win over it'))
    place.on('option:config', (file: string) => {
      config = file
    })
  }
  place.addOption(new Option('--json', 'one JSON object a line on stdout'))
  place.action(() => {
    const positionals = new Map<string, string>()
    let runFile = config
    for (const [i, { name, setting }] of command.positionals.entries()) {
      const text = place.args[i]
      if (text === undefined) continue
      if (setting === undefined) runFile = text
      else positionals.set(name, text)
    }
    const flags = command.flags.flatMap((flag): readonly GivenFlag[] => {
      const found = texts.get(flag.name)
      return found === undefined ? [] : [{ flag, texts: found }]
    })
    onParsed({ flags, positionals, runFile })
  })
}

/** One line: what commander says, its suggestion as the hint, and where to read more. */
function usageError({ message }: CommanderError, chosen: RegisteredCommand | undefined): ModalignError {
  const [words = '', suggested] = message.replace(/^error: /, '').split(/\s*\n\s*/)
  const help = `modalign ${chosen === undefined ? '' : `${chosen.name} `}--help`
  return new ModalignError({
    code: 'CLI_USAGE',
    got: words,
    hint: `${suggested === undefined ? '' : `${suggested.replace(/[()]/g, '')} `}${help} lists what there is`,
  })
}

const manifestSchema = z.object({ version: z.string() })

async function packageVersion(): Promise<string> {
  return manifestSchema.parse(JSON.parse(await readFile(join(packageRoot(), 'package.json'), 'utf8'))).version
}
