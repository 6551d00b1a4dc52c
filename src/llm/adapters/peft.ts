/** Adapter folders as PEFT reads and writes them: `adapter_config.json` and `adapter_model.safetensors`. */
import { readdir } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../../errors.ts'
import type { Trainables } from '../../graph/parameters.ts'
import { writeFileAtomic } from '../../io/atomic.ts'
import { fileError } from '../../io/file-error.ts'
import { nodeFs } from '../../io/fs-ops.ts'
import { float32Tensor } from '../../tensors.ts'
import { readJson } from '../../text/model-folder.ts'
import { toFloat32 } from '../../weights/float16.ts'
import { openSafetensors, type SafetensorsFile, writeSafetensors } from '../../weights/safetensors.ts'
import { scopeName } from './plan.ts'
import { type AdapterSettings, type LoraSettings, loraSchema, softPromptSchema } from './settings.ts'

const configName = 'adapter_config.json'
const weightsName = 'adapter_model.safetensors'
const largestConfigBytes = 4 * 2 ** 20
/** What PEFT puts before a module's path: its own wrapper, and the adapter's inside of it. */
const wrapper = 'base_model.model.'
const promptKey = 'prompt_embeddings'

export interface PeftAdapter {
  readonly settings: AdapterSettings
  /** By our parameters' names. */
  readonly values: Trainables
}

/** Variants of LoRA that compute something else than W x + scale B A x, or train more than A and B. Each must be absent, null, false, 0, or empty. */
const refused = [
  'use_dora',
  'use_qalora',
  'use_bdlora',
  'lora_bias',
  'modules_to_save',
  'alpha_pattern',
  'rank_pattern',
  'layer_replication',
  'trainable_token_indices',
  'target_parameters',
  'alora_invocation_tokens',
  'megatron_config',
  'arrow_config',
  'kasa_config',
  'velora_config',
  'monteclora_config',
] as const

const loraConfig = z.looseObject({
  peft_type: z.literal('LORA'),
  r: z.int().positive(),
  lora_alpha: z.number().positive(),
  lora_dropout: z.number().min(0).lt(1).default(0),
  use_rslora: z.boolean().default(false),
  bias: z.literal('none').default('none'),
  ...Object.fromEntries(
    refused.map((name) => [name, z.unknown().refine(isAbsent, 'nothing: this kind of LoRA is not supported').optional()]),
  ),
})
const promptConfig = z.looseObject({
  peft_type: z.literal('PROMPT_TUNING'),
  num_virtual_tokens: z.int().positive(),
  token_dim: z.int().positive(),
  num_transformer_submodules: z.literal(1).nullish(),
  modules_to_save: z.null().optional(),
})
const peftConfig = z.discriminatedUnion('peft_type', [loraConfig, promptConfig])

/**
 * Reads an adapter folder: LoRA, or prompt tuning.
 *
 * @param scope of the parameters' names; default: the language model's.
 *
 * @throws ADAPTER_MISSING (no adapter there), ADAPTER_CONFIG (malformed, or a kind that is not supported), ADAPTER_WEIGHTS, and what `openSafetensors` throws.
 */
export async function readPeft(folder: string, scope = scopeName): Promise<PeftAdapter> {
  const file = join(resolve(folder), configName)
  const config = await readJson(file, largestConfigBytes)
  if (config === undefined) throw await missing(folder)
  const parsed = peftConfig.safeParse(config)
  const [issue] = parsed.error?.issues ?? []
  if (!parsed.success) {
    const field = `/${issue?.path.join('/') ?? ''}`
    const type = typeof config === 'object' && config !== null && 'peft_type' in config ? JSON.stringify(config.peft_type) : undefined
    throw new ModalignError({
      code: 'ADAPTER_CONFIG',
      file,
      field,
      ...(field === '/peft_type' && { got: type ?? 'nothing' }),
      expected: field === '/peft_type' ? 'LORA or PROMPT_TUNING' : issue?.message,
    })
  }
  const weights = await openSafetensors(join(resolve(folder), weightsName))
  return parsed.data.peft_type === 'LORA' ? readLora(parsed.data, weights, scope) : readPrompt(parsed.data, weights)
}

async function readLora(config: z.output<typeof loraConfig>, weights: SafetensorsFile, scope: string): Promise<PeftAdapter> {
  const values: Record<string, Trainables[string]> = {}
  const halves = new Map<string, Set<string>>()
  for (const [key, { shape }] of weights.tensors) {
    // `.default.` stands in files of early versions: the adapter's name.
    const [, module, half] = /^base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight$/s.exec(key) ?? []
    if (module === undefined || half === undefined)
      throw damaged(weights, key, 'another tensor', 'lora_A and lora_B of linear layers alone')
    if (shape.length !== 2 || shape[half === 'A' ? 0 : 1] !== config.r)
      throw damaged(weights, key, `[${shape.join(', ')}]`, half === 'A' ? `[${config.r}, in]` : `[out, ${config.r}]`)
    values[`${scope}.${module}.lora_${half}.weight`] = { dims: shape, data: await finite(weights, key) }
    halves.set(module, (halves.get(module) ?? new Set()).add(half))
  }
  for (const [module, found] of halves)
    if (found.size !== 2) throw damaged(weights, module, `lora_${[...found].join()} alone`, 'lora_A and lora_B')
  if (halves.size === 0) throw damaged(weights, '', 'no tensors', 'lora_A and lora_B of linear layers')
  const { r: rank, lora_alpha: alpha, lora_dropout: dropout, use_rslora: rslora } = config
  return { settings: { lora: loraSchema.parse({ rank, alpha, dropout, rslora, targets: [...halves.keys()] }) }, values }
}

async function readPrompt(config: z.output<typeof promptConfig>, weights: SafetensorsFile): Promise<PeftAdapter> {
  const dims = [config.num_virtual_tokens, config.token_dim]
  const found = weights.tensors.get(promptKey)
  if (found === undefined || String(found.shape) !== String(dims))
    throw damaged(weights, promptKey, found === undefined ? 'nothing' : `[${found.shape.join(', ')}]`, `[${dims.join(', ')}]`)
  return {
    settings: { softPrompt: softPromptSchema.parse({ tokens: config.num_virtual_tokens }) },
    values: { [`${scopeName}.${promptKey}`]: { dims, data: await finite(weights, promptKey) } },
  }
}

async function finite(weights: SafetensorsFile, key: string): Promise<Float32Array> {
  const data = toFloat32(await weights.read(key))
  const place = data.findIndex((value) => !Number.isFinite(value))
  if (place >= 0) throw damaged(weights, key, `${data[place]} at element ${place}`, 'finite numbers')
  return data
}

/** What a written folder says of the model that it belongs to. */
export interface PeftBase {
  /** A path, or a name on the Hugging Face Hub. */
  readonly name: string
  /** PEFT's kind of task. Null: none, as for models that are no language models. */
  readonly taskType: 'CAUSAL_LM' | 'SEQ_2_SEQ_LM' | null
  /** Whether the weights of the layers lie [in, out]. */
  readonly fanInFanOut: boolean
}
/** What a folder with a soft prompt says, too. */
export interface PeftPromptBase extends PeftBase {
  readonly hiddenSize: number
  readonly layers: number
  readonly heads?: number
}

/**
 * Writes a LoRA: PEFT's `PeftModel.from_pretrained` loads it. `modules`: the paths of the layers. The configuration is written last.
 */
export async function writePeftLora(
  folder: string,
  settings: LoraSettings,
  modules: readonly string[],
  values: Trainables,
  base: PeftBase,
  scope = scopeName,
): Promise<void> {
  const { rank, alpha = rank, dropout, rslora } = settings
  const tensors = modules.flatMap((module) => ['lora_A.weight', 'lora_B.weight'].map((half) => `${module}.${half}`))
  await writeFolder(folder, Object.fromEntries(tensors.map((name) => [`${wrapper}${name}`, `${scope}.${name}`])), values, {
    ...common(base),
    peft_type: 'LORA',
    r: rank,
    lora_alpha: alpha,
    lora_dropout: dropout,
    use_rslora: rslora,
    use_dora: false,
    bias: 'none',
    fan_in_fan_out: base.fanInFanOut,
    init_lora_weights: true,
    modules_to_save: null,
    target_modules: [...modules].sort(),
  })
}

/** Writes a soft prompt, as PEFT's prompt tuning has it. */
export async function writePeftPrompt(folder: string, tokens: number, values: Trainables, base: PeftPromptBase): Promise<void> {
  await writeFolder(folder, { [promptKey]: `${scopeName}.${promptKey}` }, values, {
    ...common(base),
    peft_type: 'PROMPT_TUNING',
    num_virtual_tokens: tokens,
    token_dim: base.hiddenSize,
    num_transformer_submodules: 1,
    num_layers: base.layers,
    ...(base.heads !== undefined && { num_attention_heads: base.heads }),
    prompt_tuning_init: 'RANDOM',
    prompt_tuning_init_text: null,
    tokenizer_name_or_path: null,
  })
}

function common({ name, taskType }: PeftBase): Readonly<Record<string, unknown>> {
  return { base_model_name_or_path: name, task_type: taskType, inference_mode: true, revision: null }
}

async function writeFolder(
  folder: string,
  names: Readonly<Record<string, string>>,
  values: Trainables,
  config: Readonly<Record<string, unknown>>,
): Promise<void> {
  const target = resolve(folder)
  const tensors = Object.entries(names).map(([key, own]) => {
    const value = values[own]
    if (value === undefined) throw new Error(`internal: no value of ${own}`)
    return { name: key, value: float32Tensor(value.data, value.dims) }
  })
  await nodeFs.mkdir(target)
  await writeSafetensors(join(target, weightsName), tensors, { format: 'pt' })
  const sorted = Object.fromEntries(Object.entries(config).sort(([a], [b]) => (a < b ? -1 : 1)))
  await writeFileAtomic(join(target, configName), `${JSON.stringify(sorted, undefined, 2)}\n`)
}

async function missing(folder: string): Promise<ModalignError> {
  const names = await readdir(folder).catch((error: unknown) => {
    throw fileError(error, folder, `a folder with ${configName} and ${weightsName}`)
  })
  const pickle = names.find((name) => name.endsWith('.bin'))
  return new ModalignError({
    code: 'ADAPTER_MISSING',
    file: folder,
    got: pickle === undefined ? `a folder without ${configName}` : `${pickle} without ${configName}`,
    expected: `a folder with ${configName} and ${weightsName}`,
  })
}

function damaged({ file }: SafetensorsFile, field: string, got: string, expected: string): ModalignError {
  return new ModalignError({ code: 'ADAPTER_WEIGHTS', file, field, got, expected })
}

function isAbsent(value: unknown): boolean {
  if (value === undefined || value === null || value === false || value === 0) return true
  return typeof value === 'object' && Object.keys(value).length === 0
}
