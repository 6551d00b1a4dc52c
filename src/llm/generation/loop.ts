/** Continuous batching: answers join a running batch as others end, and none depends on its neighbours. */
import { abortError } from '../../runtime/abort.ts'
import { disposedError } from '../../runtime/host.ts'
import type { Answer } from './answer.ts'
import { CacheRows, type GeneratorModel, type MovedRow, type Tokens } from './cache-rows.ts'
import type { GenerationEvent } from './generate-tokens.ts'
import { commonPrefix, slice } from './prefix.ts'

export interface LoopOptions {
  /** Rows at a time; others wait. */
  readonly batchSize: number
}

/** Prompts are read together while their padded tokens stay below this, and a long one in pieces of as many: the scores of attention grow with the square. */
const tokensAtOnce = 512
/** Shorter prefixes are read again: moving rows costs as much. */
const shortestPrefix = 16
/** A longer cache is not kept for the next prompt. */
const longestKept = 2048

/** One caller's answers. */
interface Call {
  readonly events: GenerationEvent[]
  readonly answers: readonly Answer[]
  error: unknown
  /** Tells that there is something to take. */
  wake: () => void
  over: boolean
}
interface Waiting {
  readonly answer: Answer
  readonly call: Call
}
interface Slot extends Waiting {
  /** The token that it has said and not read yet. */
  latest: number
}
interface Placed {
  readonly slot: Slot
  readonly moved: MovedRow
}
/** Prompts that are read together; of a lone one, so many tokens are known. */
interface Group {
  readonly members: readonly Waiting[]
  readonly known: number
}
interface Kept extends Tokens {
  readonly rows: CacheRows
}

export class GenerationLoop {
  readonly #model: GeneratorModel
  readonly #options: LoopOptions
  #rows: CacheRows
  #slots: Slot[] = []
  #waiting: Waiting[] = []
  /** A prompt and answer whose cache is still there: what the next prompts begin with need not be read again. */
  #kept: Kept | undefined
  #running: Promise<void> | undefined

  constructor(model: GeneratorModel, options: LoopOptions) {
    this.#model = model
    this.#options = options
    this.#rows = new CacheRows(model)
  }

  /**
   * Events of the answers, as they come. Leaving the iteration ends them.
   *
   * @throws GENERATION_NOT_FINITE, what a session throws, and an AbortError between tokens
   */
  async *answer(answers: readonly Answer[], signal?: AbortSignal): AsyncGenerator<GenerationEvent> {
    for await (const events of this.together(answers, signal)) yield* events
  }

  /** The same, with the events of one step together. */
  async *together(answers: readonly Answer[], signal?: AbortSignal): AsyncGenerator<readonly GenerationEvent[]> {
    if (signal?.aborted) throw abortError(signal)
    const call: Call = { events: [], answers, error: undefined, wake: () => {}, over: false }
    const abort = (): void => {
      if (signal === undefined) return
      this.#leave(call, abortError(signal))
    }
    signal?.addEventListener('abort', abort)
    this.#waiting.push(...answers.map((answer) => ({ answer, call })))
    this.#running ??= this.#run()
    try {
      let open = answers.length
      while (open > 0) {
        const events = call.events.splice(0)
        if (events.length > 0) {
          open -= events.filter(({ type }) => type === 'end').length
          yield events
          continue
        }
        if (call.error !== undefined) throw call.error
        await new Promise<void>((resolve) => {
          call.wake = resolve
        })
      }
    } finally {
      signal?.removeEventListener('abort', abort)
      this.#leave(call, undefined)
    }
  }

  /** Waits until no answer is under way. */
  async idle(): Promise<void> {
    while (this.#running !== undefined) await this.#running
  }

  /** Ends after the call under way, and gives the caches' memory back. */
  async dispose(): Promise<void> {
    for (const { call } of [...this.#waiting, ...this.#slots]) this.#leave(call, disposedError())
    await this.#running
    await this.#rows.clear()
    await this.#forget()
  }

  #leave(call: Call, error: unknown): void {
    call.over = true
    call.error ??= error
    call.wake()
  }

  async #run(): Promise<void> {
    // What callers submit in one turn joins in one batch.
    await Promise.resolve()
    try {
      while (this.#slots.length > 0 || this.#waiting.length > 0) {
        await this.#admit()
        if (this.#slots.length > 0) await this.#step()
      }
    } catch (error) {
      // The session is at fault, and everyone's tokens went through it.
      for (const { call } of [...this.#slots, ...this.#waiting]) this.#leave(call, error)
      this.#slots = []
      this.#waiting = []
      this.#kept = undefined
    } finally {
      this.#running = undefined
    }
  }

  /** Adds one token to every row. */
  async #step(): Promise<void> {
    const logits = await this.#rows.append(this.#slots.map(({ latest }) => latest))
    for (const [row, slot] of this.#slots.entries()) this.#say(slot, logits[row])
  }

  #say(slot: Slot, logits: Float32Array | undefined): void {
    const { answer, call } = slot
    if (call.over || logits === undefined) return
    try {
      call.events.push(...answer.next(logits))
      slot.latest = answer.ids[answer.ids.length - 1] ?? 0
    } catch (error) {
      this.#leave(call, error)
    }
    call.wake()
  }

  /** Takes ended rows out and new ones in. */
  async #admit(): Promise<void> {
    this.#waiting = this.#waiting.filter((one) => !isOver(one))
    const staying = this.#slots.filter((slot) => !isOver(slot)).length
    const joining = this.#waiting.splice(0, Math.max(0, this.#options.batchSize - staying))
    if (joining.length === 0 && staying === this.#slots.length) return
    if (joining.length === 0 && staying === 0) return this.#rest()
    const joined: Placed[] = []
    for (const group of await this.#groups(joining)) {
      const from = new CacheRows(this.#model)
      const logits = await this.#read(group, from)
      for (const [row, { answer, call }] of group.members.entries()) {
        const slot: Slot = { answer, call, latest: 0 }
        this.#say(slot, logits[row])
        joined.push({ slot, moved: { from, row } })
      }
    }
    await this.#regroup(joined)
  }

  /** Which newcomers are read together. */
  async #groups(joining: readonly Waiting[]): Promise<readonly Group[]> {
    const { continues = false } = this.#model
    const alone: Group[] = []
    let rest = joining
    if (continues) {
      const fresh = rest.filter(({ answer }) => this.#known(answer) < shortestPrefix)
      const shared = fresh.length < 2 ? 0 : this.#shared(fresh)
      if (shared >= shortestPrefix) await this.#keep(fresh, shared)
      const known = (one: Waiting): boolean => this.#known(one.answer) >= shortestPrefix
      const long = ({ answer }: Waiting): boolean => answer.prompt.length > tokensAtOnce
      alone.push(
        ...rest
          .filter((one) => known(one) || long(one))
          .map((one) => ({ members: [one], known: known(one) ? this.#known(one.answer) : 0 })),
      )
      rest = rest.filter((one) => !known(one) && !long(one))
    }
    const together: Group[] = []
    let members: Waiting[] = []
    for (const one of rest) {
      const tokens = Math.max(...[...members, one].map(({ answer }) => answer.prompt.length)) * (members.length + 1)
      if (members.length > 0 && tokens > tokensAtOnce) {
        together.push({ members, known: 0 })
        members = []
      }
      members.push(one)
    }
    if (members.length > 0) together.push({ members, known: 0 })
    return [...together, ...alone]
  }

  /** Logits after the prompts of a group. */
  async #read({ members, known }: Group, rows: CacheRows): Promise<readonly Float32Array[]> {
    const [first] = members
    if (first === undefined) return []
    const { prompt, request } = first.answer
    if (members.length > 1 || (known === 0 && prompt.length <= tokensAtOnce) || this.#model.continues !== true) {
      return rows.read(members.map(({ answer }) => answer.request))
    }
    if (known > 0 && this.#kept !== undefined) await rows.arrange([{ from: this.#kept.rows, row: 0, length: known }])
    let logits: readonly Float32Array[] = []
    for (let start = known; start < prompt.length; start += tokensAtOnce) {
      const piece = slice(request, start, Math.min(start + tokensAtOnce, prompt.length), this.#model.decoder.hiddenSize)
      logits = start === 0 ? await rows.read([piece]) : [await rows.extend(piece)]
    }
    return logits
  }

  /** How many of a prompt's first tokens are in the cache that was kept. One is always read: it tells what comes next. */
  #known({ prompt, request }: Answer): number {
    if (this.#kept === undefined) return 0
    return Math.min(prompt.length - 1, commonPrefix(this.#kept, request, this.#model.decoder.hiddenSize))
  }

  /** What all prompts begin with. */
  #shared(waiting: readonly Waiting[]): number {
    const [first, ...others] = waiting.map(({ answer }) => answer.request)
    if (first === undefined) return 0
    return Math.min(
      first.ids.length - 1,
      ...others.map((other) => Math.min(other.ids.length - 1, commonPrefix(first, other, this.#model.decoder.hiddenSize))),
    )
  }

  /** Reads what prompts begin with, once for all of them. */
  async #keep(waiting: readonly Waiting[], length: number): Promise<void> {
    const [first] = waiting
    if (first === undefined || length > longestKept) return
    await this.#forget()
    const rows = new CacheRows(this.#model)
    const { hiddenSize } = this.#model.decoder
    for (let start = 0; start < length; start += tokensAtOnce) {
      const piece = slice(first.answer.request, start, Math.min(start + tokensAtOnce, length), hiddenSize)
      if (start === 0) await rows.read([piece])
      else await rows.extend(piece)
    }
    this.#kept = { ...slice(first.answer.request, 0, length, hiddenSize), rows }
  }

  /** All have ended: the next prompt may begin with what the only one has read and said. */
  async #rest(): Promise<void> {
    const [last, ...others] = this.#slots
    const length = this.#rows.lengths[0] ?? 0
    this.#slots = []
    if (this.#model.continues !== true || last === undefined || others.length > 0 || length > longestKept) return this.#rows.clear()
    await this.#forget()
    const { request, ids } = last.answer
    this.#kept = {
      ids: [...Array.from(request.ids), ...ids].slice(0, length),
      ...(request.media && { media: request.media }),
      rows: this.#rows,
    }
    this.#rows = new CacheRows(this.#model)
  }

  async #forget(): Promise<void> {
    const kept = this.#kept
    this.#kept = undefined
    await kept?.rows.clear()
  }

  /** Puts those who joined where others have ended, so that most rows stay where they are. */
  async #regroup(joined: readonly Placed[]): Promise<void> {
    const arriving = joined.filter(({ slot }) => !isOver(slot))
    const next = this.#slots.flatMap((slot, row): readonly Placed[] => {
      if (!isOver(slot)) return [{ slot, moved: { from: this.#rows, row } }]
      const replacement = arriving.shift()
      return replacement === undefined ? [] : [replacement]
    })
    next.push(...arriving)
    const caches = new Set(joined.map(({ moved }) => moved.from))
    const [only] = caches
    const adopted =
      only !== undefined && caches.size === 1 && next.length === only.lengths.length && next.every(({ moved }) => moved.from === only)
    if (adopted) {
      await this.#rows.clear()
      this.#rows = only
    } else {
      await this.#rows.arrange(next.map(({ moved }) => moved))
      for (const cache of caches) await cache.clear()
    }
    this.#slots = next.map(({ slot }) => slot)
  }
}

function isOver({ answer, call }: Waiting): boolean {
  return answer.over || call.over
}
