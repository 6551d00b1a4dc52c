/** A small assembler of WebAssembly's text format: what the programs of this repository use, in folded expressions. Ties the bytes that are committed to the text that people read. */

type Expression = string | readonly Expression[]

const types: Readonly<Record<string, number>> = { i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, v128: 0x7b }
/** Opcodes behind the prefix 0xfd. */
const vectors: Readonly<Record<string, number>> = {
  'v128.load': 0,
  'v128.load8x8_u': 2,
  'v128.load16_splat': 8,
  'v128.load32_splat': 9,
  'v128.store': 11,
  'v128.const': 12,
  'i8x16.shuffle': 13,
  'i8x16.splat': 15,
  'i16x8.splat': 16,
  'i32x4.splat': 17,
  'f32x4.splat': 19,
  'i32x4.extract_lane': 27,
  'i32x4.lt_s': 57,
  'i32x4.gt_s': 59,
  'v128.not': 77,
  'v128.and': 78,
  'v128.andnot': 79,
  'v128.or': 80,
  'v128.xor': 81,
  'v128.bitselect': 82,
  'v128.store32_lane': 90,
  'v128.store64_lane': 91,
  'v128.load32_zero': 92,
  'v128.load64_zero': 93,
  'i8x16.narrow_i16x8_s': 101,
  'i8x16.narrow_i16x8_u': 102,
  'i16x8.q15mulr_sat_s': 130,
  'i16x8.narrow_i32x4_s': 133,
  'i16x8.narrow_i32x4_u': 134,
  'i16x8.extend_low_i8x16_s': 135,
  'i16x8.extend_high_i8x16_s': 136,
  'i16x8.extend_low_i8x16_u': 137,
  'i16x8.extend_high_i8x16_u': 138,
  'i16x8.shl': 139,
  'i16x8.shr_s': 140,
  'i16x8.shr_u': 141,
  'i16x8.add': 142,
  'i16x8.sub': 145,
  'i16x8.mul': 149,
  'i32x4.extend_low_i16x8_s': 167,
  'i32x4.extend_low_i16x8_u': 169,
  'i32x4.extend_high_i16x8_u': 170,
  'i32x4.shl': 171,
  'i32x4.shr_s': 172,
  'i32x4.shr_u': 173,
  'i32x4.add': 174,
  'i32x4.sub': 177,
  'i32x4.mul': 181,
  'i32x4.min_s': 182,
  'i32x4.max_s': 184,
  'i32x4.dot_i16x8_s': 186,
  'f32x4.add': 228,
  'f32x4.mul': 230,
}
const scalars: Readonly<Record<string, number>> = {
  'i32.eqz': 0x45,
  'i32.eq': 0x46,
  'i32.ne': 0x47,
  'i32.lt_s': 0x48,
  'i32.lt_u': 0x49,
  'i32.gt_s': 0x4a,
  'i32.gt_u': 0x4b,
  'i32.le_u': 0x4d,
  'i32.ge_s': 0x4e,
  'i32.ge_u': 0x4f,
  'i32.add': 0x6a,
  'i32.sub': 0x6b,
  'i32.mul': 0x6c,
  'i32.and': 0x71,
  'i32.or': 0x72,
  'i32.xor': 0x73,
  'i32.shl': 0x74,
  'i32.shr_s': 0x75,
  'i32.shr_u': 0x76,
  'i32.rotl': 0x77,
  'i64.or': 0x84,
  'i64.shl': 0x86,
  'i64.shr_s': 0x87,
  'i64.shr_u': 0x88,
  'i32.wrap_i64': 0xa7,
  'i64.extend_i32_u': 0xad,
  return: 0x0f,
}
/** Opcode, and the binary logarithm of the alignment. */
const memories: Readonly<Record<string, readonly [number, number]>> = {
  'i32.load': [0x28, 2],
  'i32.load8_u': [0x2d, 0],
  'f32.load': [0x2a, 2],
  'f32.store': [0x38, 2],
  'i32.store': [0x36, 2],
  'i32.store8': [0x3a, 0],
  'i32.store16': [0x3b, 1],
}
const vectorAlignments: Readonly<Record<string, number>> = {
  'v128.load8x8_u': 3,
  'v128.load16_splat': 1,
  'v128.load64_zero': 3,
  'v128.store64_lane': 3,
  'v128.load': 4,
  'v128.store': 4,
  'v128.load32_splat': 2,
  'v128.load32_zero': 2,
  'v128.store32_lane': 2,
}

function parse(text: string): Expression {
  const tokens = text.replace(/;;[^\n]*/g, '').match(/"[^"]*"|[()]|[^\s()"]+/g) ?? []
  let place = 0
  const read = (): Expression => {
    const token = tokens[place++]
    if (token === undefined) throw new Error('the text ends early')
    if (token !== '(') return token
    const found: Expression[] = []
    while (tokens[place] !== ')') found.push(read())
    place++
    return found
  }
  return read()
}

const list = (value: Expression | undefined): readonly Expression[] => (Array.isArray(value) ? value : [])
const word = (value: Expression | undefined): string => (typeof value === 'string' ? value : '')

function unsigned(value: number): number[] {
  const bytes: number[] = []
  let left = value
  do {
    bytes.push((left & 127) | (left > 127 ? 128 : 0))
    left >>>= 7
  } while (left > 0)
  return bytes
}

function signed(value: number): number[] {
  const bytes: number[] = []
  for (let left = value | 0; ; left >>= 7) {
    const byte = left & 127
    const done = (left >> 7 === 0 && (byte & 64) === 0) || (left >> 7 === -1 && (byte & 64) !== 0)
    bytes.push(done ? byte : byte | 128)
    if (done) return bytes
  }
}

const vector = (items: readonly (readonly number[])[]): number[] => [...unsigned(items.length), ...items.flat()]
const section = (id: number, content: readonly number[]): number[] => [id, ...unsigned(content.length), ...content]
const name = (text: string): number[] => vector([...new TextEncoder().encode(text.replaceAll('"', ''))].map((byte) => [byte]))

class FunctionBody {
  readonly #locals: ReadonlyMap<string, number>
  readonly #functions: readonly string[]
  readonly #labels: string[] = []

  constructor(locals: ReadonlyMap<string, number>, functions: readonly string[]) {
    this.#locals = locals
    this.#functions = functions
  }

  /** Operands first, then what is done with them. */
  bytes(expression: Expression): number[] {
    const [head, ...rest] = list(expression)
    const op = word(head)
    if (op === 'block' || op === 'loop') {
      this.#labels.push(word(rest[0]))
      const inside = rest.slice(1).flatMap((inner) => this.bytes(inner))
      this.#labels.pop()
      return [op === 'block' ? 0x02 : 0x03, 0x40, ...inside, 0x0b]
    }
    const operands = rest.filter((item) => typeof item !== 'string').flatMap((inner) => this.bytes(inner))
    return [
      ...operands,
      ...this.#operation(
        op,
        rest.map(word).filter((item) => item !== ''),
      ),
    ]
  }

  #operation(op: string, given: readonly string[]): number[] {
    const [first = ''] = given
    const offset = Number(given.find((item) => item.startsWith('offset='))?.slice(7) ?? 0)
    if (op === 'local.get' || op === 'local.set' || op === 'local.tee')
      return [{ 'local.get': 0x20, 'local.set': 0x21, 'local.tee': 0x22 }[op], ...unsigned(this.#locals.get(first) ?? Number.NaN)]
    if (op === 'br' || op === 'br_if')
      return [op === 'br' ? 0x0c : 0x0d, ...unsigned(this.#labels.length - 1 - this.#labels.lastIndexOf(first))]
    if (op === 'call') return [0x10, ...unsigned(this.#functions.indexOf(first))]
    if (op === 'i32.const' || op === 'i64.const') return [op === 'i32.const' ? 0x41 : 0x42, ...signed(Number(first))]
    const memory = memories[op]
    if (memory !== undefined) return [memory[0], ...unsigned(memory[1]), ...unsigned(offset)]
    const scalar = scalars[op]
    if (scalar !== undefined) return [scalar]
    const code = vectors[op]
    if (code === undefined) throw new Error(`no opcode for ${op}`)
    const alignment = vectorAlignments[op]
    const lanes = given.filter((item) => /^\d+$/.test(item)).map(Number)
    const more =
      op === 'v128.const' ? constant(given) : [...(alignment === undefined ? [] : [...unsigned(alignment), ...unsigned(offset)]), ...lanes]
    return [0xfd, ...unsigned(code), ...more]
  }
}

function constant([shape = '', ...values]: readonly string[]): number[] {
  const view = new DataView(new ArrayBuffer(16))
  for (const [lane, value] of values.entries()) {
    if (shape === 'f32x4') view.setFloat32(4 * lane, Number(value), true)
    else if (shape === 'i16x8') view.setInt16(2 * lane, Number(value), true)
    else view.setInt32(4 * lane, Number(value) | 0, true)
  }
  return [...new Uint8Array(view.buffer)]
}

/** Of one module with one memory: what `wat2wasm` makes of it, byte for byte. */
export function assemble(text: string): Uint8Array {
  const fields = list(parse(text)).slice(1).map(list)
  const functions = fields.filter(([kind]) => kind === 'func')
  const names = functions.map(([, second]) => word(second))
  const signatures: string[] = []
  const indices: number[][] = []
  const bodies: number[][] = []
  const exported: { readonly order: number; readonly bytes: number[] }[] = []
  for (const [index, field] of functions.entries()) {
    const groups = field.map(list)
    const typed = (kind: string) => groups.filter(([head]) => head === kind)
    const params = typed('param')
    const results = typed('result').flatMap((group) => group.slice(1).map(word))
    const signature = [
      0x60,
      ...vector(params.map((group) => [types[word(group.at(-1))] ?? 0])),
      ...vector(results.map((type) => [types[type] ?? 0])),
    ]
    const known = signatures.indexOf(signature.join())
    indices.push(unsigned(known < 0 ? signatures.push(signature.join()) - 1 : known))
    const locals = typed('local')
    const places = new Map([...params, ...locals].map((group, place) => [word(group[1]), place]))
    const runs: { count: number; readonly type: string }[] = []
    for (const group of locals) {
      const type = word(group.at(-1))
      const last = runs.at(-1)
      if (last?.type === type) last.count++
      else runs.push({ count: 1, type })
    }
    const body = new FunctionBody(places, names)
    const code = field.filter((item) => Array.isArray(item) && !['param', 'result', 'local', 'export'].includes(word(list(item)[0])))
    const bytes = [
      ...vector(runs.map(({ count, type }) => [...unsigned(count), types[type] ?? 0])),
      ...code.flatMap((item) => body.bytes(item)),
      0x0b,
    ]
    bodies.push([...unsigned(bytes.length), ...bytes])
    for (const group of typed('export'))
      exported.push({ order: fields.indexOf(field), bytes: [...name(word(group[1])), 0, ...unsigned(index)] })
  }
  const memory = fields.find(([kind]) => kind === 'memory') ?? []
  for (const group of memory.map(list))
    if (group[0] === 'export') exported.push({ order: fields.indexOf(memory), bytes: [...name(word(group[1])), 2, 0] })
  exported.sort((a, b) => a.order - b.order)
  const limits = [0, ...unsigned(Number(memory.map(word).find((item) => /^\d+$/.test(item))))]
  const imported = memory.map(list).find(([head]) => head === 'import')
  const kinds = signatures.map((signature) => signature.split(',').map(Number))
  return Uint8Array.from([
    ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...section(1, vector(kinds)),
    ...(imported === undefined ? [] : section(2, vector([[...imported.slice(1).flatMap((part) => name(word(part))), 2, ...limits]]))),
    ...section(3, vector(indices)),
    ...(imported === undefined ? section(5, vector([limits])) : []),
    ...section(7, vector(exported.map(({ bytes }) => bytes))),
    ...section(10, vector(bodies)),
  ])
}
