/** `modalign/graph`: symbolic tensors, the operators on them, and reverse-mode derivatives. What a projector's author writes with. */
export { quickGelu, silu, swiglu } from './composites/activations.ts'
export { type AttentionOptions, scaledDotProductAttention } from './composites/attention.ts'
export { linearCrossEntropy, tokenCrossEntropy } from './composites/cross-entropy.ts'
export { linear, matmulTransposed } from './composites/linear.ts'
export { rmsNormalization } from './composites/rms-normalization.ts'
export { rotaryEmbedding } from './composites/rotary-embedding.ts'
export {
  addDims,
  type Dim,
  divideDims,
  evaluateDim,
  formatShape,
  multiplyDims,
  type Shape,
  type SizeBindings,
  SymbolicDim,
  size,
  subtractDims,
} from './dim.ts'
export { evaluate, fromTensor, type Value, value } from './evaluate.ts'
export { gradients } from './gradients.ts'
export {
  type Apply,
  defineComposite,
  defineOperator,
  type EvaluationContext,
  type GradientRequest,
  type GradientRule,
  type Inputs,
  type OnnxAttribute,
  type OnnxForm,
} from './operator.ts'
export * from './operators/index.ts'
export { filled, type Initializer, normal, type Parameter, ParameterScope, uniform } from './parameters.ts'
export { constant, dimAt, full, input, integers, type Operand, scalar, type Tensor, type TensorType, weight } from './tensor.ts'
