/** Adapters on disk: PEFT's folders, and checkpoints with adapters merged in. */
import { join, resolve } from 'node:path'
import { ModalignError } from '../../errors.ts'
import type { Trainables, TrainableValue } from '../../graph/parameters.ts'
import { nodeFs } from '../../io/fs-ops.ts'
import { float32Tensor } from '../../tensors.ts'
import { openCheckpoint } from '../../weights/checkpoint.ts'
import { toFloat32 } from '../../weights/float16.ts'
import { openSafetensors, writeSafetensors } from '../../weights/safetensors.ts'
import type { Adapters, LanguageModel } from '../language-model.ts'
import { type AdaptedLanguageModel, adaptedWith } from './adapt.ts'
import { restoreOriginals, type WeightChange, writeChanged } from './merged-checkpoint.ts'
import { valueIn } from './parameter-values.ts'
import { type PeftBase, type PeftPromptBase, readPeft, writePeftLora, writePeftPrompt } from './peft.ts'
import { type AdapterPlan, planAdapters, scopeName, type WeightPlan, type WeightSettings } from './plan.ts'
import { type AdapterSettings, loraScale } from './settings.ts'

/**
 * A language model with an adapter that PEFT (or `saveAdapter`) wrote: LoRA or prompt tuning.
 *
 * @param folder with `adapter_config.json` and `adapter_model.safetensors`
 * @throws ADAPTER_MISSING, ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_TARGET, ADAPTER_PARAMETERS (an adapter of another model), SAFETENSORS_*
 * @example
 * const llm = await loadAdapter(await loadLanguageModel('models/SmolLM2-135M-Instruct'), 'adapters/poems')
 */
export async function loadAdapter(llm: LanguageModel, folder: string): Promise<AdaptedLanguageModel> {
  const { settings, values } = await readPeft(folder)
  return adaptedWith(llm, settings, values, folder)
}

/**
 * Writes the adapter of a model as PEFT does, so that `PeftModel.from_pretrained(base, folder)` loads it. A PEFT folder holds one adapter: LoRA or a soft prompt.
 *
 * @throws ADAPTER_NONE, ADAPTER_PEFT (a LoRA and a soft prompt at once, or unfrozen weights), and what writing throws
 * @example
 * await saveAdapter(llm, 'adapters/mine')
 */
export async function saveAdapter(llm: LanguageModel, folder: string): Promise<void> {
  const { settings } = adaptersOf(llm)
  const { lora, softPrompt, unfreeze } = settings
  if ((lora !== undefined && softPrompt !== undefined) || unfreeze !== undefined) {
    throw new ModalignError({
      code: 'ADAPTER_PEFT',
      file: folder,
      got: Object.entries({ lora, softPrompt, unfreeze })
        .flatMap(([name, value]) => (value === undefined ? [] : [name]))
        .join(' and '),
      expected: 'lora or softPrompt alone: what a folder of PEFT can say',
      hint: 'saveModel writes all of them; mergeAdapters writes a whole model',
    })
  }
  if (lora !== undefined) await saveLora(llm, folder)
  if (softPrompt !== undefined) await saveSoftPrompt(llm, folder)
}

const parts = { lora: 'lora', softPrompt: 'soft-prompt', unfrozen: 'unfrozen.safetensors' } as const

/**
 * Writes everything that is trained: `lora/` and `soft-prompt/` as PEFT has them, and `unfrozen.safetensors` by the names of the checkpoint. Settings are the caller's to keep.
 *
 * @throws ADAPTER_NONE, and what writing throws
 */
export async function saveAdapters(llm: LanguageModel, folder: string): Promise<void> {
  const { settings, parameters } = adaptersOf(llm)
  if (settings.lora !== undefined) await saveLora(llm, join(folder, parts.lora))
  if (settings.softPrompt !== undefined) await saveSoftPrompt(llm, join(folder, parts.softPrompt))
  if (settings.unfreeze !== undefined) await saveUnfrozen(planAdapters(llm.build, settings, llm.embeddingRms), parameters, folder)
}

async function saveUnfrozen({ unfrozen }: WeightPlan, parameters: Trainables, folder: string): Promise<void> {
  const tensors = [...unfrozen].map(([name, parameter]) => {
    const { data, dims } = valueIn(parameters, parameter.name)
    return { name, value: float32Tensor(data, dims) }
  })
  await nodeFs.mkdir(folder)
  await writeSafetensors(join(folder, parts.unfrozen), tensors, { format: 'pt' })
}

/** Writes what is trained of weights other than a language model's: `lora/` as PEFT has it, and `unfrozen.safetensors`. @throws what writing throws */
export async function saveWeights(plan: WeightPlan, scope: string, parameters: Trainables, base: PeftBase, folder: string): Promise<void> {
  if (plan.settings.lora !== undefined)
    await writePeftLora(join(folder, parts.lora), plan.settings.lora, [...plan.lora.keys()], parameters, base, scope)
  if (plan.settings.unfreeze !== undefined) await saveUnfrozen(plan, parameters, folder)
}

/** What {@link saveWeights} wrote, by the names of parameters in `scope`. @throws ADAPTER_*, SAFETENSORS_* */
export async function loadWeights(settings: WeightSettings, scope: string, folder: string): Promise<Trainables> {
  const values: Record<string, TrainableValue> = {}
  if (settings.lora !== undefined) Object.assign(values, (await readPeft(join(folder, parts.lora), scope)).values)
  if (settings.unfreeze !== undefined) {
    const file = await openSafetensors(join(folder, parts.unfrozen))
    for (const [name, { shape }] of file.tensors) values[`${scope}.${name}`] = { dims: shape, data: toFloat32(await file.read(name)) }
  }
  return values
}

/** A model with the adapters that {@link saveAdapters} wrote. @throws ADAPTER_*, SAFETENSORS_* */
export async function loadAdapters(llm: LanguageModel, settings: AdapterSettings, folder: string): Promise<AdaptedLanguageModel> {
  const values: Record<string, TrainableValue> = { ...(await loadWeights(settings, scopeName, folder)) }
  if (settings.softPrompt !== undefined) Object.assign(values, (await readPeft(join(folder, parts.softPrompt))).values)
  return adaptedWith(llm, settings, values, folder)
}

/** Writes the LoRA of a model, whatever else it has. */
export async function saveLora(llm: LanguageModel, folder: string): Promise<void> {
  const { settings, parameters } = adaptersOf(llm)
  if (settings.lora === undefined) throw noAdapter('no LoRA')
  const plan = planAdapters(llm.build, settings, llm.embeddingRms)
  await writePeftLora(folder, settings.lora, [...plan.lora.keys()], parameters, peftBase(llm, plan))
}

/** Writes the soft prompt of a model, whatever else it has. */
export async function saveSoftPrompt(llm: LanguageModel, folder: string): Promise<void> {
  const { settings, parameters } = adaptersOf(llm)
  if (settings.softPrompt === undefined) throw noAdapter('no soft prompt')
  await writePeftPrompt(folder, settings.softPrompt.tokens, parameters, peftBase(llm))
}

/**
 * Writes a model folder in which the LoRA and the unfrozen weights are part of the checkpoint, in its own number formats: any software that reads the original reads it. The
 * original is not touched. What the changed weights were is kept in the new folder, so that {@link unmergeAdapters} can restore it.
 *
 * @throws ADAPTER_NONE, ADAPTER_MERGE (a soft prompt is no weight; a model that is no checkpoint of safetensors), ADAPTER_MERGE_FOLDER, and what writing throws
 * @example
 * await mergeAdapters(llm, 'models/mine')
 * const merged = await loadLanguageModel('models/mine')
 */
export async function mergeAdapters(llm: LanguageModel, folder: string): Promise<void> {
  const { settings, parameters } = adaptersOf(llm)
  if (settings.softPrompt !== undefined)
    throw new ModalignError({
      code: 'ADAPTER_MERGE',
      got: 'a soft prompt',
      expected: 'a LoRA or unfrozen weights: a soft prompt is no part of a checkpoint',
    })
  const checkpoint = await openCheckpoint(llm.folder)
  const plan = planAdapters(llm.build, settings, llm.embeddingRms)
  const changes = new Map<string, WeightChange>()
  for (const [name, { name: parameter }] of plan.unfrozen) changes.set(name, () => valueIn(parameters, parameter).data)
  if (settings.lora !== undefined) {
    const scale = loraScale(settings.lora)
    for (const { layer, a, b } of plan.lora.values()) {
      const before = changes.get(layer.weight)
      const [down, up] = [valueIn(parameters, a.name), valueIn(parameters, b.name)]
      changes.set(layer.weight, (original, shape) =>
        withProduct(before?.(original, shape) ?? original, down, up, { scale, transposed: layer.layout === 'in-out' }),
      )
    }
  }
  await writeChanged(checkpoint, folder, changes)
}

/**
 * Turns a folder that {@link mergeAdapters} wrote back into the original: its files are the original's byte for byte, which their hashes prove.
 *
 * @throws ADAPTER_MERGE_MISSING, ADAPTER_MERGE_DAMAGED
 * @example
 * await unmergeAdapters('models/mine')
 */
export async function unmergeAdapters(folder: string): Promise<void> {
  await restoreOriginals(resolve(folder))
}

/** W + scale B A, or its transpose; sums in float64. */
function withProduct(
  original: Float32Array,
  { data: down, dims: [rank = 0, into = 0] }: TrainableValue,
  { data: up, dims: [out = 0] }: TrainableValue,
  { scale, transposed }: { readonly scale: number; readonly transposed: boolean },
): Float32Array {
  const changed = new Float32Array(original.length)
  const row = new Float64Array(into)
  for (let o = 0; o < out; o++) {
    row.fill(0)
    for (let r = 0; r < rank; r++) {
      const factor = (up[o * rank + r] ?? 0) * scale
      for (let i = 0; i < into; i++) row[i] = (row[i] ?? 0) + factor * (down[r * into + i] ?? 0)
    }
    for (let i = 0; i < into; i++) {
      const at = transposed ? i * out + o : o * into + i
      changed[at] = (original[at] ?? 0) + (row[i] ?? 0)
    }
  }
  return changed
}

function peftBase({ folder, decoder }: LanguageModel, plan?: AdapterPlan): PeftPromptBase {
  return {
    name: folder,
    hiddenSize: decoder.hiddenSize,
    layers: decoder.layers,
    taskType: decoder.hasEncoder === true ? 'SEQ_2_SEQ_LM' : 'CAUSAL_LM',
    fanInFanOut: [...(plan?.lora.values() ?? [])].some(({ layer }) => layer.layout === 'in-out'),
  }
}

function adaptersOf({ adapters }: LanguageModel): Adapters {
  if (adapters === undefined) throw noAdapter('a model without adapters')
  return adapters
}

function noAdapter(got: string): ModalignError {
  return new ModalignError({ code: 'ADAPTER_NONE', got, expected: 'a model that `adapt` or `loadAdapter` made' })
}
