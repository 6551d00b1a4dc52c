/** Generation in a session of its own, opened when it is first needed: what a loaded language model generates with. */
import { ModalignError } from '../errors.ts'
import { randomStream } from '../random.ts'
import { createSession } from '../runtime/node.ts'
import type { DeviceRequest, Session } from '../runtime/session.ts'
import type { Decoder, PresentValues } from './decoder.ts'
import {
  type GenerationEvent,
  type GenerationOptions,
  type GenerationRequest,
  generateTokens,
  generationOptionsSchema,
} from './generation.ts'
import { generationGraph } from './generation-graph.ts'

export interface GeneratorOptions {
  /** Where generation runs. Default `auto`. */
  readonly device?: DeviceRequest
  /** Threads of one run on the CPU. */
  readonly threads?: number
  /** Repack the weights for speed. Default true. False shares the mapped pages of the weights' file with every other session that does, and opens in a moment. */
  readonly prepacking?: boolean
}

/** A request with the key that its random numbers hang on; default: its place in the batch. */
export interface KeyedRequest extends GenerationRequest {
  readonly key?: string
}

export interface TextGenerator extends AsyncDisposable {
  /** Where generation runs; known once it has. */
  readonly session: () => Promise<Session>
  /**
   * Tokens for every request, as they come. Requests run as one batch; two calls run one after another.
   *
   * @throws GENERATION_OPTIONS, GENERATION_TOO_LONG, GENERATION_MEDIA, or an AbortError between tokens.
   */
  generate(
    requests: readonly KeyedRequest[],
    options?: GenerationOptions & { readonly signal?: AbortSignal },
  ): AsyncGenerator<GenerationEvent>
  dispose(): Promise<void>
}

export interface GeneratorSource {
  readonly decoder: Decoder
  /** Where an answer ends, unless a call says otherwise. */
  readonly stopTokenIds: readonly number[]
  /** What a call does not say. */
  readonly defaults: GenerationOptions
}

/** Opens nothing yet. */
export function createGenerator({ decoder, stopTokenIds, defaults }: GeneratorSource, options: GeneratorOptions = {}): TextGenerator {
  let opened: Promise<Session> | undefined
  /** The values of adapters that it was opened with. */
  let openedWith: PresentValues | undefined
  let turn: Promise<void> = Promise.resolve()

  const session = async (): Promise<Session> => {
    const present = decoder.trained?.present()
    if (present !== openedWith) await dispose()
    openedWith = present
    opened ??= openGeneration(decoder, options)
    return opened
  }

  async function* generate(
    requests: readonly KeyedRequest[],
    { signal, ...given }: GenerationOptions & { readonly signal?: AbortSignal } = {},
  ): AsyncGenerator<GenerationEvent> {
    const checked = generationOptionsSchema.safeParse(given)
    if (!checked.success) {
      const [issue] = checked.error.issues
      throw new ModalignError({ code: 'GENERATION_OPTIONS', field: `/${issue?.path.join('/') ?? ''}`, expected: issue?.message })
    }
    if (requests.length === 0) return
    // One batch at a time: the cache beside the session belongs to the batch under way.
    const before = turn
    let done: () => void = () => {}
    turn = new Promise((resolve) => {
      done = resolve
    })
    await before
    try {
      const seed = checked.data.seed ?? 0
      const streams = requests.map(({ key }, row) => randomStream({ seed, stream: `generate/${key ?? row}` }))
      const draw = (row: number, index: number): number => streams[row]?.uniform(index) ?? 0
      const present = decoder.trained?.present().decoder ?? decoder
      yield* generateTokens({ session: await session(), decoder: present }, withSoftPrompt(requests, decoder), {
        ...defaults,
        ...checked.data,
        stopTokenIds: checked.data.stopTokenIds ?? stopTokenIds,
        draw,
        ...(signal === undefined ? {} : { signal }),
      })
    } finally {
      done()
    }
  }

  const dispose = async (): Promise<void> => {
    if (opened === undefined) return
    const closing = opened
    opened = undefined
    await (await closing).dispose()
  }
  return { session, generate, dispose, [Symbol.asyncDispose]: dispose }
}

/** A soft prompt takes the first places of every sequence, as media do theirs. */
function withSoftPrompt(requests: readonly KeyedRequest[], { trained, hiddenSize }: Decoder): readonly KeyedRequest[] {
  if (trained?.softPrompt === undefined) return requests
  const { softPrompt } = trained.present()
  const places = new Array<number>(softPrompt.length / hiddenSize).fill(-1)
  return requests.map(({ ids, media = new Float32Array(0), ...request }) => {
    const rows = new Float32Array(softPrompt.length + media.length)
    rows.set(softPrompt)
    rows.set(media, softPrompt.length)
    return { ...request, ids: [...places, ...Array.from(ids)], media: rows }
  })
}

async function openGeneration(decoder: Decoder, { device, threads, prepacking }: GeneratorOptions): Promise<Session> {
  const { bytes, externalRoot, externalData } = generationGraph(decoder)
  return createSession(
    { bytes, ...(externalRoot === undefined ? {} : { externalRoot }), ...(externalData === undefined ? {} : { externalData }) },
    {
      ...(device === undefined ? {} : { device }),
      ...(threads === undefined ? {} : { threads }),
      ...(prepacking === undefined ? {} : { prepacking }),
      memoryPattern: false,
    },
  )
}
