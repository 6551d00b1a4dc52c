/**
 * The same command line again, quoted for a shell, so that it can be copied.
 *
 * @example
 * commandText(['tune', 'my run.yaml']) // "modalign tune 'my run.yaml'"
 */
export function commandText(argv: readonly string[]): string {
  return ['modalign', ...argv].map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(' ')
}
