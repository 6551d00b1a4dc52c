/**
 * The worker thread in which a generator's model, its cache and the choice of tokens live: see `generator.ts`. A step of decoding takes milliseconds; with the choice on
 * another thread, waking the two of them in turns would take a quarter of that.
 */
import { unreachable } from '../../errors.ts'
import { randomStream } from '../../random.ts'
import { openCheckedSession } from '../../runtime/checked-session.ts'
import type { HostedSession } from '../../runtime/host.ts'
import { loadNative } from '../../runtime/native.ts'
import { type CallContext, serve } from '../../runtime/rpc.ts'
import type { ModelSource, SessionOptions } from '../../runtime/session.ts'
import type { SessionDescription } from '../../runtime/session-worker.ts'
import { Answer } from './answer.ts'
import { type BeamOptions, searchBeams } from './beams.ts'
import type { GeneratorModel } from './cache-rows.ts'
import { scoreAnswers } from './choices.ts'
import type { Beam, GenerationEvent, GenerationRequest } from './generate-tokens.ts'
import { cacheContinues } from './graph-names.ts'
import { GenerationLoop } from './loop.ts'
import type { GenerationOptions } from './options.ts'

export interface OpenGeneration {
  readonly source: ModelSource
  readonly options: SessionOptions
  readonly decoder: GeneratorModel['decoder']
  readonly appends: boolean
  readonly batchSize: number
}
export interface AnswersRequest {
  /** The caller's number for this call: its events carry it. */
  readonly call: number
  readonly requests: readonly (GenerationRequest & { readonly key: string })[]
  readonly options: GenerationOptions & { readonly stopTokenIds: readonly number[] }
}
/** Events of a call, without text. */
export interface AnswerEvents {
  readonly call: number
  readonly events: readonly GenerationEvent[]
}

let opened: { readonly session: HostedSession; readonly model: GeneratorModel; readonly loop: GenerationLoop } | undefined
const generation = () => opened ?? unreachable('a call before open')
const underWay = new Map<number, readonly Answer[]>()

const handlers = {
  /** Loads ONNX Runtime while the owner still builds the graph. */
  async prepare(): Promise<void> {
    await loadNative()
  },

  async open({ source, options, decoder, appends, batchSize }: OpenGeneration): Promise<SessionDescription> {
    const session = await openCheckedSession(source, options)
    const { device, passedOver, inputs, outputs } = session
    const model = { session, decoder, appends, continues: cacheContinues(decoder, device) }
    opened = { session, model, loop: new GenerationLoop(model, { batchSize }) }
    return { device, passedOver, inputs, outputs }
  },

  /** Ends when all of its answers have; an abort ends them. */
  async answer({ call, requests, options }: AnswersRequest, { signal }: CallContext): Promise<void> {
    const { loop, model } = generation()
    const seed = options.seed ?? 0
    const answers = requests.map((request, row) => {
      const stream = randomStream({ seed, stream: `generate/${request.key}` })
      const draw = (index: number): number => stream.uniform(index)
      return new Answer({ request, options, row, draw }, model.decoder.maxPositions)
    })
    underWay.set(call, answers)
    try {
      for await (const events of loop.together(answers, signal)) emit({ call, events })
    } finally {
      underWay.delete(call)
    }
  },

  /** No more of this answer is wanted. */
  leave({ call, row }: { readonly call: number; readonly row: number }): void {
    underWay.get(call)?.[row]?.leave()
  },

  async idle(): Promise<void> {
    await generation().loop.idle()
  },

  async beams(
    { request, options }: { readonly request: GenerationRequest; readonly options: BeamOptions },
    { signal }: CallContext,
  ): Promise<readonly Beam[]> {
    return searchBeams(generation().model, request, options, signal)
  },

  async scores(
    { request, answers }: { readonly request: GenerationRequest; readonly answers: readonly (readonly number[])[] },
    { signal }: CallContext,
  ): Promise<readonly number[]> {
    return scoreAnswers(generation().model, request, answers, signal)
  },
}
export type GenerationHandlers = typeof handlers

const { emit } = serve<AnswerEvents>(handlers, {
  async dispose() {
    await opened?.loop.dispose()
    await opened?.session.dispose()
  },
})
