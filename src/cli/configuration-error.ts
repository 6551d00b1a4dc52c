import { type ErrorData, ModalignError, unreachable } from '../errors.ts'

/** Everything that is wrong with a command's settings, so that one try tells all. Its own details are those of the first problem. */
export class ConfigurationError extends ModalignError {
  readonly problems: readonly ErrorData[]

  constructor(problems: readonly ErrorData[]) {
    const [first] = problems
    super(first ?? unreachable('no problems'))
    this.name = 'ConfigurationError'
    this.problems = problems
  }
}
