/** The owner's end of a generation's worker thread: answers as they come, and their text. */
import { copiedModel } from '../../runtime/node.ts'
import { connectWorker, type WorkerConnection } from '../../runtime/rpc.ts'
import { checkModelSource, type ModelSource, type SessionOptions, withoutUndefined } from '../../runtime/session.ts'
import { parseSessionOptions } from '../../runtime/session-options.ts'
import type { SessionDescription } from '../../runtime/session-worker.ts'
import type { AnswerTexts } from './answer-text.ts'
import type { BeamOptions } from './beams.ts'
import type { GeneratorModel } from './cache-rows.ts'
import type { Beam, GenerationEvent, GenerationRequest } from './generate-tokens.ts'
import type { AnswerEvents, AnswersRequest, GenerationHandlers, OpenGeneration } from './worker.ts'

const entry = new URL(import.meta.url.endsWith('.ts') ? './worker.ts' : './worker.js', import.meta.url)

type Connection = WorkerConnection<GenerationHandlers>

/** Events that have come and were not yet taken. */
interface Stream {
  readonly events: GenerationEvent[]
  wake: () => void
}

/** What a thread opens. */
export interface BuiltGraph {
  readonly model: ModelSource
  /** See `GeneratorModel`. */
  readonly appends: boolean
}

export class GenerationThread {
  readonly description: SessionDescription
  readonly decoder: GeneratorModel['decoder']
  readonly #worker: Connection
  readonly #streams: Map<number, Stream>
  #serial = 0

  private constructor(
    worker: Connection,
    streams: Map<number, Stream>,
    description: SessionDescription,
    decoder: GeneratorModel['decoder'],
  ) {
    this.#worker = worker
    this.#streams = streams
    this.description = description
    this.decoder = decoder
  }

  /**
   * @param build is called once the thread has begun to start, which takes as long as building the graph
   * @param started a thread that has begun to start before
   * @throws as `createSession`, and what `build` throws
   */
  static async open(
    build: () => BuiltGraph,
    { options, decoder, ...rest }: Omit<OpenGeneration, 'source' | 'appends'>,
    { worker, streams } = startThread(options.device),
  ): Promise<GenerationThread> {
    try {
      const checked = parseSessionOptions(options)
      const { model, appends } = build()
      checkModelSource(model)
      const { layers, kvHeads, headDim, hiddenSize, maxPositions, hasEncoder, longAfter } = decoder
      const plain = { layers, kvHeads, headDim, hiddenSize, maxPositions, ...withoutUndefined({ hasEncoder, longAfter }) }
      const copy = copiedModel(model)
      const request = { source: copy.model, options: checked, decoder: plain, appends, ...rest }
      return new GenerationThread(worker, streams, await worker.call('open', request, { transfer: copy.buffers }), decoder)
    } catch (error) {
      await worker.dispose()
      throw error
    }
  }

  /** @throws what the thread throws, and an AbortError between tokens. Leaving the iteration ends the answers. */
  async *answers(
    requests: readonly (GenerationRequest & { readonly key?: string })[],
    options: AnswersRequest['options'],
    texts: AnswerTexts,
    signal?: AbortSignal,
  ): AsyncGenerator<GenerationEvent> {
    const call = this.#serial++
    const stream: Stream = { events: [], wake: () => {} }
    this.#streams.set(call, stream)
    const leaving = new AbortController()
    const ended: { error?: unknown } = {}
    let over = false
    const plain = requests.map(({ ids, media, key }, row) => ({ ids: Array.from(ids), ...(media && { media }), key: key ?? `${row}` }))
    const all = signal === undefined ? leaving.signal : AbortSignal.any([leaving.signal, signal])
    this.#worker
      .call('answer', { call, requests: plain, options }, { signal: all })
      .catch((error: unknown) => {
        ended.error = error
      })
      .finally(() => {
        over = true
        stream.wake()
      })
    try {
      let open = requests.length
      while (open > 0) {
        const [event] = stream.events.splice(0, 1)
        if (event !== undefined) {
          for (const one of texts.of(event)) {
            if (one.type === 'end') open--
            if (one.type === 'end' && event.type === 'token') await this.#worker.call('leave', { call, row: one.row })
            yield one
          }
        } else if (over) {
          throw ended.error ?? new Error('internal: the thread ended a call before its answers')
        } else {
          await new Promise<void>((resolve) => {
            stream.wake = resolve
          })
        }
      }
    } finally {
      this.#streams.delete(call)
      leaving.abort()
    }
  }

  async beams(request: GenerationRequest, options: BeamOptions, signal?: AbortSignal): Promise<readonly Beam[]> {
    return this.#worker.call('beams', { request: plainRequest(request), options }, { ...(signal && { signal }) })
  }

  async scores(request: GenerationRequest, answers: readonly (readonly number[])[], signal?: AbortSignal): Promise<readonly number[]> {
    return this.#worker.call('scores', { request: plainRequest(request), answers }, { ...(signal && { signal }) })
  }

  /** Waits until no answer is under way. */
  async idle(): Promise<void> {
    await this.#worker.call('idle', undefined)
  }

  async dispose(): Promise<void> {
    await this.#worker.dispose()
  }
}

/** A thread that begins to start. */
export interface StartedThread {
  readonly worker: Connection
  readonly streams: Map<number, Stream>
}

/** It starts, and loads ONNX Runtime, while its owner does other things. */
export function startThread(device: SessionOptions['device']): StartedThread {
  const streams = new Map<number, Stream>()
  const worker = connectWorker<GenerationHandlers, AnswerEvents>(entry, {
    name: 'modalign generation',
    onEvent({ call, events }) {
      const stream = streams.get(call)
      stream?.events.push(...events)
      stream?.wake()
    },
  })
  // What keeps it from loading ONNX Runtime, `open` meets again, and says.
  if (device !== 'wasm') worker.call('prepare', undefined).catch(() => undefined)
  return { worker, streams }
}

function plainRequest({ ids, media }: GenerationRequest): GenerationRequest {
  return { ids: Array.from(ids), ...(media && { media }) }
}
