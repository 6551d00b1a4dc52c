import sharp from 'sharp'
import { writeFileAtomic } from '../io/atomic.ts'
import { type LossCurveOptions, type LossPoint, renderLossCurve } from './loss-curve.ts'

export interface LossCurveFiles {
  /** Path of the SVG, which follows the viewer's light or dark preference. */
  readonly svg?: string
  /** Path of the PNG. */
  readonly png?: string
}

/** Pixels of the PNG for each of the SVG. */
const pngScale = 2

/**
 * The chart as a PNG of twice its size in pixels; light unless the options say dark.
 *
 * @throws ModalignError as {@link renderLossCurve}
 */
export async function lossCurvePng(points: readonly LossPoint[], options: LossCurveOptions = {}): Promise<Uint8Array> {
  const theme = options.theme === 'dark' ? 'dark' : 'light'
  const svg = renderLossCurve(points, { ...options, theme })
  return sharp(Buffer.from(svg), { density: 72 * pngScale })
    .png({ palette: true, compressionLevel: 9 })
    .toBuffer()
}

/**
 * Writes the loss curve of a run; each file appears whole or not at all.
 *
 * @throws ModalignError `LOSS_CURVE_EMPTY`, `METRIC_NOT_FINITE`, and what `writeFileAtomic` throws
 * @example
 * await writeLossCurve({ svg: 'runs/first/loss.svg', png: 'runs/first/loss.png' }, [{ step: 1, loss: 10.8 }, { step: 2, loss: 9.1 }])
 */
export async function writeLossCurve(
  { svg, png }: LossCurveFiles,
  points: readonly LossPoint[],
  options: LossCurveOptions = {},
): Promise<void> {
  if (svg !== undefined) await writeFileAtomic(svg, renderLossCurve(points, options))
  if (png !== undefined) await writeFileAtomic(png, await lossCurvePng(points, options))
}
