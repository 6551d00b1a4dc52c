/** The loss curve of a run as a picture: every step's loss, its smoothed course and, where there is one, the loss on held-out data. */
import { ModalignError } from '../errors.ts'
import { type Axis, niceAxis, wholeAxis } from './chart-axis.ts'
import { escapeXml, OutlinedText, round, textWidth } from './chart-text.ts'

export interface LossPoint {
  readonly step: number
  readonly loss: number
}

export interface LossCurveOptions {
  /** Default `Training loss`. */
  readonly title?: string
  /** A second line under the title; default: how many steps, and from which loss to which. */
  readonly subtitle?: string
  /** What the loss is measured in; default `nats per supervised token`. */
  readonly unit?: string
  /** Loss on held-out data. */
  readonly evaluation?: readonly LossPoint[]
  /** Pixels; default 800 x 450. */
  readonly width?: number
  readonly height?: number
  /** `auto` (default) follows the viewer's preference. */
  readonly theme?: 'auto' | 'light' | 'dark'
}

interface Palette {
  readonly background: string
  readonly ink: string
  readonly muted: string
  readonly grid: string
  readonly line: string
  readonly evaluation: string
}
const palettes: Readonly<Record<'light' | 'dark', Palette>> = {
  light: { background: '#ffffff', ink: '#1f2328', muted: '#636c76', grid: '#e6eaef', line: '#2a6fdb', evaluation: '#c2570c' },
  dark: { background: '#0f1319', ink: '#e8edf3', muted: '#93a0ad', grid: '#232a33', line: '#5aa2ff', evaluation: '#f59e4c' },
}

/** More raw points than this are drawn as the lowest and highest of each pixel column. */
const mostPoints = 600
/** A step this many times higher than the running median ever gets is a spike. */
const spikeFactor = 1.6

/**
 * An SVG document. It needs no font and no style sheet, and carries a title and a description for those who cannot see it.
 *
 * @throws ModalignError `LOSS_CURVE_EMPTY`, `METRIC_NOT_FINITE`
 * @example
 * const svg = renderLossCurve([{ step: 1, loss: 10.8 }, { step: 2, loss: 9.1 }], { title: 'first run' })
 */
export function renderLossCurve(points: readonly LossPoint[], options: LossCurveOptions = {}): string {
  const {
    title = 'Training loss',
    unit = 'nats per supervised token',
    evaluation = [],
    width = 800,
    height = 450,
    theme = 'auto',
  } = options
  check(points, evaluation)
  const raw = [...points].sort((a, b) => a.step - b.step)
  const held = [...evaluation].sort((a, b) => a.step - b.step)
  const smooth = smoothed(raw)
  const steps = [...raw, ...held].map(({ step }) => step)
  const [firstStep, lastStep] = [Math.min(...extent(steps)), Math.max(...extent(steps))]
  const [lowest, highest] = valueRange(
    raw,
    [...smooth, ...held].map(({ loss }) => loss),
  )

  const text = new OutlinedText()
  const y = niceAxis(lowest, highest, Math.max(3, Math.round(height / 75)))
  const x =
    firstStep === lastStep
      ? wholeAxis(firstStep - 1, lastStep + 1, 3)
      : wholeAxis(firstStep, lastStep, Math.max(3, Math.round(width / 110)))
  const left = 24 + Math.max(...y.ticks.map((tick) => textWidth(y.label(tick), 12))) + 10
  const area: Area = { left, right: width - 84, top: 84, bottom: height - 46, x, y }
  const first = smooth[0]
  const last = smooth.at(-1)
  const subtitle = `${options.subtitle ?? summary(raw.length, first, last)} · ${unit}`
  const parts = [
    `<rect class="background" width="${width}" height="${height}"/>`,
    text.draw(24, 36, title, { size: 18, className: 'ink', bold: true }),
    text.draw(24, 58, subtitle, { size: 12.5, className: 'muted' }),
    ...axes(area, text),
    ...rawMarks(raw, area),
    `<path class="line" d="${linePath(smooth, area)}"/>`,
    ...evaluationMarks(held, area),
    ...endLabels(last, held.at(-1), area, text),
  ]
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-labelledby="chart-title chart-description">`,
    `<title id="chart-title">${escapeXml(title)}</title>`,
    `<desc id="chart-description">${escapeXml(`${subtitle}, over steps ${firstStep} to ${lastStep}`)}</desc>`,
    `<style>${style(theme)}</style>`,
    text.definitions(),
    ...parts,
    '</svg>',
    '',
  ].join('\n')
}

function check(points: readonly LossPoint[], evaluation: readonly LossPoint[]): void {
  if (points.length === 0) throw new ModalignError({ code: 'LOSS_CURVE_EMPTY', got: 'no steps', expected: 'at least one step' })
  const bad = [...points, ...evaluation].find(({ step, loss }) => !Number.isFinite(step) || !Number.isFinite(loss))
  if (bad !== undefined)
    throw new ModalignError({ code: 'METRIC_NOT_FINITE', got: `loss ${bad.loss} at step ${bad.step}`, expected: 'finite numbers' })
}

/** Lowest and highest without spreading an array into arguments, which has a limit. */
function extent(values: readonly number[]): readonly [number, number] {
  return values.reduce<[number, number]>(
    ([low, high], value) => [Math.min(low, value), Math.max(high, value)],
    [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY],
  )
}

/** What the value axis covers: everything, except that single spikes which would flatten the rest are marked at the upper edge. Zero is included where it is near. */
function valueRange(raw: readonly LossPoint[], others: readonly number[]): readonly [number, number] {
  const losses = raw.map(({ loss }) => loss)
  const [low, high] = extent([...losses, ...others])
  const medians = losses.map((_, i) => median(losses.slice(Math.max(0, i - 2), i + 3)))
  const usual = Math.max(extent(medians)[1], extent(others)[1])
  const limit = low + spikeFactor * (usual - low)
  const top = usual > low && high > limit ? extent([...losses.filter((loss) => loss <= limit), usual])[1] : high
  return [low > 0 && low < 0.35 * top ? 0 : low, top]
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] ?? 0
}

/**
 * The course of a noisy curve at 300 steps at most: a local straight line through the neighbours, weighted by a normal curve whose deviation is a sixtieth of the run
 * (Cleveland and Devlin 1988). Unlike an exponential average it neither lags behind nor flattens the steep beginning. Short runs are not smoothed.
 */
function smoothed(raw: readonly LossPoint[]): readonly LossPoint[] {
  const first = raw[0]?.step ?? 0
  const span = (raw.at(-1)?.step ?? 0) - first
  if (raw.length < 20 || span === 0) return raw
  const deviation = Math.max(span / 60, (1.5 * span) / raw.length)
  const count = Math.min(raw.length, 300)
  let from = 0
  return Array.from({ length: count }, (_, i) => i).flatMap((i) => {
    const step = first + (span * i) / (count - 1)
    while ((raw[from]?.step ?? Number.POSITIVE_INFINITY) < step - 3 * deviation) from++
    let [s0, s1, s2, t0, t1] = [0, 0, 0, 0, 0]
    for (let k = from; k < raw.length; k++) {
      const point = raw[k]
      if (point === undefined || point.step > step + 3 * deviation) break
      const d = (point.step - step) / deviation
      const weight = Math.exp(-0.5 * d * d)
      s0 += weight
      s1 += weight * d
      s2 += weight * d * d
      t0 += weight * point.loss
      t1 += weight * d * point.loss
    }
    // A gap in the record of the run has no course.
    if (s0 === 0) return []
    const determinant = s0 * s2 - s1 * s1
    return [{ step, loss: determinant > 1e-9 * s0 * s0 ? (s2 * t0 - s1 * t1) / determinant : t0 / s0 }]
  })
}

interface Area {
  readonly left: number
  readonly right: number
  readonly top: number
  readonly bottom: number
  readonly x: Axis
  readonly y: Axis
}

const placeX = ({ left, right, x }: Area, step: number): number => round(left + ((step - x.low) / (x.high - x.low)) * (right - left))
const placeY = ({ top, bottom, y }: Area, loss: number): number =>
  round(bottom - ((Math.min(loss, y.high) - y.low) / (y.high - y.low)) * (bottom - top))

function axes(area: Area, text: OutlinedText): readonly string[] {
  const { left, right, bottom, x, y } = area
  const rows = y.ticks.flatMap((tick) => {
    const at = placeY(area, tick)
    const line = `<path class="${tick === y.low ? 'axis' : 'grid'}" d="M${round(left)} ${at}H${round(right)}"/>`
    return [line, text.draw(left - 10, at + 4.3, y.label(tick), { size: 12, className: 'muted', anchor: 'end' })]
  })
  const columns = x.ticks.flatMap((tick) => {
    const at = placeX(area, tick)
    return [
      `<path class="axis" d="M${at} ${bottom}v5"/>`,
      text.draw(at, bottom + 20, x.label(tick), { size: 12, className: 'muted', anchor: 'middle' }),
    ]
  })
  return [...rows, ...columns, text.draw(right, bottom + 36, 'step', { size: 11, className: 'muted', anchor: 'end' })]
}

function rawMarks(raw: readonly LossPoint[], area: Area): readonly string[] {
  const outliers = raw.filter(({ loss }) => loss > area.y.high)
  const marks = outliers
    .slice(0, mostPoints)
    .map(({ step }) => `<path class="outlier" d="M${placeX(area, step)} ${area.top - 3}l4 6h-8z"/>`)
  const inside = raw.filter(({ loss }) => loss <= area.y.high)
  if (raw.length <= 200)
    return [
      ...inside.map(({ step, loss }) => `<circle class="point" cx="${placeX(area, step)}" cy="${placeY(area, loss)}" r="2.2"/>`),
      ...marks,
    ]
  return [`<path class="raw" d="${linePath(inside.length > mostPoints ? columnExtremes(inside, area) : inside, area)}"/>`, ...marks]
}

/** The lowest and the highest point of each pixel column, in the order in which they occur. */
function columnExtremes(points: readonly LossPoint[], area: Area): readonly LossPoint[] {
  const columns = new Map<number, { low: LossPoint; high: LossPoint }>()
  for (const point of points) {
    const column = Math.floor(placeX(area, point.step))
    const found = columns.get(column)
    if (found === undefined) columns.set(column, { low: point, high: point })
    else if (point.loss < found.low.loss) found.low = point
    else if (point.loss > found.high.loss) found.high = point
  }
  return [...columns.values()].flatMap(({ low, high }) => (low === high ? [low] : low.step < high.step ? [low, high] : [high, low]))
}

function linePath(points: readonly LossPoint[], area: Area): string {
  return points.map(({ step, loss }, i) => `${i === 0 ? 'M' : 'L'}${placeX(area, step)} ${placeY(area, loss)}`).join('')
}

function evaluationMarks(held: readonly LossPoint[], area: Area): readonly string[] {
  if (held.length === 0) return []
  const dots = held.map(
    ({ step, loss }) => `<circle class="evaluation-dot" cx="${placeX(area, step)}" cy="${placeY(area, loss)}" r="3.2"/>`,
  )
  return [`<path class="evaluation" d="${linePath(held, area)}"/>`, ...dots]
}

/** The last values, written at the ends of their lines; two that would overlap are moved apart. */
function endLabels(last: LossPoint | undefined, held: LossPoint | undefined, area: Area, text: OutlinedText): readonly string[] {
  const apart = 27
  const labels = [
    { point: last, name: 'train', className: 'line-text', dot: true },
    { point: held, name: 'held out', className: 'evaluation-text', dot: false },
  ].flatMap(({ point, ...rest }) => (point === undefined ? [] : [{ ...rest, point, at: placeY(area, point.loss) }]))
  const [upper, lower] = [...labels].sort((a, b) => a.at - b.at)
  if (upper !== undefined && lower !== undefined && lower.at - upper.at < apart) {
    const middle = (upper.at + lower.at) / 2
    upper.at = middle - apart / 2
    lower.at = middle + apart / 2
  }
  return labels.flatMap(({ point, name, className, dot, at }) => {
    const x = placeX(area, point.step)
    const mark = dot ? [`<circle class="end" cx="${x}" cy="${placeY(area, point.loss)}" r="4"/>`] : []
    return [
      ...mark,
      text.draw(area.right + 12, at + 2, lossText(point.loss), { size: 13, className, bold: true }),
      text.draw(area.right + 12, at + 14, name, { size: 10.5, className: 'muted' }),
    ]
  })
}

/** Three significant digits, but no exponent in the usual range. */
function lossText(loss: number): string {
  if (loss !== 0 && (Math.abs(loss) < 1e-3 || Math.abs(loss) >= 1e5)) return loss.toExponential(1).replaceAll('-', '−')
  const decimals = Math.abs(loss) >= 100 ? 1 : Math.abs(loss) >= 10 ? 2 : Math.abs(loss) >= 0.1 ? 3 : 4
  return loss.toFixed(decimals).replace('-', '−')
}

function summary(count: number, first: LossPoint | undefined, last: LossPoint | undefined): string {
  const steps = `${count.toLocaleString('en-US')} step${count === 1 ? '' : 's'}`
  if (first === undefined || last === undefined || count === 1) return steps
  return `${steps} · from ${lossText(first.loss)} to ${lossText(last.loss)}`
}

function style(theme: 'auto' | 'light' | 'dark'): string {
  const shapes = [
    '.axis,.grid,.raw,.line,.evaluation{fill:none}',
    '.axis,.grid{stroke-width:1;shape-rendering:crispEdges}',
    '.raw{stroke-width:1;stroke-opacity:.3;stroke-linejoin:round}',
    '.point{fill-opacity:.35}',
    '.line{stroke-width:2.5;stroke-linejoin:round;stroke-linecap:round}',
    '.evaluation{stroke-width:2;stroke-dasharray:5 4;stroke-linejoin:round}',
    '.end{stroke-width:2}.evaluation-dot{stroke-width:1}',
  ].join('')
  if (theme !== 'auto') return shapes + colors(palettes[theme])
  return `${shapes}${colors(palettes.light)}@media (prefers-color-scheme:dark){${colors(palettes.dark)}}`
}

function colors({ background, ink, muted, grid, line, evaluation }: Palette): string {
  return [
    `.background{fill:${background}}`,
    `.ink{fill:${ink}}.ink-stroke{stroke:${ink}}`,
    `.muted{fill:${muted}}`,
    `.grid{stroke:${grid}}.axis{stroke:${muted}}`,
    `.raw,.line{stroke:${line}}.point,.outlier,.end{fill:${line}}`,
    `.end,.evaluation-dot{stroke:${background}}`,
    `.evaluation{stroke:${evaluation}}.evaluation-dot{fill:${evaluation}}`,
    `.line-text{fill:${line}}.line-text-stroke{stroke:${line}}`,
    `.evaluation-text{fill:${evaluation}}.evaluation-text-stroke{stroke:${evaluation}}`,
  ].join('')
}
