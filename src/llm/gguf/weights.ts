/** A GGUF file's tensors as a family's weights: which tensor is which weight, and their values as the family wants them. */
import { ModalignError } from '../../errors.ts'
import type { JsonObject } from '../../io/json.ts'
import { elementCount } from '../../tensors.ts'
import { dequantise, dequantised } from '../../weights/gguf/dequantise.ts'
import type { GgufFile } from '../../weights/gguf/gguf.ts'
import { type RepackedPart, repacked, repackedForm } from '../../weights/gguf/repack.ts'
import type { TensorToWrite } from '../../weights/safetensors.ts'
import { blockNames } from '../block-weights.ts'
import type { Architecture, Layout } from './architecture.ts'

/** One weight and the tensor that it is made of. */
export interface GgufWeight {
  /** Transformers' name. */
  readonly name: string
  /** The tensor's name in the file. */
  readonly tensor: string
  /** Of the weight: the tensor's, or that of its transpose. */
  readonly shape: readonly number[]
  readonly layout: Layout
}

/** @throws ModalignError `GGUF_TENSOR_UNKNOWN` for a tensor that the architecture does not have: leaving it out would give another model */
export function ggufWeights(file: GgufFile, architecture: Architecture, config: JsonObject): readonly GgufWeight[] {
  const stacks = architecture.stacks(config)
  return [...file.tensors].flatMap(([tensor, { shape }]): GgufWeight[] => {
    if (architecture.others?.includes(tensor) === true) return []
    const [, kind = '', number, rest = tensor] = /^((?:enc\.|dec\.)?blk)\.(\d+)\.(.+)$/.exec(tensor) ?? []
    const [, module = '', ending = ''] = /^(.+)\.(weight|bias)$/.exec(rest) ?? []
    const stack = Object.hasOwn(stacks, kind) ? stacks[kind] : undefined
    const names = number === undefined ? architecture.names : (stack?.names ?? {})
    const found = Object.hasOwn(names, module) ? names[module] : undefined
    if (found === undefined) {
      throw new ModalignError({
        code: 'GGUF_TENSOR_UNKNOWN',
        file: file.file,
        field: tensor,
        got: 'a tensor that the architecture does not have',
        expected: Object.keys(names).join(', '),
      })
    }
    const layout = architecture.layout?.(rest, config) ?? {}
    const prefix = number === undefined ? '' : `${stack?.prefix}${number}.`
    return [{ name: `${prefix}${found}.${ending}`, tensor, shape: layout.transposed ? [...shape].reverse() : shape, layout }]
  })
}

/** The weight in blocks where the file has it in such, else as float32. */
export function packedWeight(file: GgufFile, weight: GgufWeight): readonly TensorToWrite[] {
  const { name, tensor, layout } = weight
  const form = repackedForm(file, tensor)
  if (form === undefined || layout.plus !== undefined) return [expandedWeight(file, weight)]
  const { rows, blocks, bytes, hasMinimums } = form
  const names = blockNames(name)
  const part = (which: RepackedPart, elements: number): (() => AsyncGenerator<Uint8Array, void, undefined>) =>
    async function* () {
      for await (const values of repacked(file, tensor, form, which, layout.rows?.group))
        yield bytesOf(layout.rows === undefined ? values : reordered(values, elements, layout.rows))
    }
  return [
    { name: names.packed, dtype: 'uint8', dims: [rows, blocks, bytes], pieces: part('packed', blocks * bytes) },
    { name: names.scales, dtype: 'float32', dims: [rows, blocks], pieces: part('scales', blocks) },
    ...(hasMinimums ? [{ name: names.minimums, dtype: 'float32' as const, dims: [rows, blocks], pieces: part('minimums', blocks) }] : []),
  ]
}

/** The weight as float32, to be written: rows in the family's order, a few megabytes at a time. */
export function expandedWeight(file: GgufFile, { name, tensor, shape, layout }: GgufWeight): TensorToWrite {
  return { name, dtype: 'float32', dims: shape, pieces: () => pieces(file, tensor, shape, layout) }
}

async function* pieces(
  file: GgufFile,
  tensor: string,
  shape: readonly number[],
  layout: Layout,
): AsyncGenerator<Uint8Array, void, undefined> {
  const { rows, transposed, plus } = layout
  if (transposed === true) {
    yield bytesOf(transpose(await dequantise(file, tensor), shape))
    return
  }
  const rowElements = shape.length < 2 ? 1 : elementCount(shape.slice(1))
  const together = rows === undefined ? undefined : rows.group * rowElements
  for await (const values of dequantised(file, tensor, together)) {
    if (plus !== undefined) for (let index = 0; index < values.length; index++) values[index] = (values[index] ?? 0) + plus
    yield bytesOf(rows === undefined ? values : reordered(values, rowElements, rows))
  }
}

/** Whole groups of rows, each row of a group taken from where `source` says. */
export function reordered<T extends Float32Array | Uint8Array>(
  values: T,
  rowElements: number,
  { group, source }: NonNullable<Layout['rows']>,
): T {
  const out = values.slice()
  const rows = values.length / rowElements
  for (let row = 0; row < rows; row++) {
    const within = row % group
    const from = (row - within + source(within)) * rowElements
    out.set(values.subarray(from, from + rowElements), row * rowElements)
  }
  // `slice` of either kind of array is of that kind.
  return out as T
}

/** @param shape of the result: values [b, a] -> [a, b] */
function transpose(values: Float32Array, [rows = 0, columns = 0]: readonly number[]): Float32Array {
  const out = new Float32Array(values.length)
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) out[row * columns + column] = values[column * rows + row] ?? 0
  return out
}

function bytesOf({ buffer, byteOffset, byteLength }: Float32Array | Uint8Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength)
}
