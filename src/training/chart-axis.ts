/** Where the ticks of an axis lie and what they say. */

export interface Axis {
  readonly low: number
  readonly high: number
  readonly ticks: readonly number[]
  readonly label: (tick: number) => string
}

/**
 * Ticks at round numbers (1, 2 or 5 times a power of ten) that cover [low, high], about `count` of them.
 * After Heckbert, "Nice numbers for graph labels", Graphics Gems 1990.
 *
 * @example
 * niceAxis(0.13, 2.9, 6).ticks // [0, 0.5, 1, 1.5, 2, 2.5, 3]
 */
export function niceAxis(low: number, high: number, count: number): Axis {
  const range = high - low
  // A flat line gets an axis around it.
  if (!(range > Math.abs(high) * 1e-9))
    return niceAxis(low - Math.max(Math.abs(low) * 0.1, 0.5), high + Math.max(Math.abs(high) * 0.1, 0.5), count)
  const step = niceNumber(range / Math.max(1, count - 1))
  const first = Math.floor(low / step + 1e-9)
  const last = Math.ceil(high / step - 1e-9)
  const ticks = Array.from({ length: last - first + 1 }, (_, i) => exact((first + i) * step))
  return { low: exact(first * step), high: exact(last * step), ticks, label: labels(step, ticks) }
}

/** Ticks at whole numbers inside [low, high]; the axis ends where the data ends. */
export function wholeAxis(low: number, high: number, count: number): Axis {
  const step = Math.max(1, niceNumber((high - low) / Math.max(1, count - 1)))
  const first = Math.ceil(low / step)
  const ticks = Array.from({ length: Math.max(0, Math.floor(high / step) - first + 1) }, (_, i) => (first + i) * step)
  return { low, high, ticks, label: labels(step, ticks) }
}

/** The smallest of 1, 2, 5, 10 times a power of ten that is not below 0.8 of the value. */
function niceNumber(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value))
  const mantissa = value / power
  return (mantissa < 1.25 ? 1 : mantissa < 2.5 ? 2 : mantissa < 6.25 ? 5 : 10) * power
}

/** Multiples of a step without the dust of binary fractions. */
function exact(value: number): number {
  return Number(value.toPrecision(12))
}

function labels(step: number, ticks: readonly number[]): (tick: number) => string {
  const largest = Math.max(...ticks.map(Math.abs))
  const [unit, suffix] = largest >= 1e6 && step >= 1e5 ? [1e6, 'M'] : largest >= 1e4 && step >= 100 ? [1e3, 'k'] : [1, '']
  const decimals = Math.max(0, Math.min(12, -Math.floor(Math.log10(step / unit) + 1e-9)))
  return (tick) => {
    if (tick === 0) return '0'
    if (largest < 1e-3) return tick.toExponential().replaceAll('-', '−')
    const text = (tick / unit).toFixed(decimals)
    const [whole = '', fraction] = (suffix === '' ? text : String(Number(text))).split('.')
    const grouped = whole.replace(/\B(?=(\d{3})+$)/g, ',').replace('-', '−')
    return `${fraction === undefined ? grouped : `${grouped}.${fraction}`}${suffix}`
  }
}
