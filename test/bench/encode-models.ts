/** What the encode bench encodes with: MobileNetV2 from the embedded pair, and ViT-B/16's shape with random weights. */
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { vit } from '../../encoders/vit.ts'
import { size } from '../../src/graph/dim.ts'
import { input, weight } from '../../src/graph/tensor.ts'
import { familyWeights } from '../../src/llm/family-weights.ts'
import { decodeModel, encodeModel, withFields } from '../../src/onnx/codec.ts'
import { lower } from '../../src/onnx/lower.ts'
import { elementCount, float32Tensor } from '../../src/tensors.ts'

export const inputName = 'pixel_values'
export const outputName = 'last_hidden_state'

/** The embedded encoder with its input and output named as transformers.js expects them; nodes and weights are the same. */
export async function writeMobilenet(source: string, target: string): Promise<void> {
  const model = decodeModel(await readFile(source))
  const { graph } = model
  const [from, to] = [graph?.input[0]?.name, graph?.output[0]?.name]
  if (graph === undefined || from === undefined || to === undefined) throw new Error(`${source} has no input or no output`)
  const named = (name: string): string => (name === from ? inputName : name === to ? outputName : name)
  const renamed = withFields(graph, {
    input: graph.input.map((info) => withFields(info, { name: named(info.name) })),
    output: graph.output.map((info) => withFields(info, { name: named(info.name) })),
    node: graph.node.map((node) => withFields(node, { input: node.input.map(named), output: node.output.map(named) })),
  })
  await writeFile(target, encodeModel(withFields(model, { graph: renamed })))
}

/** ViT-B/16 at 224 x 224 as `model.onnx` in `folder`, its weights beside it. The class token comes first. */
export async function writeVit(folder: string): Promise<string> {
  const tower = vit.towerOf({ model_type: 'vit', image_size: 224, patch_size: 16 })
  const pixels = input(inputName, 'float32', [size('images'), 3, 224, 224])
  const weights = familyWeights((name, shape) => {
    const value = float32Tensor(values(name, shape), shape)
    return weight(name, 'float32', shape, { kind: 'memory', value })
  }, tower.names)
  const { bytes, externalData } = lower({ outputs: { [outputName]: tower.forward(pixels, weights, 'last') }, inputs: [pixels] })
  for (const { path, data } of externalData ?? []) await writeFile(join(folder, path), data)
  const file = join(folder, 'model.onnx')
  await writeFile(file, bytes)
  return file
}

/** Norms are 1; the rest uniform with deviation 0.02, cheaply: only its spread matters here. */
function values(name: string, dims: readonly number[]): Float32Array {
  const data = new Float32Array(elementCount(dims))
  if (dims.length === 1) return data.fill(name.endsWith('.weight') ? 1 : 0)
  let state = name.length + 1
  for (let i = 0; i < data.length; i++) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff
    data[i] = (state / 0x7fffffff - 0.5) * 0.07
  }
  return data
}
