/** One model in several sessions, so that several runs go on at once. */
import { ModalignError, unreachable } from '../errors.ts'
import type { NamedTensors } from '../tensors.ts'
import { createSession } from './node.ts'
import type { ModelSource, RunOptions, Session, SessionOptions } from './session.ts'

/** What sessions without carried values have in common. */
export interface SessionPool extends Pick<Session, 'device' | 'passedOver' | 'inputs' | 'outputs'>, AsyncDisposable {
  /** How many runs go on at once. */
  readonly sessions: number
  /** As {@link Session.run}, in the session that has the fewest runs to do. */
  run(feeds: NamedTensors, options?: Pick<RunOptions, 'fetch' | 'pixels' | 'giveFeeds' | 'signal'>): Promise<NamedTensors>
  dispose(): Promise<void>
}

/**
 * Opens `count` sessions on the CPU, each with the options' threads; on any other device one, which has the device to itself. Several one-thread sessions keep all cores
 * busy where one session with several threads leaves them idle between operators, for as many copies of the weights. Their idle threads do not spin unless `spinning` says so.
 *
 * @throws {ModalignError} `RUNTIME_OPTIONS`, and as {@link createSession}
 * @example
 * await using pool = await createSessionPool({ bytes: await readFile('encoder.onnx') }, { device: 'cpu', threads: 1 }, 2)
 * const [a, b] = await Promise.all([pool.run({ pixels: first }), pool.run({ pixels: second })])
 */
export async function createSessionPool(model: ModelSource, options: SessionOptions = {}, count = 1): Promise<SessionPool> {
  if (!Number.isSafeInteger(count) || count < 1)
    throw new ModalignError({ code: 'RUNTIME_OPTIONS', field: '/sessions', got: `${count}`, expected: 'a whole number of at least 1' })
  const settings: SessionOptions = count > 1 ? { spinning: false, ...options } : options
  const first = await createSession(model, settings)
  const members = [{ session: first, pending: 0 }]
  const dispose = async (): Promise<void> => {
    await Promise.all(members.map(({ session }) => session.dispose()))
  }
  try {
    // One after another: each needs the model's memory twice while it is opened.
    while (first.device === 'cpu' && members.length < count) members.push({ session: await createSession(model, settings), pending: 0 })
  } catch (error) {
    await dispose()
    throw error
  }
  const { device, passedOver, inputs, outputs } = first
  return {
    device,
    passedOver,
    inputs,
    outputs,
    sessions: members.length,
    async run(feeds, runOptions = {}) {
      const member = members.reduce((least, one) => (one.pending < least.pending ? one : least), members[0] ?? unreachable('no session'))
      member.pending++
      try {
        return await member.session.run(feeds, runOptions)
      } finally {
        member.pending--
      }
    },
    dispose,
    [Symbol.asyncDispose]: dispose,
  }
}
