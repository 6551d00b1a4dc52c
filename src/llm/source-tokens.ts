/** Encoder-decoders: which tokens of a call are the encoder's, as inputs of a graph and as what is fed to them. */
import { type Dim, size } from '../graph/dim.ts'
import { input } from '../graph/tensor.ts'
import { int64Tensor, type NamedTensors } from '../tensors.ts'
import type { Decoder, SourceTokens } from './decoder.ts'

export const sourceInputs = {
  /** int64 [batch]. */
  lengths: 'source.lengths',
  /** int64 [source tokens]. */
  encoderPlaces: 'source.encoder_places',
  /** int64 [target tokens]. */
  decoderPlaces: 'source.decoder_places',
} as const

/** Graph inputs for `DecodeContext.source`; nothing for families without an encoder. */
export function sourceContext({ hasEncoder }: Pick<Decoder, 'hasEncoder'>, batch: Dim): { readonly source?: SourceTokens } {
  if (hasEncoder !== true) return {}
  return {
    source: {
      lengths: input(sourceInputs.lengths, 'int64', [batch]),
      encoderPlaces: input(sourceInputs.encoderPlaces, 'int64', [size('source_tokens')]),
      decoderPlaces: input(sourceInputs.decoderPlaces, 'int64', [size('target_tokens')]),
    },
  }
}

/**
 * What a call is fed that begins at every row's first token: whole sequences of training, prompts of generation (all of them source).
 *
 * @param lengths how many tokens at each row's start are the encoder's: at least one.
 * @param tokens of the longest row, padding included.
 */
export function sourceFeeds(lengths: readonly number[], tokens: number): NamedTensors {
  const [shortest, longest] = [Math.min(...lengths), Math.max(...lengths)]
  return feeds(
    lengths,
    Array.from({ length: longest }, (_, place) => place),
    Array.from({ length: tokens - shortest + 1 }, (_, index) => shortest - 1 + index),
  )
}

/** What a call is fed that adds tokens to a cache: all of them are the decoder's. */
export function continuedSourceFeeds(lengths: readonly number[], tokens = 1): NamedTensors {
  return feeds(
    lengths,
    [],
    Array.from({ length: tokens }, (_, place) => place),
  )
}

function feeds(lengths: readonly number[], encoderPlaces: readonly number[], decoderPlaces: readonly number[]): NamedTensors {
  return {
    [sourceInputs.lengths]: int64Tensor(lengths, [lengths.length]),
    [sourceInputs.encoderPlaces]: int64Tensor(encoderPlaces, [encoderPlaces.length]),
    [sourceInputs.decoderPlaces]: int64Tensor(decoderPlaces, [decoderPlaces.length]),
  }
}
