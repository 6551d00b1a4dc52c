/** Special functions in double precision for the evaluator. */

/**
 * erf(x) to about 1e-15 relative: the Maclaurin series below 2.5, the continued fraction of erfc (Abramowitz & Stegun 7.1.5 and 7.1.14) above.
 */
export function erfOf(x: number): number {
  const z = Math.abs(x)
  if (z < 2.5) {
    let term = x
    let sum = x
    for (let n = 1; Math.abs(term) > 1e-18 * Math.abs(sum); n++) {
      term *= (-x * x) / n
      sum += term / (2 * n + 1)
    }
    return (2 / Math.sqrt(Math.PI)) * sum
  }
  if (z > 6) return Math.sign(x)
  let fraction = z
  for (let k = 120; k >= 1; k--) fraction = z + k / 2 / fraction
  return Math.sign(x) * (1 - Math.exp(-z * z) / (Math.sqrt(Math.PI) * fraction))
}
