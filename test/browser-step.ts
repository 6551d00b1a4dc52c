/** One training step of a small multimodal model, from text to gradients: the same module runs in Node and, bundled, in a page. */
import { mlp } from '../projectors/index.ts'
import {
  adamw,
  type ByteSource,
  collate,
  createChatTemplate,
  createTokenizer,
  gridTokens,
  imageGrid,
  initialValues,
  LocalTrainer,
  labelSpans,
  llama,
  llamaConfig,
  type ModelSource,
  memoryWeights,
  normals,
  type Optimizer,
  readSafetensors,
  type Sample,
  type Session,
  safetensorsBytes,
  stepGraph,
  type TensorValue,
  type TokenizerFiles,
  type Turn,
  toBfloat16,
} from '../src/web.ts'

const config = llamaConfig.parse({
  model_type: 'llama',
  hidden_size: 32,
  intermediate_size: 48,
  num_hidden_layers: 1,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 640,
  max_position_embeddings: 128,
  tie_word_embeddings: true,
})
const encoderWidth = 24
const grid = imageGrid(2, 2)

/** The language model's weights as a safetensors file; the embeddings in 16 bits, as they are published. */
export function weightFile(): Promise<Uint8Array> {
  const {
    hidden_size: width,
    intermediate_size: inner,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    vocab_size: vocabulary,
  } = config
  const kvWidth = ((config.num_key_value_heads ?? heads) * width) / heads
  const shapes: Record<string, readonly number[]> = { 'model.embed_tokens.weight': [vocabulary, width], 'model.norm.weight': [width] }
  for (let layer = 0; layer < layers; layer++) {
    const name = `model.layers.${layer}`
    Object.assign(shapes, {
      [`${name}.input_layernorm.weight`]: [width],
      [`${name}.self_attn.q_proj.weight`]: [width, width],
      [`${name}.self_attn.k_proj.weight`]: [kvWidth, width],
      [`${name}.self_attn.v_proj.weight`]: [kvWidth, width],
      [`${name}.self_attn.o_proj.weight`]: [width, width],
      [`${name}.post_attention_layernorm.weight`]: [width],
      [`${name}.mlp.gate_proj.weight`]: [inner, width],
      [`${name}.mlp.up_proj.weight`]: [inner, width],
      [`${name}.mlp.down_proj.weight`]: [width, inner],
    })
  }
  return safetensorsBytes(Object.entries(shapes).map(([name, dims]) => ({ name, value: randomWeight(name, dims) })))
}

function randomWeight(name: string, dims: readonly number[]): TensorValue {
  const key = { seed: 7, stream: name }
  const count = dims.reduce((product, size) => product * size, 1)
  if (dims.length === 1) return { dtype: 'float32', dims, data: normals(count, key, { deviation: 0.1 }).map((value) => 1 + value) }
  const data = normals(count, key, { deviation: 1 / Math.sqrt(dims.at(-1) ?? 1) })
  return name.includes('embed') ? { dtype: 'bfloat16', dims, data: toBfloat16(data) } : { dtype: 'float32', dims, data }
}

/** Short, in place of the template's own. */
const system: Turn = { role: 'system', content: [{ type: 'text', text: 'Hi' }] }

const samples: readonly Sample[] = [
  {
    id: 'picture',
    turns: [
      system,
      {
        role: 'user',
        content: [
          { type: 'image', source: 'cat.jpg' },
          { type: 'text', text: '\nWhat is this?' },
        ],
      },
      { role: 'assistant', content: [{ type: 'text', text: 'A cat on a mat.' }] },
    ],
  },
  {
    id: 'words',
    turns: [
      system,
      { role: 'user', content: [{ type: 'text', text: 'Name a fruit.' }] },
      { role: 'assistant', content: [{ type: 'text', text: 'An apple.' }] },
    ],
  },
]

/** What a step gives; plain data, so that a page can hand it over. */
export interface StepOutcome {
  readonly device: string
  /** Mean loss before and after the update. */
  readonly losses: readonly [number, number]
  readonly gradientNorm: number
  readonly targets: number
  /** By parameter, of the mean loss. */
  readonly gradients: Readonly<Record<string, readonly number[]>>
}

/**
 * Text to labels, weights to decoder, graph to model, one update of the projector.
 *
 * @param weights of {@link weightFile}
 * @param open makes the session that is to be tested
 */
export async function trainingStep(
  weights: ByteSource,
  { tokenizer: files, template }: { readonly tokenizer: TokenizerFiles; readonly template: string },
  open: (model: ModelSource) => Promise<Session>,
): Promise<StepOutcome> {
  const decoder = llama(config, await memoryWeights(await readSafetensors(weights)))
  const projector = mlp({ depth: 2 })
  const media = [{ modality: 'image' as const, projector, grid, width: encoderWidth }]
  const { model, parameters, headChunks } = stepGraph({
    decoder,
    media,
    headChunks: 2,
  })

  const tokens = gridTokens(grid)
  const options = {
    tokenizer: await createTokenizer(files),
    template: createChatTemplate({ jinja: template, config: files.config }),
    mediaTokens: () => tokens,
  }
  const features = { modality: 'image' as const, data: normals(tokens * encoderWidth, { seed: 7, stream: 'features' }, { deviation: 1 }) }
  const batch = collate(
    samples.map((sample) => {
      const labelled = labelSpans(sample, options)
      return { ...labelled, features: labelled.media.map(() => features) }
    }),
    { media, headChunks },
  )

  const session = await open(model)
  const trainables = initialValues(parameters, 11)
  const gradients: Record<string, readonly number[]> = {}
  const optimizer = recording(adamw(), gradients)
  await using trainer = new LocalTrainer({ session, trainables, optimizer })
  await trainer.accumulate(batch.feeds, batch.weight)
  const { loss, gradientNorm } = await trainer.update(1e-3)
  return {
    device: session.device,
    losses: [loss, (await trainer.loss(batch.feeds)) / batch.weight],
    gradientNorm,
    targets: batch.targets,
    gradients,
  }
}

/** An optimizer that shows the gradients which it is given. */
function recording(optimizer: Optimizer, shown: Record<string, readonly number[]>): Optimizer {
  return {
    ...optimizer,
    update(trainables, gradients, state, learningRate) {
      for (const [name, values] of Object.entries(gradients)) shown[name] = Array.from(values)
      return optimizer.update(trainables, gradients, state, learningRate)
    },
  }
}
