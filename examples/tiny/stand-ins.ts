/**
 * What stands for a picture while the tiny language model is trained. A projector never says "cat" outright: its token holds a little of many names. So the model learns from
 * vectors that are mixtures of names, and learns to answer each name as often as the vector holds it: by softmax(s cos(vector, name)), or now and then a name that is not in it.
 */

import { size } from '../../src/graph/dim.ts'
import { add } from '../../src/graph/operators/add.ts'
import { div } from '../../src/graph/operators/div.ts'
import { mul } from '../../src/graph/operators/mul.ts'
import { reduceMean } from '../../src/graph/operators/reduce-mean.ts'
import { reduceSum } from '../../src/graph/operators/reduce-sum.ts'
import { sqrt } from '../../src/graph/operators/sqrt.ts'
import { input, type Tensor } from '../../src/graph/tensor.ts'
import { randomStream } from '../../src/random.ts'
import { int64Tensor, type NamedTensors } from '../../src/tensors.ts'

/** Names in one vector. */
const mixed = 4

const inputs = {
  /** int64 [pictures, 2]: batch row and place of the tokens that stand for pictures. */
  rows: 'pictures.rows',
  /** int64 [pictures, mixed]: tokens of names. */
  names: 'pictures.names',
  /** float32 [pictures, mixed, 1]. */
  weights: 'pictures.weights',
  /** float32 [pictures, width], in units of a name's own size. */
  noise: 'pictures.noise',
} as const

export interface StandInSettings {
  readonly seed: number
  readonly width: number
  /** The s of softmax(s cos). */
  readonly sharpness: number
  /** Largest noise, in units of a name's size. */
  readonly noise: number
  /** Share of clean vectors, once mixtures are in full use. */
  readonly clean: number
  /** Steps between which mixtures come into use: reading is learnt from clean vectors first. */
  readonly mixedFrom: number
  readonly mixedFully: number
}

/** The rows of `inputs` and what belongs there, as graph tensors: mixtures, all of one size, as a projector's tokens are. */
export function standIns(embed: (ids: Tensor) => Tensor, width: number): { readonly rows: Tensor; readonly vectors: Tensor } {
  const pictures = size('pictures')
  const names = embed(input(inputs.names, 'int64', [pictures, mixed]))
  const weights = input(inputs.weights, 'float32', [pictures, mixed, 1])
  const noise = input(inputs.noise, 'float32', [pictures, width])
  const sizes = rootMeanSquare(names)
  const sum = add(reduceSum(mul(div(names, sizes), weights), [1]), noise)
  return {
    rows: input(inputs.rows, 'int64', [pictures, 2]),
    vectors: mul(div(sum, rootMeanSquare(sum)), reduceMean(sizes, [1])),
  }
}

function rootMeanSquare(x: Tensor): Tensor {
  return sqrt(add(reduceMean(mul(x, x), [-1], { keepdims: true }), 1e-12))
}

/** Pictures as they are: each the name itself. */
export function cleanStandIns(rows: readonly number[], names: readonly number[], width: number): NamedTensors {
  const weights = new Float32Array(names.length * mixed)
  for (let picture = 0; picture < names.length; picture++) weights[picture * mixed] = 1
  return feeds(
    rows,
    names.flatMap((name) => Array.from({ length: mixed }, () => name)),
    weights,
    new Float32Array(names.length * width),
    width,
  )
}

/** The vectors of one step's pictures, whose conversations are about `names`: a pure function of seed, step and place. */
export function drawStandIns(
  step: number,
  { rows, names, all }: { readonly rows: readonly number[]; readonly names: readonly number[]; readonly all: readonly number[] },
  { seed, width, sharpness, noise, clean, mixedFrom, mixedFully }: StandInSettings,
): NamedTensors {
  const share = (1 - clean) * Math.min(1, Math.max(0, (step - mixedFrom) / (mixedFully - mixedFrom)))
  const random = randomStream({ seed, stream: `stand-ins/${step}` })
  let drawn = 0
  const other = (): number => all[random.integer(drawn++, all.length)] ?? 0
  const ids: number[] = []
  const weights = new Float32Array(names.length * mixed)
  const noises = new Float32Array(names.length * width)
  names.forEach((name, picture) => {
    if (random.uniform(drawn++) >= share) {
      weights[picture * mixed] = 1
      ids.push(name, ...Array.from({ length: mixed - 1 }, other))
      return
    }
    const parts = Array.from({ length: mixed }, () => -Math.log(1 - random.uniform(drawn++)))
    const deviation = noise * random.uniform(drawn++) * Math.hypot(...parts)
    const length = Math.hypot(...parts, deviation)
    // The vector's cosine with a name that is not in it is about normal with variance 1 / width.
    const masses = [
      ...parts.map((part) => Math.exp((sharpness * part) / length)),
      (all.length - mixed) * Math.exp(sharpness ** 2 / (2 * width)),
    ]
    let left = random.uniform(drawn++) * masses.reduce((sum, mass) => sum + mass, 0)
    const place = masses.findIndex((mass) => {
      left -= mass
      return left < 0
    })
    parts.forEach((part, index) => {
      weights[picture * mixed + index] = part
      ids.push(index === place ? name : other())
    })
    for (let channel = 0; channel < width; channel++) noises[picture * width + channel] = deviation * random.normal(drawn++)
  })
  return feeds(rows, ids, weights, noises, width)
}

function feeds(rows: readonly number[], ids: readonly number[], weights: Float32Array, noise: Float32Array, width: number): NamedTensors {
  const count = rows.length / 2
  return {
    [inputs.rows]: int64Tensor(rows, [count, 2]),
    [inputs.names]: int64Tensor(ids, [count, mixed]),
    [inputs.weights]: { dtype: 'float32', dims: [count, mixed, 1], data: weights },
    [inputs.noise]: { dtype: 'float32', dims: [count, width], data: noise },
  }
}
