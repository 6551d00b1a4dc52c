/** A GGUF file: everything a model needs in one file, its weights in blocks. */
import { basename, resolve } from 'node:path'
import { createChatTemplate } from '../../text/chat-template.ts'
import { ggmlTokenizerFiles } from '../../text/ggml-vocabulary.ts'
import { chosenTemplate } from '../../text/template-choice.ts'
import { createTokenizer } from '../../text/tokenizer.ts'
import { formatOf, ggufTensor } from '../../weights/gguf/dequantise.ts'
import { type GgufFile, openGguf } from '../../weights/gguf/gguf.ts'
import type { TensorToWrite } from '../../weights/safetensors.ts'
import { blockWeights } from '../block-weights.ts'
import { checkpointWeights } from '../checkpoint-weights.ts'
import { architectureOf } from '../gguf/architectures/index.ts'
import { GgufMetadata } from '../gguf/metadata.ts'
import { ropeFactors } from '../gguf/rope-factors.ts'
import { ggufVocabulary } from '../gguf/vocabulary.ts'
import { expandedWeight, type GgufWeight, ggufWeights, packedWeight } from '../gguf/weights.ts'
import { cachedCheckpoint } from '../weight-cache.ts'
import { fingerprintsOf, once } from './folder.ts'
import type { ModelSource, SourceOptions } from './model-source.ts'

/** @throws ModalignError `GGUF_*`, `TOKENIZER_*`, and what the cache throws */
export async function openGgufModel(path: string, options: SourceOptions): Promise<ModelSource> {
  const file = await openGguf(path)
  const metadata = new GgufMetadata(file)
  const architecture = architectureOf(metadata)
  const plain = architecture.config(metadata)
  const factors = await ropeFactors(file, metadata, plain)
  const config = factors === undefined ? plain : { ...plain, rope_scaling: factors }
  const files = ggmlTokenizerFiles(ggufVocabulary(metadata))
  const weights = ggufWeights(file, architecture, config)
  const fingerprints = fingerprintsOf([path])
  const chosen = await chosenTemplate(options.template)
  const { weights: form = 'float32' } = options
  const tensors = (): readonly TensorToWrite[] =>
    form === 'float32' ? weights.map((weight) => expandedWeight(file, weight)) : weights.flatMap((weight) => packedWeight(file, weight))
  const checkpoint = await cachedCheckpoint(form, await fingerprints(), tensors, {
    ...(options.cacheFolder === undefined ? {} : { folder: options.cacheFolder }),
    ...(options.onUnpack === undefined ? {} : { onBuild: options.onUnpack }),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  })
  return {
    label: basename(path).replace(/\.gguf$/i, ''),
    path: resolve(path),
    config,
    configFile: path,
    weights: form === 'float32' ? checkpointWeights(checkpoint) : blockWeights(checkpoint),
    fingerprints,
    rms: (name) => rmsOf(file, weights, name),
    tokenizer: () => createTokenizer(files),
    template: once(() => createChatTemplate({ ...files, ...chosen })),
    generationConfig: files.generationConfig,
  }
}

const sampledRuns = 16
const sampledBlocks = 1024

/** Root mean square of evenly spaced runs of a weight's blocks, as `sampledRms` has it of float32. */
async function rmsOf(file: GgufFile, weights: readonly GgufWeight[], name: string): Promise<number> {
  const { type, offset, byteLength } = ggufTensor(file, weights.find((weight) => weight.name === name)?.tensor ?? name)
  const format = formatOf(file, name, type)
  const blocks = byteLength / type.blockBytes
  const run = Math.min(sampledBlocks, blocks)
  const values = new Float32Array(run * type.blockElements)
  let sum = 0
  for (let index = 0; index < sampledRuns; index++) {
    const first = Math.floor(((blocks - run) * index) / (sampledRuns - 1))
    format(await file.source.read(offset + first * type.blockBytes, run * type.blockBytes), values)
    for (const value of values) sum += value * value
  }
  return Math.sqrt(sum / (sampledRuns * values.length))
}
