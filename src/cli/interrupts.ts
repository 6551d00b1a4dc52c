/** SIGINT and SIGTERM: the first asks a command to stop in good order, the second ends the process at once. */
import { exitCodes } from './exit-codes.ts'
import type { CliIo } from './terminal.ts'

type SignalName = 'SIGINT' | 'SIGTERM'

const codes = { SIGINT: exitCodes.interrupted, SIGTERM: exitCodes.terminated } as const

export type InterruptCode = (typeof codes)[SignalName]

export interface Interrupts extends Disposable {
  /** Aborted by the first signal. */
  readonly signal: AbortSignal
  /** The exit code that the signal asks for, 130 or 143; undefined: none came. */
  readonly exitCode: InterruptCode | undefined
}

/**
 * Listens until disposed.
 *
 * @param onFirst says to the user what happens now
 * @example
 * using interrupts = listenForInterrupts(io, () => terminal.note('finishing the step'))
 */
export function listenForInterrupts(io: CliIo, onFirst: () => void): Interrupts {
  const { signals = process, exit = (code: number) => process.exit(code) } = io
  const controller = new AbortController()
  let exitCode: InterruptCode | undefined
  const heard = (name: SignalName) => (): void => {
    const code = codes[name]
    if (exitCode !== undefined) {
      exit(code)
      return
    }
    exitCode = code
    onFirst()
    controller.abort()
  }
  const listeners = { SIGINT: heard('SIGINT'), SIGTERM: heard('SIGTERM') }
  signals.on('SIGINT', listeners.SIGINT)
  signals.on('SIGTERM', listeners.SIGTERM)
  return {
    signal: controller.signal,
    get exitCode() {
      return exitCode
    },
    [Symbol.dispose]() {
      signals.off('SIGINT', listeners.SIGINT)
      signals.off('SIGTERM', listeners.SIGTERM)
    },
  }
}
