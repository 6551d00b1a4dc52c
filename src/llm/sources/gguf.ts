/** A GGUF file: everything a model needs in one file, its weights in blocks. */
import { basename, resolve } from 'node:path'
import { fileSource } from '../../io/byte-source.ts'
import { fingerprint } from '../../io/fingerprint.ts'
import { createChatTemplate } from '../../text/chat-template.ts'
import { ggmlTokenizerFiles } from '../../text/ggml-vocabulary.ts'
import { createTokenizer } from '../../text/tokenizer.ts'
import { openGguf } from '../../weights/gguf/gguf.ts'
import { checkpointWeights } from '../checkpoint-weights.ts'
import { architectureOf } from '../gguf/architectures/index.ts'
import { GgufMetadata } from '../gguf/metadata.ts'
import { ropeFactors } from '../gguf/rope-factors.ts'
import { ggufVocabulary } from '../gguf/vocabulary.ts'
import { expandedWeight, ggufWeights } from '../gguf/weights.ts'
import { cachedCheckpoint } from '../weight-cache.ts'
import { once } from './folder.ts'
import type { ModelSource, SourceOptions } from './model-source.ts'
import { sampledRms } from './sampled-rms.ts'

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
  const fingerprints = [await fingerprint(await fileSource(path))]
  const tokenizer = await createTokenizer(files)
  const checkpoint = await cachedCheckpoint('float32', fingerprints, () => weights.map((weight) => expandedWeight(file, weight)), {
    ...(options.cacheFolder === undefined ? {} : { folder: options.cacheFolder }),
    ...(options.onUnpack === undefined ? {} : { onBuild: options.onUnpack }),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  })
  return {
    label: basename(path).replace(/\.gguf$/i, ''),
    path: resolve(path),
    config,
    configFile: path,
    weights: checkpointWeights(checkpoint),
    fingerprints,
    rms: (name) => sampledRms(checkpoint, name),
    tokenizer,
    template: once(() => createChatTemplate(files)),
    generationConfig: files.generationConfig,
  }
}
