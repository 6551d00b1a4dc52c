/**
 * `@huggingface/tokenizers` 0.2 reads some settings of a `tokenizer.json` differently from the Rust crate that wrote it. Here those settings are rewritten into
 * others that mean the same and that both understand, and those that it would silently ignore are refused.
 */
import { type Component, isObject, unsupported } from './tokenizer-file.ts'

/** Oniguruma syntax: `\s` is Unicode white space there. */
const gpt2Words = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
const punctuation = '[\\p{P}\\x21-\\x2F\\x3A-\\x40\\x5B-\\x60\\x7B-\\x7E]'

function split(regex: string, keep: 'matches' | 'everything'): Component {
  return keep === 'matches'
    ? { type: 'Split', pattern: { Regex: regex }, behavior: 'Removed', invert: true }
    : { type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false }
}

function sequence(...pretokenizers: readonly Component[]): Component {
  return { type: 'Sequence', pretokenizers }
}

function parts(config: Component, key: string): readonly Component[] {
  const list = config[key]
  return Array.isArray(list) ? list.filter((item): item is Component => isObject(item) && typeof item.type === 'string') : []
}

/** @throws ModalignError `TOKENIZER_UNSUPPORTED` */
export function portablePreTokenizer(config: Component, file: string | undefined, field = '/pre_tokenizer'): Component {
  switch (config.type) {
    case 'Sequence':
      return sequence(...parts(config, 'pretokenizers').map((part, i) => portablePreTokenizer(part, file, `${field}/pretokenizers/${i}`)))
    case 'ByteLevel':
      // The library's own words are those of JavaScript's \s, which lacks U+0085 and has U+FEFF.
      return config.use_regex === false || config.add_prefix_space !== false
        ? config
        : sequence(split(gpt2Words, 'everything'), { ...config, use_regex: false })
    case 'Digits':
      // The library's digits are ASCII's; the original's are all of \p{N}.
      return split(config.individual_digits === true ? '\\p{N}' : '\\p{N}+', 'everything')
    case 'Whitespace':
      return split('\\w+|[^\\w\\s]+', 'matches')
    case 'WhitespaceSplit':
      return split('\\S+', 'matches')
    case 'Punctuation':
      if (config.behavior !== undefined && config.behavior !== 'Isolated' && config.behavior !== 'Contiguous')
        throw unsupported(file, `${field}/behavior`, JSON.stringify(config.behavior), 'Isolated or Contiguous')
      return split(config.behavior === 'Contiguous' ? `${punctuation}+` : punctuation, 'everything')
    case 'Split':
      return portableSplit(config, file, field)
    case 'Metaspace': {
      const scheme = config.prepend_scheme ?? (config.add_prefix_space === false ? 'never' : 'always')
      if (config.replacement !== undefined && config.replacement !== '▁')
        throw unsupported(file, `${field}/replacement`, JSON.stringify(config.replacement), JSON.stringify('▁'))
      const metaspace = { type: 'Metaspace', replacement: '▁', prepend_scheme: scheme }
      // Words begin at each mark; the library leaves the text whole.
      return config.split === false ? metaspace : sequence(metaspace, split('▁[^▁]*|[^▁]+', 'everything'))
    }
    default:
      return config
  }
}

/** The library splits by isolating or by removing what matches. Any other behaviour becomes a pattern whose matches are the pieces. */
function portableSplit(config: Component, file: string | undefined, field: string): Component {
  const { behavior, pattern } = config
  const inverted = config.invert === true
  // Inverted, what matches is a piece and so is what lies between: isolating does the same.
  if (behavior === 'Isolated') return { ...config, invert: false }
  if (behavior === 'Removed') return config
  const source = !isObject(pattern)
    ? undefined
    : typeof pattern.Regex === 'string'
      ? `(?:${pattern.Regex})`
      : typeof pattern.String === 'string'
        ? `(?:${pattern.String.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')})`
        : undefined
  if (source !== undefined && !inverted) {
    const other = `(?:(?!${source})[\\s\\S])`
    if (behavior === 'MergedWithPrevious') return split(`${other}*${source}|${other}+`, 'everything')
    if (behavior === 'MergedWithNext') return split(`${source}${other}*|${other}+`, 'everything')
    if (behavior === 'Contiguous') return split(`${source}+`, 'everything')
  }
  throw unsupported(
    file,
    `${field}/behavior`,
    `${JSON.stringify(behavior)}${inverted ? ', inverted' : ''}`,
    'a known behavior, not inverted',
  )
}

export function portableNormalizer(config: Component): Component {
  if (config.type === 'Sequence') return { ...config, normalizers: parts(config, 'normalizers').map(portableNormalizer) }
  return config.type === 'Replace' ? literalReplacement(config) : config
}

export function portableDecoder(config: Component): Component {
  switch (config.type) {
    case 'Sequence':
      return { ...config, decoders: parts(config, 'decoders').map(portableDecoder) }
    case 'Replace':
      return literalReplacement(config)
    case 'Metaspace': {
      // The library drops the first space whatever the scheme.
      const never = config.prepend_scheme === 'never' || (config.prepend_scheme === undefined && config.add_prefix_space === false)
      return never ? { type: 'Replace', pattern: { String: config.replacement ?? '▁' }, content: ' ' } : config
    }
    default:
      return config
  }
}

/** JavaScript gives `$` in a replacement a meaning, the original does not. */
function literalReplacement(config: Component): Component {
  return typeof config.content === 'string' ? { ...config, content: config.content.replaceAll('$', '$$$$') } : config
}

/** Whether a component of this type is anywhere in the tree. */
export function contains(config: Component | null, type: string): boolean {
  if (config === null) return false
  return config.type === type || [...parts(config, 'pretokenizers'), ...parts(config, 'decoders')].some((part) => contains(part, type))
}
