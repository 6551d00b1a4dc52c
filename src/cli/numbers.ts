/**
 * A decimal number as people write it: `5`, `-0.25`, `2e-3`. Nothing else is one: not the empty string, not `0x10`, ` 5 `, `.5`, `1_000` or `Infinity`, all of which
 * `Number()` or a shell habit would let through.
 *
 * @example
 * decimalNumber('2e-3') // 0.002
 * decimalNumber('0x10') // undefined
 */
export function decimalNumber(text: string): number | undefined {
  if (!/^-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?$/.test(text)) return undefined
  const value = Number(text)
  return Number.isFinite(value) ? value : undefined
}
