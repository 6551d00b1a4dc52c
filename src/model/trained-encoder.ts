/** Encoders of which something is trained: LoRA, or weights of their own. */
import { createHash } from 'node:crypto'
import { z } from 'zod'
import { ModalignError, unreachable } from '../errors.ts'
import { initialValue } from '../graph/initial-values.ts'
import { type Parameter, ParameterScope, type Trainables, type TrainableValue } from '../graph/parameters.ts'
import { checkpointValues } from '../llm/adapters/adapt.ts'
import { loadWeights, saveWeights } from '../llm/adapters/adapter-files.ts'
import { checkedValues, presentWeights } from '../llm/adapters/parameter-values.ts'
import { adaptedWeights, planWeights, traceWeights, type WeightPlan } from '../llm/adapters/plan.ts'
import { type AdapterSettings, adapterShape, loraSchema } from '../llm/adapters/settings.ts'
import { lower } from '../onnx/lower.ts'
import { createSession } from '../runtime/node.ts'
import { type Session, type SessionOptions, withoutUndefined } from '../runtime/session.ts'
import type { NamedTensors } from '../tensors.ts'
import type { Encoder, EncoderGraph, EncoderUnit, Features, Modality, TrainedEncoder } from './contracts.ts'

/** What callers and run files say. */
export const trainableSchema = z.strictObject({
  /** As a language model's, without dropout. Names of layers are Transformers': `q_proj`, `encoder.layers.3.mlp.fc1`. */
  lora: loraSchema.extend({ dropout: z.literal(0).default(0) }).optional(),
  unfreeze: adapterShape.unfreeze,
})

export interface AdaptEncoderOptions {
  /** What is trained: a LoRA, weights that patterns choose (`unfreeze`), or `true`: all weights. */
  readonly trainable: true | z.input<typeof trainableSchema>
  /** Of the first values. Default 0. */
  readonly seed?: number | undefined
  /** Of the session that encodes with the trained values. Default: ONNX Runtime's. */
  readonly threads?: number | undefined
}

/**
 * An encoder whose layers are part of the training step, for `compose` and `tune`; the encoder given is closed with it. Only encoders that are built as graphs can be: those
 * from safetensors, one for all pictures of a run or window by window for sounds.
 *
 * @throws ENCODER_NOT_TRAINABLE (a bare ONNX file, or one made of others), ADAPTER_OPTIONS, ADAPTER_TARGET (a name or pattern chooses nothing)
 * @example
 * const encoder = await adaptEncoder(await clip('models/clip-vit-base-patch32'), { trainable: { lora: { rank: 8, targets: ['q_proj', 'v_proj'] } } })
 * const model = await compose({ llm, image: { encoder, projector: mlp() } })
 */
export async function adaptEncoder<M extends Modality>(encoder: Encoder<M>, options: AdaptEncoderOptions): Promise<Encoder<M>> {
  const parts = prepared(encoder, trainableSettings(options.trainable))
  const values: Record<string, TrainableValue> = {}
  for (const parameter of parts.plan.declared) values[parameter.name] = initialValue(parameter, options.seed ?? 0)
  Object.assign(values, await checkpointValues((change) => parts.graph.build(parts.graph.inputs, change), parts.plan))
  return adapted(encoder, parts, values, options.threads)
}

/** The settings with defaults filled in. @throws ADAPTER_OPTIONS */
export function trainableSettings(trainable: AdaptEncoderOptions['trainable']): AdapterSettings {
  const parsed = trainableSchema.safeParse(trainable === true ? { unfreeze: 'all' } : trainable)
  const [issue] = parsed.error?.issues ?? []
  if (parsed.success && (parsed.data.lora ?? parsed.data.unfreeze) !== undefined) return parsed.data
  const path = issue?.code === 'unrecognized_keys' ? [...issue.path, ...issue.keys.slice(0, 1)] : (issue?.path ?? [])
  throw new ModalignError({
    code: 'ADAPTER_OPTIONS',
    field: `/trainable${path.map((part) => `/${String(part)}`).join('')}`,
    got: JSON.stringify(trainable) ?? 'nothing',
    expected: issue?.message ?? 'lora or unfreeze',
  })
}

/** Writes what is trained of an encoder: `lora/` as PEFT has it, and `unfrozen.safetensors`. @throws what writing throws */
export async function saveTrainedEncoder(encoder: Encoder, folder: string): Promise<void> {
  const { trained } = encoder
  if (trained === undefined) return unreachable('only what is trained is saved')
  const { plan } = prepared(trained.base, trained.settings)
  const name = trained.base.recipe?.model ?? trained.base.label
  await saveWeights(plan, scopeOf(encoder.modality), trained.parameters, { name, taskType: null, fanInFanOut: false }, folder)
}

/** An encoder with what {@link saveTrainedEncoder} wrote. @throws ENCODER_NOT_TRAINABLE, ADAPTER_*, SAFETENSORS_* */
export async function loadTrainedEncoder<M extends Modality>(
  encoder: Encoder<M>,
  settings: AdapterSettings,
  folder: string,
): Promise<Encoder<M>> {
  const parts = prepared(encoder, settings)
  try {
    return adapted(encoder, parts, await loadWeights(settings, scopeOf(encoder.modality), folder), undefined)
  } catch (error) {
    throw error instanceof ModalignError ? new ModalignError({ ...error.details, file: error.details.file ?? folder, cause: error }) : error
  }
}

const scopeOf = (modality: Modality): string => `${modality}-encoder`

interface Prepared {
  readonly graph: EncoderGraph
  readonly settings: AdapterSettings
  readonly plan: WeightPlan & { readonly declared: readonly Parameter[] }
}

/** @throws ENCODER_NOT_TRAINABLE, ADAPTER_TWICE, ADAPTER_TARGET */
function prepared(encoder: Encoder, settings: AdapterSettings): Prepared {
  const { graph, modality, label } = encoder
  if (encoder.trained !== undefined)
    throw new ModalignError({
      code: 'ADAPTER_TWICE',
      field: label,
      got: 'an encoder of which something is trained',
      expected: 'a frozen one',
    })
  if (graph === undefined)
    throw new ModalignError({
      code: 'ENCODER_NOT_TRAINABLE',
      field: label,
      got: 'an encoder without layers of its own',
      expected: 'one that is built from safetensors',
      hint: "an ONNX file is run as it is: give the model's Hugging Face folder with its safetensors",
    })
  const { change, ...trace } = traceWeights()
  graph.build(graph.inputs, change)
  const scope = new ParameterScope(scopeOf(modality))
  const plan = planWeights(trace, settings, scope)
  return { graph, settings, plan: { ...plan, declared: scope.parameters } }
}

function adapted<M extends Modality>(
  base: Encoder<M>,
  { graph, settings, plan }: Prepared,
  values: Trainables,
  threads: number | undefined,
): Encoder<M> {
  const { declared } = plan
  let parameters = checkedValues(declared, values)
  let session: Promise<Session> | undefined
  /** Sessions with earlier values: each is told to close behind the runs that it has. */
  let closing: Promise<unknown> = Promise.resolve()
  const close = (): void => {
    const open = session
    session = undefined
    if (open !== undefined) closing = Promise.all([closing, open.then((one) => one.dispose())])
  }
  const trained: TrainedEncoder = {
    base,
    settings,
    declared,
    get parameters() {
      return parameters
    },
    setParameters(next) {
      parameters = checkedValues(declared, next)
      close()
      // A failure to close is met when the encoder is disposed of.
      closing.catch(() => undefined)
    },
    graph: {
      inputs: graph.inputs,
      units: (inputs) => graph.units(inputs),
      feeds: (units) => graph.feeds(units),
      build: (inputs) =>
        graph.build(
          inputs,
          adaptedWeights(plan, ({ tensor }) => tensor),
        ),
    },
  }
  const place: Place = { device: base.device ?? 'auto', ...withoutUndefined({ threads }) }
  return {
    ...base,
    get fingerprint() {
      return trainedFingerprint(base, settings, parameters)
    },
    graph: { ...trained.graph, build: (inputs) => trained.graph.build(inputs) },
    trained,
    async encode(inputs, { signal } = {}) {
      session ??= openPresent(graph, plan, parameters, place)
      return encodeUnits(await session, graph, inputs, base, signal)
    },
    async dispose() {
      close()
      await Promise.all([closing, base.dispose()])
    },
  }
}

/** Of two encoders with one fingerprint the features are the same. */
function trainedFingerprint(base: Encoder, settings: AdapterSettings, parameters: Trainables): string {
  const hash = createHash('sha256').update(JSON.stringify(['trained 1', base.fingerprint, settings]))
  for (const [name, { data }] of Object.entries(parameters)) hash.update(name).update(data)
  return hash.digest('hex')
}

type Place = Pick<SessionOptions, 'device' | 'threads'>

async function openPresent(graph: EncoderGraph, plan: Prepared['plan'], values: Trainables, place: Place): Promise<Session> {
  const features = graph.build(graph.inputs, adaptedWeights(plan, presentWeights(plan.declared, values)))
  const { bytes, externalRoot, externalData } = lower({ outputs: { features }, inputs: graph.inputs })
  return createSession(withoutUndefined({ bytes, externalRoot, externalData }), place)
}

/** Units in one run at most. */
const most = 8

async function encodeUnits(
  session: Session,
  graph: EncoderGraph,
  inputs: readonly NamedTensors[],
  { width, label }: Encoder,
  signal: AbortSignal | undefined,
): Promise<Features> {
  const media = inputs.map((named) => graph.units(named))
  const counts = media.map((units) => units.reduce((sum, { tokens }) => sum + tokens, 0))
  const [tokens = 0] = counts
  if (counts.some((count) => count !== tokens))
    throw new ModalignError({
      code: 'ENCODER_INPUT',
      field: label,
      got: `media of ${[...new Set(counts)].join(', ')} tokens`,
      expected: 'media of one number of tokens in one call',
    })
  const data = new Float32Array(media.length * tokens * width)
  let offset = 0
  const places = media.flat().map((unit) => {
    const place = { unit, offset }
    offset += unit.tokens * width
    return place
  })
  for (const alike of bySize(places)) {
    for (let start = 0; start < alike.length; start += most) {
      const some = alike.slice(start, start + most)
      const { features } = await session.run(graph.feeds(some.map(({ unit }) => unit)), signal === undefined ? {} : { signal })
      if (features?.dtype !== 'float32') return unreachable('features are float32')
      const each = features.data.length / some.length
      for (const [index, place] of some.entries())
        data.set(features.data.subarray(index * each, index * each + place.unit.tokens * width), place.offset)
    }
  }
  return { count: media.length, tokens, width, data }
}

function bySize<P extends { readonly unit: EncoderUnit }>(places: readonly P[]): readonly (readonly P[])[] {
  const groups = new Map<string, P[]>()
  for (const place of places) {
    const key = place.unit.value.dims.join()
    groups.set(key, [...(groups.get(key) ?? []), place])
  }
  return [...groups.values()]
}
