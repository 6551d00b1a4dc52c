/** One training step as one graph: encoders that are trained, projectors, splice, decoder, head and loss, and the gradients of what is trained. */
import { linearCrossEntropy } from '../graph/composites/cross-entropy.ts'
import { size } from '../graph/dim.ts'
import { gradients } from '../graph/gradients.ts'
import { expand } from '../graph/operators/expand.ts'
import { gatherNd } from '../graph/operators/gather-nd.ts'
import { unsqueeze } from '../graph/operators/unsqueeze.ts'
import type { Parameter } from '../graph/parameters.ts'
import { dimAt, input, type Tensor } from '../graph/tensor.ts'
import { dropoutInput } from '../llm/adapters/dropout.ts'
import type { Decoder } from '../llm/decoder.ts'
import { sourceContext } from '../llm/source-tokens.ts'
import { type MediaPath, placed, project, splice } from '../model/splice.ts'
import { type LoweredModel, lower } from '../onnx/lower.ts'

export interface StepGraphRequest {
  readonly decoder: Decoder
  readonly media: readonly MediaPath[]
  /** Parameters that are trained too, beside the projectors', the encoders' and the language model's. */
  readonly trainables?: readonly Parameter[]
  /** Into how many parts the supervised rows are cut for the head. Default 4. */
  readonly headChunks?: number
  /** Default true; false gives the loss alone, for evaluation. */
  readonly gradients?: boolean
  /** Packed sequences: adds the input `segments`. Default false. */
  readonly packed?: boolean
}

export interface StepGraph {
  readonly model: LoweredModel
  /** What is trained, in the order of the gradients: each has an output `gradient.<name>` of its shape. */
  readonly parameters: readonly Parameter[]
  readonly headChunks: number
}

/** The names of the step's inputs beside the parameters and the media's. */
export const stepInputs = {
  /** int64 [batch, tokens]; anything valid at media places. */
  ids: 'ids',
  /** int64 [batch, tokens]. */
  positions: 'positions',
  /** int64 [batch, tokens], packed sequences only. */
  segments: 'segments',
  /** int64 [headChunks, rows, 2]: batch row and position whose hidden state predicts a label. */
  supervisedRows: 'supervised.rows',
  /** int64 [headChunks, rows]. */
  labels: 'supervised.labels',
  /** float32 [headChunks, rows]; 0 for rows that only fill up. */
  rowWeights: 'supervised.weights',
  /** int64 [samples, promptTokens, 2], language models with a soft prompt only: batch row and position of each of its places. */
  softPromptRows: 'prompt.rows',
} as const

/**
 * Outputs `loss` (weighted sum over supervised rows, not a mean: see the accumulation window), `losses` [headChunks, rows], and the gradients of `loss`. What of the language
 * model is trained joins the projectors' parameters; with dropout, a graph that gives gradients takes `dropoutFeeds` too.
 */
export function stepGraph({
  decoder,
  media,
  trainables = [],
  headChunks = 4,
  gradients: wanted = true,
  packed = false,
}: StepGraphRequest): StepGraph {
  const [batch, tokens, rows] = [size('batch'), size('tokens'), size('rows')]
  const ids = input(stepInputs.ids, 'int64', [batch, tokens])
  const positions = input(stepInputs.positions, 'int64', [batch, tokens])
  const segments = packed ? input(stepInputs.segments, 'int64', [batch, tokens]) : undefined
  const supervisedRows = input(stepInputs.supervisedRows, 'int64', [headChunks, rows, 2])
  const labels = input(stepInputs.labels, 'int64', [headChunks, rows])
  const rowWeights = input(stepInputs.rowWeights, 'float32', [headChunks, rows])

  const projected = media.map((path) => ({ path, ...project(path, decoder.hiddenSize, 'encoder') }))
  const mediaPlaced = projected.map(({ path, ...one }) => placed(path, one))
  const { trained } = decoder
  const spliced = splice(decoder.embed(ids), [
    ...mediaPlaced,
    ...(trained?.softPrompt === undefined ? [] : [softPromptPlaces(trained.softPrompt)]),
  ])
  const dropout = wanted && trained?.dropout !== undefined ? dropoutInput([batch, tokens, trained.dropout.width]) : undefined
  const source = sourceContext(decoder, batch)
  const { hidden } = decoder.decode(spliced, {
    positions,
    ...source,
    ...(segments !== undefined && { segments }),
    ...(dropout !== undefined && { dropout }),
  })
  const { sum, losses } = linearCrossEntropy(gatherNd(hidden, supervisedRows), decoder.head, labels, rowWeights, {
    softcap: decoder.logitSoftcap,
  })

  const parameters = [
    ...projected.flatMap(({ scope }) => scope.parameters),
    ...media.flatMap((path) => path.trained?.declared ?? []),
    ...(trained?.parameters ?? []),
    ...trainables,
  ]
  const derivatives: readonly Tensor[] = wanted
    ? gradients(
        sum,
        parameters.map(({ tensor }) => tensor),
      )
    : []
  const outputs = Object.fromEntries([
    ['loss', sum],
    ['losses', losses],
    ...derivatives.map((gradient, index) => [gradientName(parameters[index]), gradient] as const),
  ])
  return {
    model: lower({
      outputs,
      inputs: [ids, positions, ...mediaPlaced.flatMap(({ inputs }) => inputs), ...Object.values(source.source ?? {})],
    }),
    parameters,
    headChunks,
  }
}

/** The soft prompt's rows [tokens, hiddenSize], once for each sample. */
function softPromptPlaces(softPrompt: Tensor): { readonly embeddings: Tensor; readonly rows: Tensor } {
  const [places, width] = [dimAt(softPrompt.shape, 0), dimAt(softPrompt.shape, 1)]
  const samples = size('samples')
  return {
    embeddings: expand(unsqueeze(softPrompt, [0]), [samples, places, width]),
    rows: input(stepInputs.softPromptRows, 'int64', [samples, places, 2]),
  }
}

export function gradientName(parameter: Pick<Parameter, 'name'> | undefined): string {
  if (parameter === undefined) throw new Error('internal: more gradients than parameters')
  return `gradient.${parameter.name}`
}
