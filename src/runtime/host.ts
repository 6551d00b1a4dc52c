/** The part of a session that is the same on every back end: checks, the queue, carried values, abort, disposal. No imports from Node here. */
import { ModalignError } from '../errors.ts'
import { PlaneMaker } from '../pixel-planes.ts'
import type { NamedTensors, TensorValue } from '../tensors.ts'
import { abortError, unlessAborted } from './abort.ts'
import { appendPlaces, arrangeRows, type CarriedRow } from './carried-rows.ts'
import { checkComplete, checkPixels, checkValues, oneOf, pointer } from './feeds.ts'
import type { Device, PassedOver, RunOptions, Session, TensorDescription } from './session.ts'

/** One loaded model of a back end. Never called twice at a time. */
export interface Backend {
  readonly inputs: readonly TensorDescription[]
  readonly outputs: readonly TensorDescription[]
  /** `feeds` are complete and checked; `fetch` are names of outputs, at least one. The values are the caller's alone. */
  run(feeds: NamedTensors, fetch: readonly string[]): Promise<NamedTensors>
  release(): Promise<void>
}

/** `aborted` answers at once where the signal's event could not be delivered yet because a native run blocked the thread. */
export interface HostRunOptions extends RunOptions {
  readonly aborted?: () => boolean
}
export interface HostedSession extends Session {
  run(feeds: NamedTensors, options?: HostRunOptions): Promise<NamedTensors>
}

/** A {@link Session} over a back end. */
export function hostSession(
  backend: Backend,
  chosen: { readonly device: Device; readonly passedOver: readonly PassedOver[] },
): HostedSession {
  const { inputs, outputs } = backend
  const closing = new AbortController()
  const sets = new Map<string, NamedTensors>()
  /** By input: none writes over another's tensor. */
  const makers = new Map<string, PlaneMaker>()
  const makerOf = (input: string): PlaneMaker => {
    const maker = makers.get(input) ?? new PlaneMaker()
    makers.set(input, maker)
    return maker
  }
  const keep = (set: string, values: NamedTensors): void => {
    if (Object.keys(values).length === 0) sets.delete(set)
    else sets.set(set, values)
  }
  let tail: Promise<unknown> = Promise.resolve()
  let disposal: Promise<void> | undefined

  /** Runs the work when all work before it has ended, whether or not its caller still waits. */
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const result = tail.then(work)
    tail = result.catch(() => undefined)
    return result
  }
  const closed = { signal: closing.signal, error: disposedError }

  const run = async (feeds: NamedTensors, options: HostRunOptions = {}): Promise<NamedTensors> => {
    const { signal, aborted = () => signal?.aborted === true, carrySet = '', append, pixels = {} } = options
    if (closing.signal.aborted) throw disposedError()
    if (signal?.aborted) throw abortError(signal)
    const { carry, fetch, wanted } = planOutputs(options, inputs, outputs)
    checkValues(feeds, inputs)
    checkPixels(pixels)
    const work = async () => {
      if (closing.signal.aborted) throw disposedError()
      if (aborted()) throw signal === undefined ? disposedError() : abortError(signal)
      const carried = sets.get(carrySet)
      const made = Object.entries(pixels).map(([name, one]) => [name, makerOf(name).tensor(one)] as const)
      const complete = { ...carried, ...feeds, ...Object.fromEntries(made) }
      checkComplete(complete, inputs)
      if (carried !== undefined || made.length > 0) checkValues(complete, inputs)
      const values = await backend.run(complete, [...wanted])
      if (!aborted() && !closing.signal.aborted) {
        if (append !== undefined) appendPlaces(carried ?? {}, outputValue(values, append.output), append)
        if (carry.size > 0)
          keep(carrySet, { ...carried, ...Object.fromEntries([...carry].map(([output, input]) => [input, outputValue(values, output)])) })
      }
      return Object.fromEntries(fetch.map((name) => [name, outputValue(values, name)]))
    }
    return unlessAborted(inTurn(work), signal === undefined ? [closed] : [closed, { signal, error: () => abortError(signal) }])
  }

  const setCarried = async (values: NamedTensors, set = ''): Promise<void> => {
    if (closing.signal.aborted) throw disposedError()
    checkValues(values, inputs)
    const next = { ...values }
    await unlessAborted(
      inTurn(async () => keep(set, next)),
      [closed],
    )
  }

  const arrangeCarried = async (set: string, rows: readonly CarriedRow[], capacity?: number): Promise<void> => {
    if (closing.signal.aborted) throw disposedError()
    await unlessAborted(
      inTurn(async () => keep(set, arrangeRows(sets, set, rows, capacity))),
      [closed],
    )
  }

  const dispose = (): Promise<void> => {
    disposal ??= (async () => {
      closing.abort()
      await tail
      sets.clear()
      makers.clear()
      await backend.release()
    })()
    return disposal
  }

  return { ...chosen, inputs, outputs, run, setCarried, arrangeCarried, dispose, [Symbol.asyncDispose]: dispose }
}

export function disposedError(): ModalignError {
  return new ModalignError({ code: 'RUNTIME_DISPOSED', got: 'a call on a session that was disposed' })
}

interface OutputPlan {
  /** Output name -> input name. */
  readonly carry: ReadonlyMap<string, string>
  readonly fetch: readonly string[]
  /** What the back end must compute: fetched, carried and appended. */
  readonly wanted: ReadonlySet<string>
}

/** Which outputs are returned and which stay. @throws {ModalignError} `RUNTIME_FETCH`, `RUNTIME_CARRY` */
export function planOutputs(
  options: Pick<RunOptions, 'fetch' | 'carry' | 'append'>,
  inputs: readonly TensorDescription[],
  outputs: readonly TensorDescription[],
): OutputPlan {
  const outputOf = new Map(outputs.map((output) => [output.name, output]))
  const inputOf = new Map(inputs.map((input) => [input.name, input]))
  const carry = new Map(Object.entries(options.carry ?? {}))
  const targets = new Set<string>()
  for (const [from, to] of carry) {
    const output = outputOf.get(from)
    const input = inputOf.get(to)
    const field = `/carry${pointer(from)}`
    if (output === undefined)
      throw new ModalignError({ code: 'RUNTIME_CARRY', field, got: `output '${from}'`, expected: oneOf(outputOf.keys()) })
    if (input === undefined)
      throw new ModalignError({ code: 'RUNTIME_CARRY', field, got: `input '${to}'`, expected: oneOf(inputOf.keys()) })
    if (output.dtype !== input.dtype || output.dims.length !== input.dims.length)
      throw new ModalignError({
        code: 'RUNTIME_CARRY',
        field,
        got: `${output.dtype} of rank ${output.dims.length}`,
        expected: `${input.dtype} of rank ${input.dims.length}, as input '${to}'`,
      })
    if (targets.has(to))
      throw new ModalignError({ code: 'RUNTIME_CARRY', field, got: `a second output for input '${to}'`, expected: 'one' })
    targets.add(to)
  }
  const appended = options.append?.output
  if (appended !== undefined && !outputOf.has(appended))
    throw new ModalignError({
      code: 'RUNTIME_CARRY',
      field: '/append/output',
      got: `output '${appended}'`,
      expected: oneOf(outputOf.keys()),
    })
  const fetch = [...new Set(options.fetch ?? outputs.map((output) => output.name).filter((name) => !carry.has(name) && name !== appended))]
  for (const [index, name] of fetch.entries()) {
    if (!outputOf.has(name))
      throw new ModalignError({
        code: 'RUNTIME_FETCH',
        field: `/fetch/${index}`,
        got: `output '${name}'`,
        expected: oneOf(outputOf.keys()),
      })
    if (carry.has(name))
      throw new ModalignError({
        code: 'RUNTIME_FETCH',
        field: `/fetch/${index}`,
        got: `'${name}', which is carried`,
        expected: 'an output that is not carried',
      })
  }
  const wanted = new Set([...fetch, ...carry.keys(), ...(appended === undefined ? [] : [appended])])
  if (wanted.size === 0) throw new ModalignError({ code: 'RUNTIME_FETCH', field: '/fetch', got: 'no outputs', expected: 'at least one' })
  return { carry, fetch, wanted }
}

function outputValue(values: NamedTensors, name: string): TensorValue {
  const value = values[name]
  if (value === undefined)
    throw new ModalignError({ code: 'RUNTIME_RUN_FAILED', got: `no value for output '${name}'`, expected: 'a tensor' })
  return value
}
