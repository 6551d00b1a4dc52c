/**
 * erf(x) to better than 1e-15 relative: below 2.5 the series whose terms are all of one sign, so that nothing cancels (Abramowitz & Stegun 7.1.6); above, the continued
 * fraction of erfc (7.1.14).
 */
export function erfOf(x: number): number {
  const z = Math.abs(x)
  if (z < 2.5) {
    let term = x
    let sum = x
    for (let n = 1; Math.abs(term) > 1e-18 * Math.abs(sum); n++) {
      term *= (2 * x * x) / (2 * n + 1)
      sum += term
    }
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum
  }
  if (z > 6) return Math.sign(x)
  let fraction = z
  for (let k = 120; k >= 1; k--) fraction = z + k / 2 / fraction
  return Math.sign(x) * (1 - Math.exp(-z * z) / (Math.sqrt(Math.PI) * fraction))
}
