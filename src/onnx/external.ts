/** External data: what a tensor says about the file that holds its elements. The words come from strangers; nothing here opens a file. */
import { ModalignError } from '../errors.ts'
import type { TensorProto } from './onnx_pb.ts'

export interface ExternalReference {
  /** As the tensor says it: relative to the model's folder. */
  readonly location: string
  /** Default 0. */
  readonly offset: number
  /** Undefined: to be taken from the tensor's shape. */
  readonly length: number | undefined
}

const maxLocationCharacters = 4096
const memoryMarker = '_ORT_MEM_ADDR_'

/**
 * Reads and checks a tensor's `external_data`.
 *
 * @throws ModalignError ONNX_EXTERNAL_PATH for a location that could leave the model's folder or that names memory instead of a file (absolute, `..`,
 *   `\`, `:`, control characters, ONNX Runtime's in-memory marker), ONNX_EXTERNAL_DATA for missing, double, unknown or non-decimal entries.
 * @example
 * externalReference(makeExternalTensor('w', 'float32', [2], { location: 'w.bin', offset: 64, length: 8 })) // { location: 'w.bin', offset: 64, length: 8 }
 */
export function externalReference(tensor: TensorProto, file?: string): ExternalReference {
  const entries = new Map<string, string>()
  for (const { key, value } of tensor.externalData) {
    if (entries.has(key)) throw badEntry(tensor, file, `two entries '${key}'`)
    // ONNX Runtime also knows `prepacked_*`: ready-made kernel buffers, which nobody but itself should write.
    if (!['location', 'offset', 'length', 'checksum'].includes(key)) throw badEntry(tensor, file, `the entry '${key}'`)
    entries.set(key, value)
  }
  const location = entries.get('location')
  if (location === undefined) throw badEntry(tensor, file, 'no location')
  const problem = locationProblem(location)
  if (problem !== undefined) {
    throw new ModalignError({
      code: 'ONNX_EXTERNAL_PATH',
      file,
      field: tensor.name,
      got: `${location} (${problem})`,
      expected: "a file in the model's folder",
    })
  }
  return { location, offset: decimal(tensor, entries, 'offset', file) ?? 0, length: decimal(tensor, entries, 'length', file) }
}

/** Why a location must not be followed; undefined when it may. */
function locationProblem(location: string): string | undefined {
  if (location === '') return 'empty'
  if (location.length > maxLocationCharacters) return `longer than ${maxLocationCharacters} characters`
  if (location.includes(memoryMarker)) return 'an in-memory address'
  if ([...location].some((character) => character < ' ' || character === '\u007f')) return 'a control character'
  if (location.includes('\\')) return 'a backslash'
  // A drive (C:) or an alternate data stream (file:stream) on Windows, a scheme elsewhere.
  if (location.includes(':')) return 'a colon'
  if (location.startsWith('/')) return 'an absolute path'
  const segments = location.split('/')
  if (segments.includes('..')) return 'a parent folder'
  // Windows drops dots and spaces at the end of a name: '.. ' would be '..' again.
  if (segments.some((segment) => segment !== '.' && /[. ]$/.test(segment))) return 'a name that ends in a dot or a space'
  if (segments.at(-1) === '' || segments.at(-1) === '.') return 'a folder'
  return undefined
}

function decimal(tensor: TensorProto, entries: ReadonlyMap<string, string>, key: string, file: string | undefined): number | undefined {
  const text = entries.get(key)
  if (text === undefined) return undefined
  const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN
  if (!Number.isSafeInteger(value)) throw badEntry(tensor, file, `${key} '${text}'`)
  return value
}

function badEntry(tensor: TensorProto, file: string | undefined, got: string): ModalignError {
  return new ModalignError({
    code: 'ONNX_EXTERNAL_DATA',
    file,
    field: tensor.name,
    got,
    expected: 'location, and offset and length in decimal digits',
  })
}
