/** One walk over everything that a model holds, wherever it is nested. */
import type { AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto } from './onnx_pb.ts'

/** What to do with each kind of thing; `path` is its JSON Pointer in the model. */
export interface Visitor {
  readonly node?: (node: NodeProto, path: string) => void
  readonly attribute?: (attribute: AttributeProto, path: string) => void
  readonly tensor?: (tensor: TensorProto, path: string) => void
  readonly sparse?: (sparse: SparseTensorProto, path: string) => void
}

/** Visits everything in the main graph, its subgraphs, the functions and the training graphs. Recursion is bounded by the wire check's nesting. */
export function visitModel(model: ModelProto, visitor: Visitor): void {
  if (model.graph !== undefined) visitGraph(model.graph, '/graph', visitor)
  model.functions.forEach((definition, i) => {
    definition.node.forEach((node, j) => {
      visitNode(node, `/functions/${i}/node/${j}`, visitor)
    })
    definition.attributeProto.forEach((attribute, j) => {
      visitAttribute(attribute, `/functions/${i}/attribute_proto/${j}`, visitor)
    })
  })
  model.trainingInfo.forEach((training, i) => {
    if (training.initialization !== undefined) visitGraph(training.initialization, `/training_info/${i}/initialization`, visitor)
    if (training.algorithm !== undefined) visitGraph(training.algorithm, `/training_info/${i}/algorithm`, visitor)
  })
}

function visitGraph(graph: GraphProto, path: string, visitor: Visitor): void {
  graph.initializer.forEach((tensor, i) => {
    visitor.tensor?.(tensor, `${path}/initializer/${i}`)
  })
  graph.sparseInitializer.forEach((sparse, i) => {
    visitSparse(sparse, `${path}/sparse_initializer/${i}`, visitor)
  })
  graph.node.forEach((node, i) => {
    visitNode(node, `${path}/node/${i}`, visitor)
  })
}

function visitNode(node: NodeProto, path: string, visitor: Visitor): void {
  visitor.node?.(node, path)
  node.attribute.forEach((attribute, i) => {
    visitAttribute(attribute, `${path}/attribute/${i}`, visitor)
  })
}

function visitAttribute(attribute: AttributeProto, path: string, visitor: Visitor): void {
  visitor.attribute?.(attribute, path)
  if (attribute.t !== undefined) visitor.tensor?.(attribute.t, `${path}/t`)
  if (attribute.g !== undefined) visitGraph(attribute.g, `${path}/g`, visitor)
  if (attribute.sparseTensor !== undefined) visitSparse(attribute.sparseTensor, `${path}/sparse_tensor`, visitor)
  attribute.tensors.forEach((tensor, i) => {
    visitor.tensor?.(tensor, `${path}/tensors/${i}`)
  })
  attribute.graphs.forEach((graph, i) => {
    visitGraph(graph, `${path}/graphs/${i}`, visitor)
  })
  attribute.sparseTensors.forEach((sparse, i) => {
    visitSparse(sparse, `${path}/sparse_tensors/${i}`, visitor)
  })
}

function visitSparse(sparse: SparseTensorProto, path: string, visitor: Visitor): void {
  visitor.sparse?.(sparse, path)
  if (sparse.values !== undefined) visitor.tensor?.(sparse.values, `${path}/values`)
  if (sparse.indices !== undefined) visitor.tensor?.(sparse.indices, `${path}/indices`)
}
