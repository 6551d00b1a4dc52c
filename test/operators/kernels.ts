/** A provider's kernels against the float64 evaluator: every primitive, forward and backward, as one model each. */
import fc from 'fast-check'
import { evaluate, type Value } from '../../src/graph/evaluate.ts'
import { gradients } from '../../src/graph/gradients.ts'
import type { Tensor } from '../../src/graph/tensor.ts'
import { type LoweredModel, lower } from '../../src/onnx/lower.ts'
import type { NamedTensors, TensorValue } from '../../src/tensors.ts'
import { type Case, type CaseOf, differentiable, undifferentiable } from './cases.ts'
import { built } from './check.ts'
import { composites } from './composite-cases.ts'
import { drawFrom } from './draw.ts'

/** Kernels of GPUs take four or two elements at a time where the lengths allow it. */
const lengths = [1, 3, 4, 5, 6, 8]

export interface KernelModel {
  readonly operator: string
  readonly lowered: LoweredModel
  readonly feeds: NamedTensors
  readonly expected: Readonly<Record<string, Value>>
}

/** Every primitive's model: `count` random cases (always the same ones), their outputs and their gradients. */
export function kernelModels(count: number): readonly KernelModel[] {
  return Object.entries({ ...differentiable, ...undifferentiable })
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([operator, caseOf], index) => kernelModel(operator, caseOf, count, index))
}

/** Every composite's model, with ONNX Runtime's fused operators or without. */
export function compositeModels(count: number, fused: boolean): readonly KernelModel[] {
  return Object.entries(composites).map(([name, caseOf], index) => kernelModel(name, caseOf, count, index, fused))
}

function kernelModel(operator: string, caseOf: CaseOf, count: number, seed: number, fused = true): KernelModel {
  const drawn = fc.sample(
    fc.gen().map((g) => caseOf(drawFrom(g, lengths), 'float32')),
    { seed, numRuns: count },
  )
  return modelOf(operator, drawn, fused)
}

/** One model of several cases. */
export function modelOf(operator: string, cases: readonly Case[], fused = true): KernelModel {
  const graphs = cases.map((one, index) => built(one, index, `c${index}_`))
  const outputs: Record<string, Tensor> = {}
  for (const [index, { outputs: results, loss, variables }] of graphs.entries()) {
    for (const [at, tensor] of results.entries()) outputs[`c${index}_y${at}`] = tensor
    if (operator in undifferentiable || loss === undefined) continue
    for (const [at, tensor] of gradients(loss, variables).entries()) outputs[`c${index}_d${at}`] = tensor
  }
  const feeds = Object.assign({}, ...graphs.map((graph) => graph.feeds))
  const inputs = graphs.flatMap((graph) => graph.inputs)
  const names = Object.keys(outputs)
  const values = evaluate([...Object.values(outputs), ...inputs], feeds)
  const lowered = lower({ outputs, inputs, fused })
  return {
    operator,
    lowered,
    feeds: Object.fromEntries(lowered.inputs.map((name) => [name, tensorOf(feeds[name])])),
    expected: Object.fromEntries(names.map((name, index) => [name, valueAt(values, index)])),
  }
}

/** The first difference beyond `relative` x |expected| + `absolute`, in words. */
export function difference(
  outputs: Readonly<Record<string, NamedTensors[string] | Value>>,
  expected: KernelModel['expected'],
  { relative = 1e-5, absolute = 1e-5 } = {},
): string | undefined {
  for (const [name, { dims, data, dtype }] of Object.entries(expected)) {
    const got = outputs[name]
    if (got === undefined) return `${name} is missing`
    if (got.dtype !== dtype || String(got.dims) !== String(dims)) return `${name}: ${got.dtype} [${got.dims}] instead of ${dtype} [${dims}]`
    for (const [position, wanted] of data.entries()) {
      const found = Number(got.data[position])
      if (!(Math.abs(found - wanted) <= relative * Math.abs(wanted) + absolute))
        return `${name}[${position}]: ${found} instead of ${wanted}`
    }
  }
  return undefined
}

export function tensorOf(value: Value | undefined): TensorValue {
  if (value === undefined) throw new Error('no value')
  const { dtype, dims, data } = value
  switch (dtype) {
    case 'float32':
      return { dtype, dims, data: Float32Array.from(data) }
    case 'float64':
      return { dtype, dims, data }
    case 'int64':
      return { dtype, dims, data: BigInt64Array.from(data, BigInt) }
    case 'int32':
      return { dtype, dims, data: Int32Array.from(data) }
    case 'bool':
      return { dtype, dims, data: Uint8Array.from(data) }
    default:
      throw new Error(`no feed of type ${dtype}`)
  }
}

function valueAt(values: readonly Value[], index: number): Value {
  const value = values[index]
  if (value === undefined) throw new Error('no value')
  return value
}
