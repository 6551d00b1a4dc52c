/** What ONNX Runtime's WebGPU provider computes wrongly, said in another way. */
import { ModalignError } from '../errors.ts'
import { attributeValue, makeNode, makeTensor } from './build.ts'
import { decodeModel, encodeModel, withFields } from './codec.ts'
import { type ModelProto, type NodeProto, type TensorProto, TensorProto_DataType } from './onnx_pb.ts'

/** ReduceMean's axes are an attribute before this opset and an input from it on. */
const axesInputSince = 18

/**
 * A model that means the same and that the WebGPU provider computes correctly.
 *
 * Up to at least ONNX Runtime 1.30 the provider takes the second output of `SimplifiedLayerNormalization`, the inverse root mean square, for the mean that
 * `LayerNormalization` has there, and gives numbers near 0. Gradients of RMSNorm, which read it, vanish. Here plain operators compute it. Only the main graph is
 * looked at, and the normalised axis must be the last one.
 *
 * @returns the same bytes where nothing is to be repaired
 * @throws ModalignError `ONNX_WEBGPU` for that output along other axes, and what `decodeModel` throws
 */
export function repairedForWebGpu(bytes: Uint8Array): Uint8Array {
  const model = decodeModel(bytes)
  const { graph } = model
  if (graph === undefined || !graph.node.some(givesInverse)) return bytes
  const initializers: TensorProto[] = []
  const nodes = graph.node.flatMap((node) => (givesInverse(node) ? separated(node, model, initializers) : [node]))
  return encodeModel(withFields(model, { graph: withFields(graph, { node: nodes, initializer: [...graph.initializer, ...initializers] }) }))
}

function givesInverse({ opType, output }: NodeProto): boolean {
  return opType === 'SimplifiedLayerNormalization' && (output[1] ?? '') !== ''
}

/** Y by the operator, 1 / sqrt(mean(X^2) + epsilon) by the formula. */
function separated(node: NodeProto, { opsetImport }: ModelProto, initializers: TensorProto[]): readonly NodeProto[] {
  const [y = '', inverse = ''] = node.output
  const [x = ''] = node.input
  const attributes = new Map(node.attribute.map((attribute) => [attribute.name, attributeValue(attribute)]))
  const axis = attributes.get('axis')
  if (axis !== undefined && (!('int' in axis) || axis.int !== -1n)) {
    throw new ModalignError({
      code: 'ONNX_WEBGPU',
      field: node.name,
      got: `${node.opType} with a second output and axis ${'int' in axis ? axis.int : '?'}`,
      expected: 'axis -1: the WebGPU provider computes this output wrongly',
      hint: 'use another device',
    })
  }
  const epsilon = attributes.get('epsilon')
  const named = (part: string): string => `${inverse}/${part}`
  const axesAreInput = opsetImport.some(({ domain, version }) => (domain === '' || domain === 'ai.onnx') && version >= axesInputSince)
  const value = epsilon !== undefined && 'float' in epsilon ? epsilon.float : 1e-5
  initializers.push(makeTensor(named('epsilon'), { dtype: 'float32', dims: [], data: Float32Array.of(value) }))
  if (axesAreInput) initializers.push(makeTensor(named('axes'), { dtype: 'int64', dims: [1], data: BigInt64Array.of(-1n) }))
  return [
    withFields(node, { output: [y] }),
    makeNode({ opType: 'Cast', inputs: [x], outputs: [named('wide')], attributes: { to: { int: TensorProto_DataType.FLOAT } } }),
    makeNode({ opType: 'Mul', inputs: [named('wide'), named('wide')], outputs: [named('square')] }),
    makeNode({
      opType: 'ReduceMean',
      inputs: axesAreInput ? [named('square'), named('axes')] : [named('square')],
      outputs: [named('mean')],
      attributes: { keepdims: { int: 1 }, ...(axesAreInput ? {} : { axes: { ints: [-1] } }) },
    }),
    makeNode({ opType: 'Add', inputs: [named('mean'), named('epsilon')], outputs: [named('sum')] }),
    makeNode({ opType: 'Sqrt', inputs: [named('sum')], outputs: [named('root')] }),
    makeNode({ opType: 'Reciprocal', inputs: [named('root')], outputs: [inverse] }),
  ]
}
