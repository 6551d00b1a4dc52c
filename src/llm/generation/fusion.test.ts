import { expect, test } from 'vitest'
import { blockQuantised } from '../../graph/composites/block-quantised.ts'
import { matmulTransposed } from '../../graph/composites/linear.ts'
import { rmsNormalization } from '../../graph/composites/rms-normalization.ts'
import { size } from '../../graph/dim.ts'
import { add } from '../../graph/operators/add.ts'
import { constant, input, type Tensor, weight } from '../../graph/tensor.ts'
import { type LoweredModel, lower } from '../../onnx/lower.ts'
import { uniforms } from '../../random.ts'
import { createLocalSession } from '../../runtime/local.ts'
import { withoutUndefined } from '../../runtime/session.ts'
import { float32Tensor, type NamedTensors } from '../../tensors.ts'
import { fuseGeneration } from './fusion.ts'

const [columns, block] = [64, 32]

const numbers = (name: string, dims: readonly number[]): Tensor => {
  const data = uniforms(
    dims.reduce((product, one) => product * one, 1),
    { seed: 1, stream: name },
    { low: -0.1, high: 0.1 },
  )
  return weight(name, 'float32', dims, { kind: 'memory', value: float32Tensor(data, dims) })
}

function blocks(name: string, rows: number, withMinimums: boolean): Tensor {
  const dims = [rows, columns / block, block / 2]
  const data = Uint8Array.from(
    uniforms(
      dims.reduce((product, one) => product * one, 1),
      { seed: 1, stream: name },
      { low: 0, high: 256 },
    ),
  )
  return blockQuantised({
    packed: weight(`${name}.packed`, 'uint8', dims, { kind: 'memory', value: { dtype: 'uint8', dims, data } }),
    scales: numbers(`${name}.scales`, dims.slice(0, 2)),
    ...(withMinimums && { minimums: numbers(`${name}.minimums`, dims.slice(0, 2)) }),
    bits: 4,
  })
}

async function outputsOf(lowered: LoweredModel, feeds: NamedTensors): Promise<NamedTensors> {
  const { bytes, externalRoot, externalData } = lowered
  await using session = await createLocalSession(withoutUndefined({ bytes, externalRoot, externalData }), { device: 'cpu', threads: 1 })
  return await session.run(feeds)
}

const count = ({ model }: LoweredModel, opType: string): number => model.graph?.node.filter((node) => node.opType === opType).length ?? 0

test.each([{ withMinimums: true }, { withMinimums: false }])(
  'products of one input become one (minimums: $withMinimums), a residual joins its norm; nothing else changes',
  async ({ withMinimums }) => {
    const x = input('x', 'float32', [size('batch'), size('tokens'), columns])
    const other = input('other', 'float32', [size('batch'), size('tokens'), columns])
    const bias = constant(float32Tensor(new Float32Array(columns).fill(0.5), [columns]))
    const norm = (name: string, of: Tensor): Tensor => rmsNormalization(of, numbers(`${name}.weight`, [columns]), { epsilon: 1e-5 })
    const residual = add(x, matmulTransposed(other, blocks('o', columns, withMinimums)))
    const normal = norm('norm', residual)
    const [q, k, v] = [
      matmulTransposed(normal, blocks('q', 48, withMinimums)),
      matmulTransposed(normal, blocks('k', 16, withMinimums)),
      add(matmulTransposed(normal, blocks('v', columns, withMinimums)), bias),
    ]
    const outputs = { q, k, v, residual: add(residual, v), biased: norm('biased', add(other, bias)) }
    const lowered = lower({ outputs })
    const fused = fuseGeneration(lowered)
    expect(count(lowered, 'MatMulNBits')).toBe(4)
    expect(count(fused, 'MatMulNBits')).toBe(2)
    expect(count(fused, 'SkipSimplifiedLayerNormalization')).toBe(1)
    // A bias is no residual.
    expect(count(fused, 'SimplifiedLayerNormalization')).toBe(1)
    for (const [batch, tokens] of [
      [1, 1],
      [2, 5],
    ] as const) {
      const dims = [batch, tokens, columns]
      const feeds = Object.fromEntries(
        ['x', 'other'].map((name) => [
          name,
          float32Tensor(uniforms(batch * tokens * columns, { seed: 2, stream: name }, { low: -1 }), dims),
        ]),
      )
      const [before, after] = [await outputsOf(lowered, feeds), await outputsOf(fused, feeds)]
      for (const [name, value] of Object.entries(before)) {
        const found = after[name]
        if (value.dtype !== 'float32' || found?.dtype !== 'float32') throw new Error('float32')
        expect(found.dims).toEqual(value.dims)
        for (const [index, number] of value.data.entries()) expect(found.data[index]).toBeCloseTo(number, 4)
      }
    }
  },
)
