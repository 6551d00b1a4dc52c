import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import sharp from 'sharp'
import { describe, expect, test } from 'vitest'
import { randomStream } from '../random.ts'
import { niceAxis, wholeAxis } from './chart-axis.ts'
import { type LossPoint, renderLossCurve } from './loss-curve.ts'
import { lossCurvePng, writeLossCurve } from './loss-curve-files.ts'

const noise = randomStream({ seed: 1, stream: 'loss' })
const falling = (count: number): LossPoint[] =>
  Array.from({ length: count }, (_, i) => ({ step: i + 1, loss: (1 + 8 * Math.exp((-10 * i) / count)) * (1 + 0.05 * noise.normal(i)) }))

/** Points of the path or circles of a class. */
function coordinates(svg: string, className: string): readonly (readonly [number, number])[] {
  const path = new RegExp(`<path class="${className}" d="([^"]*)"`).exec(svg)?.[1] ?? ''
  return [...path.matchAll(/[ML]([\d.]+) ([\d.]+)/g)].map(([, x, y]) => [Number(x), Number(y)])
}

describe('axes', () => {
  const bounds = fc
    .tuple(fc.double({ min: -1e6, max: 1e6, noNaN: true }), fc.double({ min: 1e-6, max: 1e6, noNaN: true }))
    .map(([low, range]) => [low, low + range] as const)
    .filter(([low, high]) => high - low > Math.abs(high) * 1e-6)

  test('law: ticks are evenly spaced at round steps, cover the data, and read differently', () => {
    fc.assert(
      fc.property(bounds, fc.integer({ min: 3, max: 10 }), ([low, high], count) => {
        const axis = niceAxis(low, high, count)
        const [first = 0, second = 0] = axis.ticks
        const step = second - first
        expect(axis.low).toBeLessThanOrEqual(low + step * 1e-6)
        expect(axis.high).toBeGreaterThanOrEqual(high - step * 1e-6)
        expect(axis.high - axis.low).toBeLessThan(high - low + 2 * step)
        expect([1, 2, 5, 10]).toContain(Math.round(step / 10 ** Math.floor(Math.log10(step * 1.000001))))
        expect(axis.ticks.length).toBeGreaterThanOrEqual(2)
        expect(axis.ticks.length).toBeLessThanOrEqual(2 * count + 2)
        expect(new Set(axis.ticks.map(axis.label)).size).toBe(axis.ticks.length)
      }),
    )
  })

  test.each([
    [0.13, 2.9, 6, ['0', '0.5', '1.0', '1.5', '2.0', '2.5', '3.0']],
    [0, 10.8, 6, ['0', '2', '4', '6', '8', '10', '12']],
    [2.31, 2.34, 5, ['2.31', '2.32', '2.33', '2.34']],
    [-1, 1, 3, ['−1', '0', '1']],
    [0, 40_000, 5, ['0', '10k', '20k', '30k', '40k']],
    [0, 4000, 5, ['0', '1,000', '2,000', '3,000', '4,000']],
    [0, 0.0004, 5, ['0', '1e−4', '2e−4', '3e−4', '4e−4']],
    [5, 5, 3, ['4.5', '5.0', '5.5']],
  ])('%d to %d', (low, high, count, labels) => {
    const axis = niceAxis(low, high, count)
    expect(axis.ticks.map(axis.label)).toEqual(labels)
  })

  test('steps get whole numbers inside the data', () => {
    const axis = wholeAxis(1, 2000, 7)
    expect(axis.ticks.map(axis.label)).toEqual(['500', '1,000', '1,500', '2,000'])
    expect(wholeAxis(1, 4, 7).ticks).toEqual([1, 2, 3, 4])
  })
})

describe('loss curve', () => {
  test.each([1, 2, 19, 20, 200, 201, 5000])('%d steps: a picture that librsvg accepts, of the asked size, without fonts', async (count) => {
    const svg = renderLossCurve(falling(count), { width: 640, height: 360, evaluation: [{ step: count, loss: 1.2 }] })
    expect(svg).not.toContain('<text')
    expect(svg).not.toMatch(/NaN|Infinity|undefined/)
    expect(await sharp(Buffer.from(svg)).metadata()).toMatchObject({ width: 640, height: 360 })
  })

  test('a straight line stays straight when smoothed, to its very ends', () => {
    const svg = renderLossCurve(Array.from({ length: 500 }, (_, i) => ({ step: i + 1, loss: 10 - i / 100 })))
    const points = coordinates(svg, 'line')
    const [[x0, y0] = [0, 0]] = points
    const [x1, y1] = points.at(-1) ?? [0, 0]
    expect(points).toHaveLength(300)
    for (const [x, y] of points) expect(Math.abs(y - (y0 + ((x - x0) / (x1 - x0)) * (y1 - y0)))).toBeLessThan(0.05)
  })

  test('smoothing follows the course below the noise', () => {
    const svg = renderLossCurve(falling(2000))
    const smooth = coordinates(svg, 'line')
    const raw = coordinates(svg, 'raw')
    const rough = (points: readonly (readonly [number, number])[]) =>
      points.slice(1).reduce((sum, [, y], i) => sum + Math.abs(y - (points[i]?.[1] ?? 0)), 0)
    expect(rough(smooth)).toBeLessThan(rough(raw) / 10)
  })

  test('a spike is marked at the edge instead of flattening the rest', () => {
    const points = falling(1000)
    points[700] = { step: 701, loss: 500 }
    const svg = renderLossCurve(points)
    expect(svg.match(/class="outlier"/g)).toHaveLength(1)
    const [[, start] = [0, 0]] = coordinates(svg, 'line')
    const end = coordinates(svg, 'line').at(-1)?.[1] ?? 0
    expect(end - start, 'the curve uses most of the height').toBeGreaterThan(150)
    expect(renderLossCurve(falling(1000))).not.toContain('class="outlier"')
  })

  test('the order of the points and the caller’s array do not matter', () => {
    const points = Object.freeze(falling(50))
    expect(renderLossCurve([...points].reverse())).toBe(renderLossCurve(points))
  })

  test('titles are text, not markup; characters without an outline are left to fonts', () => {
    const svg = renderLossCurve(falling(3), { title: '<script>alert("1")</script> & 训练\u0000' })
    expect(svg).not.toContain('<script>')
    expect(svg).toContain('<title id="chart-title">&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; 训练</title>')
    expect(svg.match(/<text /g)).toHaveLength(1)
  })

  test('light, dark, or what the viewer prefers', () => {
    expect(renderLossCurve(falling(3))).toContain('@media (prefers-color-scheme:dark)')
    expect(renderLossCurve(falling(3), { theme: 'dark' })).not.toContain('@media')
    expect(renderLossCurve(falling(3), { theme: 'light' })).toContain('.background{fill:#ffffff}')
  })

  test.each([
    [[], 'LOSS_CURVE_EMPTY'],
    [[{ step: 1, loss: Number.NaN }], 'METRIC_NOT_FINITE'],
    [[{ step: Number.POSITIVE_INFINITY, loss: 1 }], 'METRIC_NOT_FINITE'],
  ])('%j is refused', (points, code) => {
    expect(() => renderLossCurve(points)).toThrow(expect.objectContaining({ code }))
  })
})

describe('files', () => {
  test('the PNG is drawn where the SVG says', async () => {
    const points = falling(400)
    const [x, y] = coordinates(renderLossCurve(points), 'line').at(150) ?? [0, 0]
    const pixels = async (theme: 'light' | 'dark') => {
      const { data, info } = await sharp(await lossCurvePng(points, { theme }))
        .removeAlpha()
        .raw()
        .toBuffer({ resolveWithObject: true })
      expect(info).toMatchObject({ width: 1600, height: 900, channels: 3 })
      const at = (px: number, py: number) => [...data.subarray(3 * (py * info.width + px), 3 * (py * info.width + px) + 3)]
      return [at(Math.round(2 * x), Math.round(2 * y)), at(3, 3)]
    }
    const near = (actual: readonly number[] | undefined, expected: readonly number[]) =>
      expect(Math.max(...expected.map((value, i) => Math.abs((actual?.[i] ?? -999) - value)))).toBeLessThan(16)
    const [line, background] = await pixels('light')
    near(line, [0x2a, 0x6f, 0xdb])
    near(background, [255, 255, 255])
    const [darkLine, darkBackground] = await pixels('dark')
    near(darkLine, [0x5a, 0xa2, 0xff])
    near(darkBackground, [0x0f, 0x13, 0x19])
  })

  test('both files are written whole, and nothing when the points are bad', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'modalign-curve-'))
    try {
      const files = { svg: join(folder, 'loss.svg'), png: join(folder, 'loss.png') }
      await expect(writeLossCurve(files, [])).rejects.toMatchObject({ code: 'LOSS_CURVE_EMPTY' })
      expect(await readdir(folder)).toEqual([])
      await writeLossCurve(files, falling(30), { title: 'run' })
      expect((await readdir(folder)).sort()).toEqual(['loss.png', 'loss.svg'])
      expect(await readFile(files.svg, 'utf8')).toBe(renderLossCurve(falling(30), { title: 'run' }))
      expect(await sharp(files.png).metadata()).toMatchObject({ format: 'png', width: 1600 })
    } finally {
      await rm(folder, { recursive: true })
    }
  })
})
