import { describe, expect, test } from 'vitest'
import type { TokenGrid } from './contracts.ts'
import { gridTokens, imageGrid, sameGrid } from './token-grid.ts'

describe('tokens of a grid', () => {
  test.each<[string, TokenGrid, number]>([
    ['one picture', imageGrid(3, 5), 15],
    ['frames', { segments: [{ frames: 4, rows: 2, columns: 3 }] }, 24],
    ['rows that end with a separator', { segments: [{ frames: 1, rows: 3, columns: 5, separator: 'row' }] }, 18],
    [
      'tiles with a separator between them, none after the last',
      { segments: [2, 2, 1].map((rows) => ({ frames: 1, rows, columns: 2, separator: 'segment' as const })) },
      12,
    ],
    [
      'a whole and its tiles',
      {
        segments: [
          { frames: 1, rows: 2, columns: 2 },
          { frames: 1, rows: 4, columns: 4, separator: 'row' },
        ],
      },
      24,
    ],
    ['nothing', { segments: [] }, 0],
  ])('%s', (_, grid, tokens) => {
    expect(gridTokens(grid)).toBe(tokens)
  })
})

test('grids are the same if all their segments lie alike', () => {
  expect(sameGrid(imageGrid(2, 3), imageGrid(2, 3))).toBe(true)
  // As many tokens, lying otherwise.
  expect(sameGrid(imageGrid(2, 3), imageGrid(3, 2))).toBe(false)
  expect(sameGrid({ segments: [{ frames: 2, rows: 1, columns: 3 }] }, imageGrid(2, 3))).toBe(false)
  expect(sameGrid({ segments: [...imageGrid(1, 1).segments, ...imageGrid(1, 1).segments] }, imageGrid(1, 1))).toBe(false)
  expect(sameGrid({ segments: [{ frames: 1, rows: 1, columns: 2, separator: 'row' }] }, imageGrid(1, 2))).toBe(false)
})
