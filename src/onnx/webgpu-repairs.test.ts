import { describe, expect, test } from 'vitest'
import { skipWithout } from '../../test/skip.ts'
import { useSoftwareVulkan } from '../../test/software-vulkan.ts'
import { createLocalSession } from '../runtime/local.ts'
import { float32Tensor } from '../tensors.ts'
import { makeGraph, makeModel, makeNode, makeTensor, makeValueInfo } from './build.ts'
import { decodeModel, encodeModel } from './codec.ts'
import { repairedForWebGpu } from './webgpu-repairs.ts'

const weight = Float32Array.of(0.5, 1, 1.5, -2)
const x = float32Tensor(
  Float32Array.from({ length: 12 }, (_, i) => Math.sin(i) * (1 + i)),
  [3, 4],
)

/** y, r = SimplifiedLayerNormalization(x, w). */
function model(outputs: readonly string[], axis = -1, opset = 21): Uint8Array {
  const node = makeNode({
    opType: 'SimplifiedLayerNormalization',
    inputs: ['x', 'w'],
    outputs,
    attributes: { axis: { int: axis }, epsilon: { float: 1e-3 } },
  })
  const graph = makeGraph({
    name: 'norm',
    nodes: [node],
    initializers: [makeTensor('w', float32Tensor(weight, [4]))],
    inputs: [makeValueInfo('x', 'float32', [3, 4])],
    outputs: outputs.map((name) => makeValueInfo(name, 'float32', name === 'y' ? [3, 4] : [3, 1])),
  })
  return encodeModel(makeModel({ graph, opsets: { '': opset } }))
}

async function runOn(device: 'cpu' | 'webgpu', bytes: Uint8Array): Promise<Record<string, readonly number[]>> {
  await using session = await createLocalSession({ bytes }, { device })
  return Object.fromEntries(Object.entries(await session.run({ x })).map(([name, { data }]) => [name, Array.from(data, Number)]))
}

/** 1 / sqrt(mean(x^2) + epsilon), row by row, in double precision. */
const inverses = [0, 1, 2].map(
  (row) => 1 / Math.sqrt([0, 1, 2, 3].reduce((sum, i) => sum + Number(x.data[4 * row + i]) ** 2, 0) / 4 + 1e-3),
)

describe('the second output of SimplifiedLayerNormalization', () => {
  test.each([21, 17])('opset %d: the repaired model means the same', async (opset) => {
    const bytes = model(['y', 'r'], -1, opset)
    const repaired = repairedForWebGpu(bytes)
    expect(decodeModel(repaired).graph?.node.map((node) => node.output.length)).toEqual([1, 1, 1, 1, 1, 1, 1])
    const [before, after] = [await runOn('cpu', bytes), await runOn('cpu', repaired)]
    expect(after.y).toEqual(before.y)
    for (const [row, inverse] of inverses.entries()) {
      expect(before.r?.[row]).toBeCloseTo(inverse, 6)
      expect(after.r?.[row]).toBeCloseTo(inverse, 6)
    }
  })

  test('a model without it is left as it is', () => {
    const bytes = model(['y'])
    expect(repairedForWebGpu(bytes)).toBe(bytes)
  })

  test('along other axes it is refused', () => {
    expect(() => repairedForWebGpu(model(['y', 'r'], 0))).toThrow(expect.objectContaining({ code: 'ONNX_WEBGPU' }))
  })

  const missing = useSoftwareVulkan('SimplifiedLayerNormalization on WebGPU')
    ? undefined
    : 'no software Vulkan, see test/software-vulkan.ts'
  skipWithout(missing).test('WebGPU gives the CPU provider’s values', async () => {
    const [cpu, webgpu] = [await runOn('cpu', model(['y', 'r'])), await runOn('webgpu', model(['y', 'r']))]
    for (const name of ['y', 'r'])
      for (const [i, value] of (webgpu[name] ?? []).entries()) expect(value).toBeCloseTo(cpu[name]?.[i] ?? Number.NaN, 5)
  })
})
