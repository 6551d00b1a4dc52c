/** Half-size model files: weights stored in float16, computed in float32. */
import { elementCount, type TensorValue } from '../tensors.ts'
import { makeNode, makeTensor, tensorValue } from './build.ts'
import { withFields } from './codec.ts'
import { toFloat16Bits } from './float16.ts'
import { type ModelProto, type NodeProto, type TensorProto, TensorProto_DataLocation, TensorProto_DataType } from './onnx_pb.ts'
import { constantInitializers, mainGraph } from './surgery.ts'
import { visitModel } from './visit.ts'

export interface Float16Options {
  /** Tensors with fewer elements stay float32. Default 16: bounds and scales are not worth a node. */
  readonly minElements?: number
}

/**
 * Stores float32 initializers of the main graph as float16, each followed by a `Cast` back to float32 under its old name, so the model computes as before
 * (on rounded weights) wherever it ran before; ONNX Runtime folds the casts when it loads the model. Left as they are: tensors with a finite element beyond
 * float16's range, initializers that are also inputs, external data, Constant nodes and subgraphs' own initializers.
 *
 * @example
 * await writeFile('half.onnx', encodeModel(convertInitializersToFloat16(model)))
 */
export function convertInitializersToFloat16(model: ModelProto, { minElements = 16 }: Float16Options = {}): ModelProto {
  const graph = mainGraph(model)
  const convertible = new Set(
    constantInitializers(graph).filter((tensor) => isInlineFloat32(tensor) && elementCount(tensor.dims.map(Number)) >= minElements),
  )
  const taken = new Set([...graph.initializer, ...graph.input].map(({ name }) => name))
  // Names must not repeat in branches and loops either.
  visitModel(model, {
    node: ({ output }) => {
      for (const name of output) taken.add(name)
    },
  })
  const casts: NodeProto[] = []
  const initializer = graph.initializer.map((tensor) => {
    const half = convertible.has(tensor) ? float16Value(tensorValue(tensor)) : undefined
    if (half === undefined) return tensor
    const name = freshName(`${tensor.name}_float16`, taken)
    casts.push(
      makeNode({ opType: 'Cast', inputs: [name], outputs: [tensor.name], attributes: { to: { int: TensorProto_DataType.FLOAT } } }),
    )
    return makeTensor(name, half)
  })
  return withFields(model, { graph: withFields(graph, { initializer, node: [...casts, ...graph.node] }) })
}

function isInlineFloat32(tensor: TensorProto): boolean {
  return tensor.dataType === TensorProto_DataType.FLOAT && tensor.dataLocation !== TensorProto_DataLocation.EXTERNAL
}

/** Undefined when rounding would turn a finite element into infinity. */
function float16Value({ dtype, dims, data }: TensorValue): TensorValue | undefined {
  if (dtype !== 'float32') return undefined
  const halves = Uint16Array.from(data, toFloat16Bits)
  const overflows = halves.some((half, i) => (half & 0x7fff) === 0x7c00 && Number.isFinite(data[i]))
  return overflows ? undefined : { dtype: 'float16', dims, data: halves }
}

function freshName(wanted: string, taken: Set<string>): string {
  let name = wanted
  for (let i = 1; taken.has(name); i++) name = `${wanted}_${i}`
  taken.add(name)
  return name
}
