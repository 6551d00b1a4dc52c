/** One call of the command line, without a process: arguments and streams in, the exit code out. */
import { errorData, ModalignError, renderError } from '../errors.ts'
import { parseCommandLine } from './command-line.ts'
import { ConfigurationError } from './configuration-error.ts'
import { exitCodeOf, exitCodes } from './exit-codes.ts'
import { type CliIo, Terminal } from './terminal.ts'

/**
 * @param argv without the names of node and the program
 * @returns the exit code; nothing is thrown
 * @example
 * process.exitCode = await run(process.argv.slice(2), process)
 */
export async function run(argv: readonly string[], io: CliIo): Promise<number> {
  const end = argv.indexOf('--')
  const terminal = new Terminal(io, { json: (end < 0 ? argv : argv.slice(0, end)).includes('--json') })
  try {
    const parsed = await parseCommandLine(argv, terminal)
    if (parsed.kind === 'shown') return parsed.wanted ? exitCodes.ok : exitCodes.usage
    return await parsed.command.execute(parsed.invocation, { io, terminal, argv })
  } catch (error) {
    return report(error, terminal)
  }
}

/** Says what went wrong, once, and returns the exit code. Only defects of ours show their stack. */
function report(error: unknown, terminal: Terminal): number {
  const data = errorData(error)
  const exitCode = exitCodeOf(data) ?? exitCodes.internal
  const problems = error instanceof ConfigurationError ? error.problems : [data]
  terminal.record({ type: 'error', exitCode, ...data, ...(problems.length > 1 && { problems }) })
  if (error instanceof ModalignError) {
    for (const problem of problems) terminal.note(renderError(problem))
    return exitCode
  }
  if (exitCode === exitCodes.interrupted) {
    terminal.note('interrupted')
    return exitCode
  }
  terminal.note(error instanceof Error ? (error.stack ?? error.message) : String(error))
  terminal.note('this is a defect of modalign: please report it with the lines above')
  return exitCode
}
