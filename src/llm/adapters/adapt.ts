/** Language models of which something is trained: LoRA, soft prompts, weights of their own. */
import { ModalignError } from '../../errors.ts'
import { initialValue } from '../../graph/initial-values.ts'
import type { Trainables, TrainableValue } from '../../graph/parameters.ts'
import { integers, type Tensor } from '../../graph/tensor.ts'
import { lower } from '../../onnx/lower.ts'
import { createSession } from '../../runtime/node.ts'
import type { Decoder, PresentValues, WeightLookup } from '../decoder.ts'
import type { Adapters, LanguageModel } from '../language-model.ts'
import { checkedValues, presentWeights, valueIn } from './parameter-values.ts'
import { type AdapterPlan, adaptedDecoder, dropoutOf, planAdapters, type WeightPlan } from './plan.ts'
import { type AdapterOptions, type AdapterSettings, parseAdapterOptions } from './settings.ts'

export interface AdaptOptions extends AdapterOptions {
  /** Of the first values. Default 0. */
  readonly seed?: number
}

/** A language model of which something is trained. Its other parts are those of the model that it was made from, whose owner closes that one too. */
export interface AdaptedLanguageModel extends LanguageModel {
  readonly adapters: Adapters
}

/**
 * A language model with adapters, for `compose` and `tune`, or to generate with. The model given stays as it is.
 *
 * * `lora`: W x + (alpha / rank) B A x in chosen linear layers (Hu et al. 2021). B begins as 0, so that nothing changes at first.
 * * `softPrompt`: learned embeddings in front of every sequence (Lester et al. 2021).
 * * `unfreeze`: weights trained themselves, all or those that patterns choose.
 *
 * @throws ADAPTER_OPTIONS, ADAPTER_TARGET (a name or pattern chooses nothing), ADAPTER_TWICE (the model has adapters)
 * @example
 * const llm = await adapt(await loadLanguageModel('models/SmolLM2-135M-Instruct'), { lora: { rank: 16, alpha: 32, targets: 'all-linear', dropout: 0.05 } })
 * const model = await compose({ llm, image: { encoder, projector: mlp({ depth: 2 }) } })
 */
export async function adapt(llm: LanguageModel, { seed = 0, ...options }: AdaptOptions): Promise<AdaptedLanguageModel> {
  const settings = parseAdapterOptions(options)
  const { adapted, plan } = prepared(llm, settings)
  const values: Record<string, TrainableValue> = {}
  for (const parameter of plan.parameters) values[parameter.name] = initialValue(parameter, seed)
  Object.assign(values, await checkpointValues(llm.build, plan), await promptValue(llm, plan))
  adapted.adapters.setParameters(values)
  return adapted
}

/** A model with adapters whose values are known. @param from named in errors */
export function adaptedWith(llm: LanguageModel, settings: AdapterSettings, values: Trainables, from?: string): AdaptedLanguageModel {
  const { adapted } = prepared(llm, settings)
  try {
    adapted.adapters.setParameters(values)
  } catch (error) {
    throw error instanceof ModalignError && from !== undefined ? new ModalignError({ ...error.details, file: from, cause: error }) : error
  }
  return adapted
}

/** The model with its adapters in place, their values still to be given. */
function prepared(llm: LanguageModel, settings: AdapterSettings): { readonly adapted: AdaptedLanguageModel; readonly plan: AdapterPlan } {
  if (llm.adapters !== undefined)
    throw new ModalignError({
      code: 'ADAPTER_TWICE',
      got: 'a model with adapters',
      expected: 'one without',
      hint: 'merge the first ones, or give all of them at once',
    })
  const plan = planAdapters(llm.build, settings, llm.embeddingRms)
  const values = new AdapterValues(llm, plan)
  const dropout = dropoutOf(plan)
  const decoder: Decoder = {
    ...adaptedDecoder(llm.build, plan, ({ tensor }) => tensor),
    // What is left for others: the soft prompt takes its places of every sequence.
    maxPositions: llm.decoder.maxPositions - (settings.softPrompt?.tokens ?? 0),
    trained: {
      parameters: plan.parameters,
      ...(plan.softPrompt !== undefined && { softPrompt: plan.softPrompt.tensor }),
      ...(dropout !== undefined && { dropout }),
      present: () => values.present(),
    },
  }
  return { adapted: { ...llm, decoder, ...llm.generatorOf(decoder), adapters: values }, plan }
}

class AdapterValues implements Adapters {
  readonly settings: AdapterSettings
  readonly #llm: LanguageModel
  readonly #plan: AdapterPlan
  #values: Trainables = {}
  #present: PresentValues | undefined

  constructor(llm: LanguageModel, plan: AdapterPlan) {
    this.settings = plan.settings
    this.#llm = llm
    this.#plan = plan
  }

  get parameters(): Trainables {
    return this.#values
  }

  setParameters(values: Trainables): void {
    this.#values = checkedValues(this.#plan.parameters, values)
    this.#present = undefined
  }

  present(): PresentValues {
    this.#present ??= this.#frozen()
    return this.#present
  }

  #frozen(): PresentValues {
    const { softPrompt } = this.#plan
    return {
      decoder: adaptedDecoder(this.#llm.build, this.#plan, presentWeights(this.#plan.parameters, this.#values)),
      softPrompt: softPrompt === undefined ? new Float32Array(0) : valueIn(this.#values, softPrompt.name).data,
    }
  }
}

/** Unfrozen weights begin as the checkpoint has them; through a session, because some checkpoints hold them in blocks. `build`: what is called with the lookup. */
export async function checkpointValues(
  build: (change: (lookup: WeightLookup) => WeightLookup) => unknown,
  { unfrozen }: WeightPlan,
): Promise<Trainables> {
  if (unfrozen.size === 0) return {}
  const tensors = new Map<string, Tensor>()
  let looked: WeightLookup | undefined
  build((lookup) => {
    looked = lookup
    return lookup
  })
  if (looked === undefined) throw new Error('internal: a model without weights')
  for (const [name, { shape }] of unfrozen) tensors.set(name, looked(name, shape))
  const read = await evaluated(Object.fromEntries(tensors))
  return Object.fromEntries([...unfrozen].map(([name, { name: parameter }]) => [parameter, valueIn(read, name)]))
}

/** A soft prompt that begins as the embeddings of a text. */
async function promptValue({ decoder, tokenizer }: LanguageModel, { settings, softPrompt }: AdapterPlan): Promise<Trainables> {
  const text = settings.softPrompt?.text
  if (softPrompt === undefined || text === undefined) return {}
  const ids = tokenizer.encode(text, { addSpecialTokens: false })
  if (ids.length === 0)
    throw new ModalignError({
      code: 'ADAPTER_OPTIONS',
      field: '/softPrompt/text',
      got: JSON.stringify(text),
      expected: 'a text that is at least one token',
    })
  const [tokens = 0] = softPrompt.shape
  const repeated = Array.from({ length: tokens }, (_, place) => ids[place % ids.length] ?? 0)
  const { embeddings } = await evaluated({ embeddings: decoder.embed(integers(repeated)) })
  return embeddings === undefined ? {} : { [softPrompt.name]: { dims: softPrompt.shape, data: embeddings.data } }
}

/** The values of tensors that depend on no input, one at a time. */
async function evaluated(tensors: Readonly<Record<string, Tensor>>): Promise<Trainables> {
  const found: Record<string, TrainableValue> = {}
  const { bytes, externalRoot, externalData } = lower({
    // Not the weights' own names: those are the initializers'.
    outputs: Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [`value/${name}`, tensor])),
  })
  await using session = await createSession(
    { bytes, ...(externalRoot !== undefined && { externalRoot }), ...(externalData !== undefined && { externalData }) },
    { device: 'cpu', memoryPattern: false, prepacking: false },
  )
  for (const name of Object.keys(tensors)) {
    const { [`value/${name}`]: output } = await session.run({}, { fetch: [`value/${name}`] })
    if (output?.dtype !== 'float32') throw new Error('internal: weights are float32')
    found[name] = { dims: output.dims, data: output.data }
  }
  return found
}
