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
import { add } from '../../src/graph/operators/add.ts'
import { gatherNd } from '../../src/graph/operators/gather-nd.ts'
import { mul } from '../../src/graph/operators/mul.ts'
import { reduceMean } from '../../src/graph/operators/reduce-mean.ts'
import { scatterNd } from '../../src/graph/operators/scatter-nd.ts'
import { sqrt } from '../../src/graph/operators/sqrt.ts'
import { sub } from '../../src/graph/operators/sub.ts'
import type { Trainables } from '../../src/graph/parameters.ts'
import { filled, normal, type Parameter, ParameterScope } from '../../src/graph/parameters.ts'
import { input, type Tensor } from '../../src/graph/tensor.ts'
import { writeFileAtomic } from '../../src/io/atomic.ts'
import type { WeightLookup } from '../../src/llm/decoder.ts'
import { llama, llamaConfig } from '../../src/llm/families/llama.ts'
import { type LoweredModel, lower } from '../../src/onnx/lower.ts'
import { permutation, randomStream } from '../../src/random.ts'
import { createLocalSession } from '../../src/runtime/local.ts'
import { int64Tensor, type NamedTensors } from '../../src/tensors.ts'
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
import { trainByteLevelBpe } from './train-tokenizer.ts'

/** Everything that decides the result. */
export const recipe = {
  seed: 1,
  vocabularySize: 4608,
  hiddenSize: 512,
  intermediateSize: 512,
  layers: 2,
  heads: 8,
  kvHeads: 2,
  maxPositions: 256,
  batchSize: 48,
  steps: 2000,
  learningRate: 1.5e-3,
  warmupSteps: 100,
  floor: 0.02,
  weightDecay: 0.01,
  betas: [0.9, 0.95],
  maxGradientNorm: 1,
  /** Standard deviation of the embeddings' first values. */
  embeddingDeviation: 0.02,
  /**
   * A projector's output is never exactly an embedding: the token that stands for a picture is mixed with another picture's (half of the time, with up to this weight),
   * and noise of up to this many times its own size is added. Both grow from nothing between two steps, once reading has been learnt.
   */
  mixing: 0.45,
  noise: 3,
  disturbedFrom: 300,
  disturbedFully: 900,
} as const

/** ChatML, as SmolLM2 writes it, without a default system turn. */
export const chatTemplate =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

const folder = fileURLToPath(new URL('./llm/', import.meta.url))
const disturbanceInputs = {
  /** int64 [pictures, 2]: batch row and place of the tokens that stand for pictures. */
  rows: 'pictures.rows',
  /** int64 [pictures]: the tokens mixed in. */
  others: 'pictures.others',
  /** float32 [pictures, 1]: their weights. */
  weights: 'pictures.weights',
  /** float32 [pictures, hiddenSize], in units of the embedding's own size. */
  noise: 'pictures.noise',
} as const

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

/** Loss and gradients of every weight. The embeddings at the places that stand for pictures are disturbed. */
function languageGraph(headChunks: number): LanguageGraph {
  const scope = new ParameterScope()
  const declared = new Map<string, Tensor>()
  const { embeddingDeviation, layers } = recipe
  // Norms start at 1, embeddings small; other matrices by their input width, and those that write to the residual stream smaller with depth (Radford et al. 2019).
  const weight: WeightLookup = (name, shape) => {
    const known = declared.get(name)
    if (known !== undefined) return known
    const [, width = 1] = shape
    const deviation = name.includes('embed_tokens')
      ? embeddingDeviation
      : 0.7 / Math.sqrt(width) / (/(o_proj|down_proj)/.test(name) ? Math.sqrt(2 * layers) : 1)
    const tensor = scope.parameter(name, shape, shape.length === 1 ? filled(1) : normal(deviation))
    declared.set(name, tensor)
    return tensor
  }
  const decoder = llama(llamaConfig.parse(config()), weight)
  const [batch, tokens, rows, pictures] = [size('batch'), size('tokens'), size('rows'), size('pictures')]
  const ids = input(stepInputs.ids, 'int64', [batch, tokens])
  const positions = input(stepInputs.positions, 'int64', [batch, tokens])
  const embeds = decoder.embed(ids)
  const rowsOfPictures = input(disturbanceInputs.rows, 'int64', [pictures, 2])
  const clean = gatherNd(embeds, rowsOfPictures)
  const others = decoder.embed(input(disturbanceInputs.others, 'int64', [pictures]))
  const share = input(disturbanceInputs.weights, 'float32', [pictures, 1])
  const ownSize = sqrt(add(reduceMean(mul(clean, clean), [-1], { keepdims: true }), 1e-12))
  const noise = mul(input(disturbanceInputs.noise, 'float32', [pictures, recipe.hiddenSize]), ownSize)
  const disturbed = add(add(mul(clean, sub(1, share)), mul(others, share)), noise)
  const { hidden } = decoder.decode(scatterNd(embeds, rowsOfPictures, disturbed), { positions })
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
  nameCharacters(trainables, concepts, tokenizer)
  const trainer = new LocalTrainer({
    session,
    trainables,
    optimizer: adamw({ weightDecay, betas }),
    maxGradientNorm,
  })
  const rate = cosine({ peak: recipe.learningRate, warmupSteps: recipe.warmupSteps, totalSteps: recipe.steps, floor: recipe.floor })
  const groups = labelledGroups(concepts, tokenizer, template)
  let group: readonly Conversation[] = []
  const characterIds = concepts.map(({ character }) => tokenizer.encodeText(character)).flatMap((ids) => (ids.length === 1 ? ids : []))
  const evaluation = nameQuestions(concepts, tokenizer, template, headChunks)
  for (let step = 0; step < steps; step++) {
    if (step % groupBatches === 0) group = groups.next().value ?? []
    const items = takeBatch(group, step)
    const { feeds, weight } = collate(
      items.map((item) => ({ ...item, features: [] })),
      { media: [], headChunks, lengthMultiple: 4 },
    )
    await trainer.accumulate({ ...feeds, ...disturbance(items, step, characterIds) }, weight)
    const update = await trainer.update(rate(step))
    yield { step: step + 1, ...update, ...((step + 1) % 100 === 0 && { nameLoss: await nameLoss(trainer, evaluation) }) }
  }
  return trainer
}

/** "What is this?" about every eighth concept, its character in the picture's place. */
function nameQuestions(concepts: readonly Concept[], tokenizer: Tokenizer, template: ChatTemplate, headChunks: number): Batch {
  const items = concepts
    .filter((_, index) => index % 8 === 0)
    .map(({ id, character, name }) => corpusSample({ id, description: character, turns: [{ question: nameQuestion, answer: name }] }))
    .map((sample) => ({ ...labelSpans(sample, { tokenizer, template, mediaTokens: () => 1 }), features: [] }))
  return collate(items, { media: [], headChunks, lengthMultiple: 4 })
}

async function nameLoss(trainer: LocalTrainer, { feeds, weight }: Batch): Promise<number> {
  return (await trainer.loss({ ...feeds, ...disturbanceFeeds([], [], new Float32Array(0), new Float32Array(0)) })) / weight
}

/** What is done to a batch's pictures at a step: a pure function of seed, step and place. */
function disturbance(items: readonly Conversation[], step: number, characterIds: readonly number[]): NamedTensors {
  const strength = Math.min(1, Math.max(0, (step - recipe.disturbedFrom) / (recipe.disturbedFully - recipe.disturbedFrom)))
  const random = randomStream({ seed: recipe.seed, stream: `disturbance/${step}` })
  const rows = items.flatMap(({ pictures }, row) => pictures.flatMap((place) => [row, place]))
  const count = rows.length / 2
  let drawn = 0
  const others = Array.from({ length: count }, () => characterIds[random.integer(drawn++, characterIds.length)] ?? 0)
  const weights = Float32Array.from({ length: count }, () =>
    random.uniform(drawn++) < 0.5 ? strength * recipe.mixing * random.uniform(drawn++) : 0,
  )
  const noise = new Float32Array(count * recipe.hiddenSize)
  for (let picture = 0; picture < count; picture++) {
    const size = strength * recipe.noise * random.uniform(drawn++)
    for (let channel = 0; channel < recipe.hiddenSize; channel++)
      noise[picture * recipe.hiddenSize + channel] = size * random.normal(drawn++)
  }
  return disturbanceFeeds(rows, others, weights, noise)
}

function disturbanceFeeds(rows: readonly number[], others: readonly number[], weights: Float32Array, noise: Float32Array): NamedTensors {
  const count = others.length
  return {
    [disturbanceInputs.rows]: int64Tensor(rows, [count, 2]),
    [disturbanceInputs.others]: int64Tensor(others, [count]),
    [disturbanceInputs.weights]: { dtype: 'float32', dims: [count, 1], data: weights },
    [disturbanceInputs.noise]: { dtype: 'float32', dims: [count, recipe.hiddenSize], data: noise },
  }
}

/**
 * A character's embedding begins as the sum of its name's: what stands for a picture starts out as its words laid over each other, which is what a projector can
 * learn to say of a picture too.
 */
function nameCharacters(trainables: Trainables, concepts: readonly Concept[], tokenizer: Tokenizer): void {
  const width = recipe.hiddenSize
  const embeddings = trainables['model.embed_tokens.weight']?.data
  if (embeddings === undefined) throw new Error('internal: no embeddings')
  for (const { character, name } of concepts) {
    const [id, ...others] = tokenizer.encodeText(character)
    if (id === undefined || others.length > 0) continue
    const words = tokenizer.encodeText(name)
    for (let channel = 0; channel < width; channel++) {
      embeddings[id * width + channel] = words.reduce((sum, word) => sum + (embeddings[word * width + channel] ?? 0), 0)
    }
  }
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
  const characterIds = new Set(
    concepts.map(({ character }) => tokenizer.encodeText(character)).flatMap((ids) => (ids.length === 1 ? ids : [])),
  )
  let group: Conversation[] = []
  for (const conversation of languageCorpus(concepts, { seed: recipe.seed, epochs: Number.MAX_SAFE_INTEGER })) {
    const labelled = labelSpans(corpusSample(conversation), { tokenizer, template, mediaTokens: () => 1 })
    // The description stands before the first answer; a character there is the picture's stand-in.
    const first = labelled.weights.findIndex((weight) => weight > 0)
    const pictures =
      conversation.description === undefined
        ? []
        : [...labelled.ids.subarray(0, first).entries()].filter(([, id]) => characterIds.has(id)).map(([place]) => place)
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
