import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { pooledMlp } from '../../projectors/pooled-mlp.ts'
import { ModalignError } from '../errors.ts'
import type { MediaPath } from '../model/splice.ts'
import { imageGrid } from '../model/token-grid.ts'
import { type Batch, type BatchItem, collate } from './batch.ts'

/** 2 features of width 3 become 4 tokens. */
const image: MediaPath = { modality: 'image', projector: pooledMlp({ tokens: 4 }), grid: imageGrid(1, 2), width: 3 }
const tokensOut = 4

/** A sample of text and pictures: each piece a list of `[id, weight]`, or the first number of a picture's features. */
function item(pieces: readonly Piece[]): BatchItem {
  const [ids, weights]: [number[], number[]] = [[], []]
  const media: BatchItem['media'][number][] = []
  const features: BatchItem['features'][number][] = []
  for (const piece of pieces) {
    if (typeof piece === 'number') {
      media.push({ part: { type: 'image', source: `${piece}` }, turn: 0, start: ids.length, length: tokensOut })
      features.push({ modality: 'image', data: Float32Array.from({ length: 6 }, (_, index) => piece + index) })
      for (let i = 0; i < tokensOut; i++) {
        ids.push(-media.length)
        weights.push(0)
      }
    } else
      for (const [id, weight] of piece) {
        ids.push(id)
        weights.push(weight)
      }
  }
  weights[0] = 0
  return {
    ids: Int32Array.from(ids),
    weights: Float32Array.from(weights),
    targets: weights.filter((weight) => weight > 0).length,
    media,
    features,
  }
}

const numbers = (batch: Batch, name: string): readonly number[] => Array.from(batch.feeds[name]?.data ?? [], Number)
const dims = (batch: Batch, name: string): readonly number[] | undefined => batch.feeds[name]?.dims

const textPiece = fc.array(fc.tuple(fc.nat({ max: 99 }), fc.constantFrom(0, 0, 0.5, 1, 2)), { minLength: 1, maxLength: 9 })
type Piece = number | readonly (readonly [number, number])[]
const ending: Piece = [
  [7, 0],
  [8, 1],
]
const anyItem = fc
  .tuple(fc.option(fc.nat({ max: 50 }), { nil: [] }), fc.array(fc.oneof(textPiece, fc.nat({ max: 50 })), { maxLength: 4 }))
  .map(([first, rest]) => {
    const pieces: readonly Piece[] = [first, ...rest, ending]
    return item(pieces.filter((piece) => typeof piece === 'number' || piece.length > 0))
  })

describe('collate', () => {
  test('lays a batch out as the step graph reads it', () => {
    const batch = collate(
      [
        item([
          [
            [5, 0],
            [6, 1],
            [7, 0.5],
          ],
        ]),
        item([[[1, 0]], 10, [[2, 2]]]),
      ],
      { media: [image], headChunks: 2, lengthMultiple: 4 },
    )
    expect(dims(batch, 'ids')).toEqual([2, 8])
    expect(numbers(batch, 'ids')).toEqual([5, 6, 7, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0])
    expect(numbers(batch, 'positions')).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7])
    // The state before each target predicts it.
    expect(dims(batch, 'supervised.rows')).toEqual([2, 4, 2])
    expect(numbers(batch, 'supervised.rows').slice(0, 6)).toEqual([0, 0, 0, 1, 1, 4])
    expect(numbers(batch, 'supervised.labels')).toEqual([6, 7, 2, 0, 0, 0, 0, 0])
    expect(numbers(batch, 'supervised.weights')).toEqual([1, 0.5, 2, 0, 0, 0, 0, 0])
    expect(dims(batch, 'image.features')).toEqual([1, 2, 3])
    expect(numbers(batch, 'image.features')).toEqual([10, 11, 12, 13, 14, 15])
    expect(dims(batch, 'image.rows')).toEqual([1, 4, 2])
    expect(numbers(batch, 'image.rows')).toEqual([1, 1, 1, 2, 1, 3, 1, 4])
    expect(batch).toMatchObject({ weight: 3.5, tokens: 9, targets: 3 })
  })

  test('a batch without media has inputs of size 0 for them', () => {
    const batch = collate(
      [
        item([
          [
            [5, 0],
            [6, 1],
          ],
        ]),
      ],
      { media: [image], headChunks: 1 },
    )
    expect(dims(batch, 'image.features')).toEqual([0, 2, 3])
    expect(dims(batch, 'image.rows')).toEqual([0, 4, 2])
  })

  test('keeps every target, weight and medium, whatever the batch', () => {
    fc.assert(
      fc.property(
        fc.array(anyItem, { minLength: 1, maxLength: 5 }),
        fc.integer({ min: 1, max: 5 }),
        fc.constantFrom(1, 8, 16),
        (items, headChunks, lengthMultiple) => {
          const batch = collate(items, { media: [image], headChunks, lengthMultiple })
          const [rows, width] = dims(batch, 'ids') ?? []
          expect(rows).toBe(items.length)
          expect((width ?? 0) % lengthMultiple).toBe(0)
          expect(width).toBeGreaterThanOrEqual(Math.max(...items.map(({ ids }) => ids.length)))
          const supervised = numbers(batch, 'supervised.rows')
          const [labels, weights] = [numbers(batch, 'supervised.labels'), numbers(batch, 'supervised.weights')]
          const expected = items.flatMap(({ ids, weights: own }, row) =>
            Array.from(own).flatMap((weight, place) => (weight > 0 ? [[row, place - 1, ids[place], weight]] : [])),
          )
          const found = labels.flatMap((label, index) =>
            (weights[index] ?? 0) > 0 ? [[supervised[2 * index], supervised[2 * index + 1], label, weights[index]]] : [],
          )
          expect(found).toEqual(expected)
          expect(batch.weight).toBeCloseTo(
            expected.reduce((sum, [, , , weight]) => sum + (weight ?? 0), 0),
            6,
          )
          expect(batch.targets).toBe(expected.length)
          // Rows that fill up are valid places.
          expect(supervised.every((value) => value >= 0)).toBe(true)
          expect(labels.length % headChunks).toBe(0)
          const places = numbers(batch, 'image.rows')
          const media = items.flatMap(({ ids }, row) => Array.from(ids).flatMap((id, place) => (id < 0 ? [row, place] : [])))
          expect(places).toEqual(media)
          expect(numbers(batch, 'image.features')).toEqual(
            items.flatMap(({ features }) => features.flatMap(({ data }) => Array.from(data))),
          )
          expect(numbers(batch, 'ids').every((id) => id >= 0)).toBe(true)
        },
      ),
    )
  })

  test.each<[string, BatchItem]>([
    ['of another width', { ...item([3, [[1, 1]]]), features: [{ modality: 'image', data: new Float32Array(5) }] }],
    ['missing', { ...item([3, [[1, 1]]]), features: [] }],
  ])('features that are %s are refused', (_, bad) => {
    expect(() => collate([bad], { media: [image], headChunks: 1 })).toThrow(ModalignError)
    expect(() => collate([bad], { media: [image], headChunks: 1 })).toThrow('BATCH_FEATURES: image: got')
  })

  test('an empty batch is refused', () => {
    expect(() => collate([], { media: [], headChunks: 1 })).toThrow('BATCH_EMPTY')
  })
})
