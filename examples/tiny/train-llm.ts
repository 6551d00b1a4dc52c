/**
 * Trains the tiny demonstration language model from nothing, with this project's own engine: tokenizer, weights and training log go to `examples/tiny/llm`.
 *
 *     npx tsx examples/tiny/train-llm.ts [--steps N]   # the first N steps only, nothing written
 */
import { mkdir } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { linearCrossEntropy } from '../../src/graph/composites/cross-entropy.ts'
import { size } from '../../src/graph/dim.ts'
import { gradients } from '../../src/graph/gradients.ts'
import { initialValues } from '../../src/graph/initial-values.ts'
import { gatherNd } from '../../src/graph/operators/gather-nd.ts'
import { scatterNd } from '../../src/graph/operators/scatter-nd.ts'
import { filled, normal, type Parameter, ParameterScope, type Trainables } from '../../src/graph/parameters.ts'
import { input, type Tensor } from '../../src/graph/tensor.ts'
import { writeFileAtomic } from '../../src/io/atomic.ts'
import type { WeightLookup } from '../../src/llm/decoder.ts'
import { llama, llamaConfig } from '../../src/llm/families/llama.ts'
import { type LoweredModel, lower } from '../../src/onnx/lower.ts'
import { permutation } from '../../src/random.ts'
import { createLocalSession } from '../../src/runtime/local.ts'
import { type ChatTemplate, createChatTemplate } from '../../src/text/chat-template.ts'
import { type LabelledIds, labelSpans } from '../../src/text/label-spans.ts'
import { createTokenizer, type Tokenizer } from '../../src/text/tokenizer.ts'
import { type Batch, collate } from '../../src/training/batch.ts'
import { adamw } from '../../src/training/optimizers/adamw.ts'
import { cosine } from '../../src/training/schedules.ts'
import { gradientName, stepInputs } from '../../src/training/step-graph.ts'
import { LocalTrainer, type Update } from '../../src/training/trainer.ts'
import { toFloat16 } from '../../src/weights/float16.ts'
import { writeSafetensors } from '../../src/weights/safetensors.ts'
import { type Concept, readConcepts } from './drawings.ts'
import { nameQuestion } from './drawings-questions.ts'
import { corpusSample, languageCorpus, tokenizerCorpus } from './language-corpus.ts'
import { cleanStandIns, drawStandIns, standIns } from './stand-ins.ts'
import { trainByteLevelBpe } from './train-tokenizer.ts'

/** Everything that decides the result. */
export const recipe = {
  seed: 1,
  vocabularySize: 5200,
  hiddenSize: 512,
  intermediateSize: 256,
  layers: 2,
  heads: 8,
  kvHeads: 8,
  maxPositions: 256,
  batchSize: 64,
  steps: 600,
  learningRate: 7e-4,
  warmupSteps: 50,
  floor: 0.02,
  weightDecay: 0.01,
  betas: [0.9, 0.95],
  maxGradientNorm: 1,
  /** Standard deviation of the embeddings' first values: large beside what the blocks add, so that what stands for a picture is still there in the last layer. */
  embeddingDeviation: 0.25,
  /** First gain of the last norm, which with the tied head settles how sharply the model decides. */
  headGain: 0.06,
  /** First gain of what blocks add to the residual stream. */
  blockGain: 0.2,
  /** First gain of values and of outputs in the last layer's attention, which begins by copying. */
  copyGain: 2,
  /** What stands for pictures: see stand-ins.ts. */
  sharpness: 15,
  noise: 2,
  clean: 0.3,
  mixedFrom: 80,
  mixedFully: 160,
} as const

/** ChatML, as SmolLM2 writes it, without a default system turn. */
export const chatTemplate =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

const folder = fileURLToPath(new URL('./llm/', import.meta.url))
export function config() {
  const { hiddenSize, intermediateSize, layers, heads, kvHeads, vocabularySize, maxPositions } = recipe
  return {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama' as const,
    hidden_size: hiddenSize,
    intermediate_size: intermediateSize,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    head_dim: hiddenSize / heads,
    vocab_size: vocabularySize,
    max_position_embeddings: maxPositions,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000,
    hidden_act: 'silu' as const,
    tie_word_embeddings: true,
    bos_token_id: null,
    eos_token_id: 2,
    torch_dtype: 'float16',
  }
}

interface LanguageGraph {
  readonly model: LoweredModel
  readonly parameters: readonly Parameter[]
}

/** Loss and gradients of every weight. What stands for pictures is mixed of names. */
function languageGraph(headChunks: number): LanguageGraph {
  const scope = new ParameterScope()
  const declared = new Map<string, Tensor>()
  const { embeddingDeviation } = recipe
  // Norms start at 1; matrices by their input width, those that write to the residual stream smaller.
  const weight: WeightLookup = (name, shape) => {
    const known = declared.get(name)
    if (known !== undefined) return known
    const [, width = 1] = shape
    const deviation = name.includes('embed_tokens')
      ? embeddingDeviation
      : (0.7 / Math.sqrt(width)) * (/(o_proj|down_proj)/.test(name) ? recipe.blockGain : 1)
    const tensor = scope.parameter(
      name,
      shape,
      shape.length === 1 ? filled(name === 'model.norm.weight' ? recipe.headGain : 1) : normal(deviation),
    )
    declared.set(name, tensor)
    return tensor
  }
  const decoder = llama(llamaConfig.parse(config()), weight)
  const [batch, tokens, rows] = [size('batch'), size('tokens'), size('rows')]
  const ids = input(stepInputs.ids, 'int64', [batch, tokens])
  const positions = input(stepInputs.positions, 'int64', [batch, tokens])
  const embeds = decoder.embed(ids)
  const pictures = standIns(decoder.embed, recipe.hiddenSize)
  const { hidden } = decoder.decode(scatterNd(embeds, pictures.rows, pictures.vectors), { positions })
  const supervised = gatherNd(hidden, input(stepInputs.supervisedRows, 'int64', [headChunks, rows, 2]))
  const labels = input(stepInputs.labels, 'int64', [headChunks, rows])
  const { sum } = linearCrossEntropy(supervised, decoder.head, labels, input(stepInputs.rowWeights, 'float32', [headChunks, rows]))
  const { parameters } = scope
  const derivatives = gradients(
    sum,
    parameters.map(({ tensor }) => tensor),
  )
  const named = parameters
    .map((parameter, index) => [gradientName(parameter), derivatives[index]] as const)
    .flatMap(([name, tensor]) => (tensor === undefined ? [] : [[name, tensor] as const]))
  return { model: lower({ outputs: { loss: sum, ...Object.fromEntries(named) }, inputs: [ids, positions] }), parameters }
}

interface Conversation extends LabelledIds {
  /** Places whose token stands for a picture. */
  readonly pictures: readonly number[]
}

export interface TrainingStep extends Update {
  readonly step: number
  /** Every 100 steps: the mean loss over answers to "What is this?" about clean characters, in nats a token. */
  readonly nameLoss?: number
}

/**
 * Trains for `steps` of the recipe's steps and yields each; returns the weights.
 * The run depends on the recipe and the concepts alone, up to the rounding of the machine's matrix products.
 */
export async function* trainLanguageModel(
  concepts: readonly Concept[],
  {
    tokenizer,
    template,
    steps = recipe.steps,
  }: { readonly tokenizer: Tokenizer; readonly template: ChatTemplate; readonly steps?: number },
): AsyncGenerator<TrainingStep, LocalTrainer> {
  const headChunks = 2
  const { model, parameters } = languageGraph(headChunks)
  const session = await createLocalSession(
    { bytes: model.bytes, ...(model.externalData && { externalData: model.externalData }) },
    { device: 'cpu', memoryPattern: false },
  )
  const { weightDecay, betas, maxGradientNorm } = recipe
  const trainables = initialValues(parameters, recipe.seed)
  copyThrough(trainables, `model.layers.${recipe.layers - 1}.self_attn`)
  const trainer = new LocalTrainer({
    session,
    trainables,
    optimizer: adamw({ weightDecay, betas }),
    maxGradientNorm,
  })
  const rate = cosine({ peak: recipe.learningRate, warmupSteps: recipe.warmupSteps, totalSteps: recipe.steps, floor: recipe.floor })
  const groups = labelledGroups(concepts, tokenizer, template)
  let group: readonly Conversation[] = []
  const nameIds = [...tokensOfNames(concepts, tokenizer).values()]
  const evaluation = nameQuestions(concepts, tokenizer, template, headChunks)
  for (let step = 0; step < steps; step++) {
    if (step % groupBatches === 0) group = groups.next().value ?? []
    const items = takeBatch(group, step)
    const { feeds, weight } = collate(
      items.map((item) => ({ ...item, features: [] })),
      { media: [], headChunks, lengthMultiple: 4 },
    )
    await trainer.accumulate(
      { ...feeds, ...drawStandIns(step, { ...picturesOf(items), all: nameIds }, { ...recipe, width: recipe.hiddenSize }) },
      weight,
    )
    const update = await trainer.update(rate(step))
    yield { step: step + 1, ...update, ...((step + 1) % 100 === 0 && { nameLoss: await nameLoss(trainer, evaluation) }) }
  }
  return trainer
}

/** "What is this?" about every eighth concept, its name in the picture's place. */
function nameQuestions(concepts: readonly Concept[], tokenizer: Tokenizer, template: ChatTemplate, headChunks: number): Batch {
  const items = concepts
    .filter((_, index) => index % 8 === 0)
    .map(({ id, name }) => corpusSample({ id, description: name, turns: [{ question: nameQuestion, answer: name }] }))
    .map((sample) => ({ ...labelSpans(sample, { tokenizer, template, mediaTokens: () => 1 }), features: [] }))
  return collate(items, { media: [], headChunks, lengthMultiple: 4 })
}

async function nameLoss(trainer: LocalTrainer, { feeds, weight }: Batch): Promise<number> {
  return (await trainer.loss({ ...feeds, ...cleanStandIns([], [], recipe.hiddenSize) })) / weight
}

/** Where the tokens that stand for pictures are, and what they are. */
function picturesOf(items: readonly Conversation[]): { readonly rows: readonly number[]; readonly names: readonly number[] } {
  return {
    rows: items.flatMap(({ pictures }, row) => pictures.flatMap((place) => [row, place])),
    names: items.flatMap(({ pictures, ids }) => pictures.map((place) => Number(ids[place]))),
  }
}

/**
 * Attention begins by copying what it looks at, channel by channel: with the tied head, a name looked at is then a name said, and a mixture of names says each as much as it
 * holds of it. (Starting values near what training would come to, as Trockman and Kolter 2023 do.)
 */
function copyThrough(trainables: Trainables, name: string): void {
  for (const part of ['v_proj', 'o_proj']) {
    const matrix = trainables[`${name}.${part}.weight`]
    if (matrix === undefined) throw new Error(`internal: no ${part}`)
    const [rows = 0, columns = 0] = matrix.dims
    matrix.data.fill(0)
    for (let channel = 0; channel < Math.min(rows, columns); channel++) matrix.data[channel * columns + channel] = recipe.copyGain
  }
}

/** The token of each name. The tokenizer has seen every name often enough to make it one token. */
function tokensOfNames(concepts: readonly Concept[], tokenizer: Tokenizer): ReadonlyMap<string, number> {
  return new Map(
    concepts.map(({ name }) => {
      const [id, ...others] = tokenizer.encodeText(name)
      if (id === undefined || others.length > 0) throw new Error(`internal: "${name}" is not one token`)
      return [name, id]
    }),
  )
}

/** Batches whose conversations are sorted by length together. */
const groupBatches = 16

/** One of a group's batches, of conversations of about one length, so that it pads little; in random order. */
function takeBatch(group: readonly Conversation[], step: number): readonly Conversation[] {
  const position = permutation(groupBatches, { seed: recipe.seed, stream: `group/${Math.floor(step / groupBatches)}` })(step % groupBatches)
  return group.slice(position * recipe.batchSize, (position + 1) * recipe.batchSize)
}

/** The corpus in groups of 16 batches, each sorted by length. */
function* labelledGroups(
  concepts: readonly Concept[],
  tokenizer: Tokenizer,
  template: ChatTemplate,
): Generator<readonly Conversation[], undefined> {
  const names = tokensOfNames(concepts, tokenizer)
  let group: Conversation[] = []
  for (const conversation of languageCorpus(concepts, { seed: recipe.seed, epochs: Number.MAX_SAFE_INTEGER })) {
    const labelled = labelSpans(corpusSample(conversation), { tokenizer, template, mediaTokens: () => 1 })
    const standIn = conversation.description === undefined ? undefined : names.get(conversation.description)
    const pictures = standIn === undefined ? [] : [labelled.ids.indexOf(standIn)]
    group.push({ ...labelled, pictures })
    if (group.length === groupBatches * recipe.batchSize) {
      yield group.sort((a, b) => a.ids.length - b.ids.length)
      group = []
    }
  }
}

/** The tokenizer's files, trained on the corpus's text. */
export async function tinyTokenizer(
  concepts: readonly Concept[],
): Promise<{ readonly tokenizer: Tokenizer; readonly template: ChatTemplate; readonly files: Readonly<Record<string, string>> }> {
  const bpe = trainByteLevelBpe(tokenizerCorpus(concepts, { seed: recipe.seed }), {
    vocabularySize: recipe.vocabularySize,
    specialTokens: ['<|endoftext|>', '<|im_start|>', '<|im_end|>'],
    within: 'lines',
  })
  const tokenizerConfig = {
    tokenizer_class: 'PreTrainedTokenizerFast',
    eos_token: '<|im_end|>',
    pad_token: '<|endoftext|>',
    unk_token: '<|endoftext|>',
    clean_up_tokenization_spaces: false,
    model_max_length: recipe.maxPositions,
    chat_template: chatTemplate,
  }
  const files = {
    'tokenizer.json': `${JSON.stringify(bpe)}\n`,
    'tokenizer_config.json': `${JSON.stringify(tokenizerConfig, undefined, 2)}\n`,
    'generation_config.json': `${JSON.stringify({ do_sample: false, eos_token_id: 2, pad_token_id: 0 }, undefined, 2)}\n`,
  }
  const parsed = { tokenizer: JSON.parse(files['tokenizer.json']), config: tokenizerConfig, generationConfig: { eos_token_id: 2 } }
  return { tokenizer: await createTokenizer(parsed), template: createChatTemplate({ config: tokenizerConfig }), files }
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { steps: { type: 'string' } } })
  const steps = values.steps === undefined ? recipe.steps : Number(values.steps)
  const concepts = await readConcepts(new URL('./concepts.json', import.meta.url))
  const { tokenizer, template, files } = await tinyTokenizer(concepts)
  const started = performance.now()
  const log: string[] = []
  const training = trainLanguageModel(concepts, { tokenizer, template, steps })
  let last = await training.next()
  for (; last.done !== true; last = await training.next()) {
    const { step, loss, gradientNorm, nameLoss: onNames } = last.value
    log.push(JSON.stringify({ step, loss, gradientNorm, ...(onNames !== undefined && { nameLoss: onNames }) }))
    if (onNames === undefined) continue
    const pace = (performance.now() - started) / step
    console.error(`step ${step}/${steps}  loss ${loss.toFixed(4)}  on names ${onNames.toFixed(4)}  ${pace.toFixed(0)} ms a step`)
  }
  const { parameters } = await last.value.snapshot()
  await last.value.dispose()
  if (values.steps !== undefined) return
  await mkdir(folder, { recursive: true })
  for (const [name, text] of Object.entries(files)) await writeFileAtomic(`${folder}${name}`, text)
  await writeFileAtomic(`${folder}config.json`, `${JSON.stringify(config(), undefined, 2)}\n`)
  await writeFileAtomic(`${folder}training-log.jsonl`, `${log.join('\n')}\n`)
  const tensors = Object.entries(parameters).map(([name, { dims, data }]) => ({
    name,
    value: { dtype: 'float16' as const, dims, data: toFloat16(data) },
  }))
  await writeSafetensors(`${folder}model.safetensors`, tensors, { format: 'pt' })
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main()
