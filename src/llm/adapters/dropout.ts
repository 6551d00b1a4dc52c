/**
 * Dropout on the inputs of a LoRA (Srivastava et al. 2014; Hu et al. 2021), reproducible on every device: a step is fed one field of random integers, from which each
 * layer makes a mask of its own by multiplying with an odd number that hangs on the layer's name.
 *
 * The elements of one mask are independent, since the field's are and multiplying by an odd number is a bijection of 32-bit integers; two layers' masks nearly so, as
 * the high bits of multiplicative hashing are (Dietzfelbinger et al. 1997).
 */
import type { Dim } from '../../graph/dim.ts'
import { greaterOrEqual } from '../../graph/operators/greater-or-equal.ts'
import { mul } from '../../graph/operators/mul.ts'
import { slice } from '../../graph/operators/slice.ts'
import { where } from '../../graph/operators/where.ts'
import { constant, dimAt, fixedDim, input, scalar, type Tensor } from '../../graph/tensor.ts'
import { philox4x32, randomStream } from '../../random.ts'
import type { NamedTensors, TensorValue } from '../../tensors.ts'
import type { DropoutInputs } from '../decoder.ts'

/** The names of the step's inputs that dropout adds. */
export const dropoutInputs = {
  /** int32 [batch, tokens, width], uniform. */
  field: 'dropout.field',
  /** int32, rank 0: what is below it, after a layer's multiplication, is dropped. */
  threshold: 'dropout.threshold',
  /** float32, rank 0: 1 / (1 - rate), or 1 where nothing is dropped. */
  scale: 'dropout.scale',
} as const

/** The inputs of a graph with dropout; `dims`: of the field. */
export function dropoutInput(dims: readonly Dim[]): DropoutInputs {
  return {
    field: input(dropoutInputs.field, 'int32', dims),
    threshold: input(dropoutInputs.threshold, 'int32', []),
    scale: input(dropoutInputs.scale, 'float32', []),
  }
}

/** x [batch, tokens, C] with some elements 0 and the others scaled, so that the expected value stays. */
export function dropped(x: Tensor, layer: string, { field, threshold, scale }: DropoutInputs): Tensor {
  const own = slice(field, [
    { axis: 1, end: dimAt(x.shape, 1) },
    { axis: 2, end: fixedDim(x.shape, -1, layer) },
  ])
  const kept = greaterOrEqual(mul(own, constant({ dtype: 'int32', dims: [], data: Int32Array.of(multiplierOf(layer)) })), threshold)
  return where(kept, mul(x, scale), scalar(0))
}

/** Odd, and the same in every run. */
export function multiplierOf(layer: string): number {
  const [word = 0] = randomStream({ seed: 0, stream: `dropout/${layer}` }).block(0)
  return word | 1
}

export interface DropoutField {
  readonly rate: number
  /** Of the widest layer with dropout. */
  readonly width: number
}

/**
 * What one pass through the step's graph is fed.
 *
 * @param key of the random numbers: the run's seed, and a place in the run that no other pass has. Absent: nothing is dropped, as in evaluation.
 */
export function dropoutFeeds(
  { rate, width }: DropoutField,
  [batch, tokens]: readonly [number, number],
  key?: { readonly seed: number; readonly pass: number },
): NamedTensors {
  const dims = [batch, tokens, width]
  const data = key === undefined ? new Int32Array(batch * tokens * width) : randomIntegers(batch * tokens * width, key)
  const threshold = key === undefined ? -(2 ** 31) : Math.round(rate * 2 ** 32) - 2 ** 31
  const integer = (values: Int32Array, shape: readonly number[]): TensorValue => ({ dtype: 'int32', dims: shape, data: values })
  return {
    [dropoutInputs.field]: integer(data, dims),
    [dropoutInputs.threshold]: integer(Int32Array.of(threshold), []),
    [dropoutInputs.scale]: { dtype: 'float32', dims: [], data: Float32Array.of(key === undefined ? 1 : 1 / (1 - rate)) },
  }
}

/** Philox's four words a block; the counter's upper half is the pass. */
function randomIntegers(length: number, { seed, pass }: { readonly seed: number; readonly pass: number }): Int32Array {
  const two32 = 2 ** 32
  const words = new Uint32Array(4)
  const out = new Int32Array(length)
  const [passLow, passHigh] = [pass % two32, Math.floor(pass / two32)]
  const [keyLow, keyHigh] = [seed % two32, Math.floor(seed / two32)]
  for (let start = 0, block = 0; start < length; start += 4, block++) {
    // The last counter word tells these numbers from those of `randomStream`, whose streams are hashes: bit patterns of a text that nobody else hashes.
    philox4x32(words, block, passLow, passHigh, 0x64726f70, keyLow, keyHigh)
    for (let i = 0; i < 4 && start + i < length; i++) out[start + i] = words[i] ?? 0
  }
  return out
}
