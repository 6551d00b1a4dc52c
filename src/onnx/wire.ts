/**
 * A strict walk over the protobuf bytes of a model, before any decoder sees them. It accepts what encoders write and nothing else, so that our
 * decoder and ONNX Runtime's cannot read the same bytes differently, and it bounds what decoding may allocate.
 */
import { type DescField, type DescMessage, ScalarType } from '@bufbuild/protobuf'
import { ModalignError } from '../errors.ts'
import { ModelProtoSchema } from './onnx_pb.ts'

export interface WireLimits {
  /** Messages inside messages. Default 64 (ONNX Runtime's own decoder stops at 100). */
  readonly nesting?: number
  /** Messages in all; each becomes an object of a few hundred bytes. Default 2 million. */
  readonly messages?: number
  /** Fields in all, packed integers counted one by one. Default 10 million. */
  readonly fields?: number
}

type WireType = 0 | 1 | 2 | 5

interface FieldRule {
  readonly name: string
  readonly repeated: boolean
  /** The wire type of one value. */
  readonly wireType: WireType
  readonly message: MessageRule | undefined
  readonly text: boolean
}

interface MessageRule {
  readonly name: string
  readonly fields: ReadonlyMap<number, FieldRule>
}

interface Walk {
  readonly bytes: Uint8Array
  readonly view: DataView
  readonly limits: Required<WireLimits>
  readonly file: string | undefined
  messages: number
  fields: number
}

/**
 * Walks the bytes as a ModelProto.
 *
 * @throws ModalignError ONNX_MALFORMED: a varint longer than 10 bytes or above 64 bits, a length beyond the end of its message, wire types 3, 4, 6
 *   and 7, field number 0, a field of the schema with another wire type or twice where it may stand once, text that is not UTF-8.
 *   ONNX_LIMIT: nesting, messages or fields beyond the limits.
 * @example
 * checkWire(await readFile('model.onnx'))
 */
export function checkWire(bytes: Uint8Array, limits: WireLimits = {}, file?: string): void {
  const walk: Walk = {
    bytes,
    view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength),
    limits: { nesting: limits.nesting ?? 64, messages: limits.messages ?? 2_000_000, fields: limits.fields ?? 10_000_000 },
    file,
    messages: 0,
    fields: 0,
  }
  walkMessage(walk, messageRule(ModelProtoSchema), 0, bytes.byteLength, 1)
}

function walkMessage(walk: Walk, rule: MessageRule, start: number, end: number, depth: number): void {
  if (depth > walk.limits.nesting) throw limit(walk, start, `messages nested more than ${walk.limits.nesting} deep`)
  if (++walk.messages > walk.limits.messages) throw limit(walk, start, `more than ${walk.limits.messages} messages`)
  let seen = 0
  let at = start
  while (at < end) {
    const tagEnd = varintEnd(walk, at, end, 5)
    const tag = smallVarint(walk, at, tagEnd)
    const number = Math.floor(tag / 8)
    const wireType = tag % 8
    if (number === 0) throw malformed(walk, at, 'field number 0')
    countFields(walk, 1, at)
    const field = rule.fields.get(number)
    if (field !== undefined) {
      // Every field number of the schema is below 31 (asserted below), so one bit each.
      if (!field.repeated && (seen & (1 << number)) !== 0) throw malformed(walk, at, `a second ${rule.name}.${field.name}`)
      seen |= 1 << number
      const packed = wireType === 2 && field.repeated && field.wireType !== 2
      if (wireType !== field.wireType && !packed) throw malformed(walk, at, `wire type ${wireType} for ${rule.name}.${field.name}`)
    }
    at = walkValue(walk, field, wireType, tagEnd, end, depth)
  }
}

/** Returns where the value ends. */
function walkValue(walk: Walk, field: FieldRule | undefined, wireType: number, at: number, end: number, depth: number): number {
  switch (wireType) {
    case 0:
      return varintEnd(walk, at, end, 10)
    case 1:
    case 5: {
      const valueEnd = at + (wireType === 1 ? 8 : 4)
      if (valueEnd > end) throw malformed(walk, at, `a fixed-size value of ${valueEnd - at} bytes where ${end - at} are left`)
      return valueEnd
    }
    case 2: {
      const valueStart = varintEnd(walk, at, end, 5)
      const length = smallVarint(walk, at, valueStart)
      const valueEnd = valueStart + length
      if (valueEnd > end) throw malformed(walk, at, `a length of ${length} bytes where ${end - valueStart} are left`)
      if (field !== undefined) walkBytes(walk, field, valueStart, valueEnd, depth)
      return valueEnd
    }
    default:
      throw malformed(walk, at, `wire type ${wireType}`)
  }
}

function walkBytes(walk: Walk, field: FieldRule, start: number, end: number, depth: number): void {
  if (field.message !== undefined) {
    walkMessage(walk, field.message, start, end, depth + 1)
  } else if (field.text) {
    try {
      strictUtf8.decode(walk.bytes.subarray(start, end))
    } catch (cause) {
      throw malformed(walk, start, `text in ${field.name} that is not UTF-8`, cause)
    }
  } else if (field.wireType === 0) {
    let count = 0
    for (let at = start; at < end; count++) at = varintEnd(walk, at, end, 10)
    countFields(walk, count, start)
  } else if (field.wireType !== 2) {
    const size = field.wireType === 1 ? 8 : 4
    if ((end - start) % size !== 0) throw malformed(walk, start, `${end - start} bytes of packed ${field.name}, not a multiple of ${size}`)
  }
}

/** The position after the varint at `at`. A 64-bit varint has at most 10 bytes, and the tenth carries one bit. */
function varintEnd(walk: Walk, at: number, end: number, maxBytes: 5 | 10): number {
  const last = Math.min(end, at + maxBytes)
  for (let i = at; i < last; i++) {
    const byte = walk.view.getUint8(i)
    if (byte < 0x80) {
      if (i - at === 9 && byte > 1) throw malformed(walk, at, 'a varint above 64 bits')
      return i + 1
    }
  }
  throw malformed(walk, at, last === end ? 'a varint that does not end' : `a varint longer than ${maxBytes} bytes`)
}

/** The value of a varint of at most 5 bytes (a tag or a length), which must be below 2^32. */
function smallVarint(walk: Walk, start: number, end: number): number {
  let value = 0
  for (let i = end - 1; i >= start; i--) value = value * 128 + (walk.view.getUint8(i) & 0x7f)
  if (value >= 2 ** 32) throw malformed(walk, start, 'a tag or length above 32 bits')
  return value
}

function countFields(walk: Walk, count: number, at: number): void {
  walk.fields += count
  if (walk.fields > walk.limits.fields) throw limit(walk, at, `more than ${walk.limits.fields} fields`)
}

function malformed(walk: Walk, at: number, got: string, cause?: unknown): ModalignError {
  return new ModalignError({
    code: 'ONNX_MALFORMED',
    file: walk.file,
    got: `${got} at byte ${at}`,
    expected: 'an ONNX model (a protobuf ModelProto)',
    cause,
  })
}

function limit(walk: Walk, at: number, got: string): ModalignError {
  return new ModalignError({
    code: 'ONNX_LIMIT',
    file: walk.file,
    got: `${got} at byte ${at}`,
    hint: 'large tensors belong in raw_data or external data',
  })
}

const strictUtf8 = new TextDecoder('utf-8', { fatal: true })

// The schema is recursive (a graph in an attribute in a graph), so a rule is registered before its fields are.
const messageRules = new Map<string, MessageRule>()

function messageRule(message: DescMessage): MessageRule {
  const known = messageRules.get(message.typeName)
  if (known !== undefined) return known
  const fields = new Map<number, FieldRule>()
  const rule: MessageRule = { name: message.name, fields }
  messageRules.set(message.typeName, rule)
  for (const field of message.fields) {
    if (field.number > 30) throw new Error(`internal: field number ${field.number} of ${message.name} has no bit`)
    fields.set(field.number, fieldRule(field))
  }
  return rule
}

function fieldRule(field: DescField): FieldRule {
  const scalar = field.fieldKind === 'scalar' || (field.fieldKind === 'list' && field.listKind === 'scalar') ? field.scalar : undefined
  const { message } = field
  return {
    name: field.name,
    repeated: field.fieldKind === 'list',
    wireType: message === undefined ? scalarWireType(scalar) : 2,
    message: message === undefined ? undefined : messageRule(message),
    text: scalar === ScalarType.STRING,
  }
}

function scalarWireType(scalar: ScalarType | undefined): WireType {
  switch (scalar) {
    case ScalarType.FLOAT:
      return 5
    case ScalarType.DOUBLE:
      return 1
    case ScalarType.STRING:
    case ScalarType.BYTES:
      return 2
    default:
      return 0 // the integers and the enums of onnx.proto; it has no fixed-size integers
  }
}
