/** Every provider's kernels, forward and backward, against the float64 evaluator; profiles prove which provider computed what. */
import { beforeAll, describe, expect, test } from 'vitest'
import { definedPrimitives } from '../src/graph/operator.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import { profileRun, providerNames } from '../src/runtime/profile.ts'
import { createWebSession } from '../src/runtime/web.ts'
import type { NamedTensors } from '../src/tensors.ts'
import { kernelFaults } from './operators/kernel-faults.ts'
import { compositeModels, difference, type KernelModel, kernelModels, modelOf } from './operators/kernels.ts'
import { useSoftwareVulkan } from './software-vulkan.ts'

const count = process.env.MODALIGN_LONG === '1' ? 24 : 3
const models = kernelModels(count)
const named = models.map((model) => [model.operator, model] as const)

test('every primitive is among the models', () => {
  expect(models.map(({ operator }) => operator)).toEqual([...definedPrimitives().keys()].sort())
})

describe('the CPU provider', () => {
  test.each(named)('%s', async (_, model) => {
    expect(await differenceOn((source) => createLocalSession(source, { device: 'cpu' }), model)).toBeUndefined()
    const plain = await differenceOn((source) => createLocalSession(source, { device: 'cpu', optimization: 'disabled' }), model)
    expect(plain).toBeUndefined()
  })
})

/** Fused where ONNX Runtime has a fused operator, and as plain formulas. */
const composed = [true, false].flatMap((fused) =>
  compositeModels(count, fused).map((model) => [`${model.operator}, ${fused ? 'fused' : 'plain'}`, model] as const),
)

/** What went wrong on one provider is checked on all. */
const faults = Object.entries(kernelFaults).map(([name, one]) => [name, modelOf(name, [one])] as const)

describe('composites on the CPU provider', () => {
  test.each(composed)('%s', async (_, model) => {
    expect(await differenceOn((source) => createLocalSession(source, { device: 'cpu' }), model)).toBeUndefined()
  })
})

describe.each(['cpu', 'wasm'] as const)('what WebGPU kernels get wrong, on %s', (device) => {
  test.each(faults)('%s', async (_, model) => {
    const create = device === 'cpu' ? createLocalSession : createWebSession
    expect(await differenceOn((source) => create(source, { device }), model)).toBeUndefined()
  })
})

describe('composites on WASM', () => {
  test.each(composed)('%s', async (_, model) => {
    expect(await differenceOn((source) => createWebSession(source, { device: 'wasm' }), model)).toBeUndefined()
  })
})

describe('WASM', () => {
  test.each(named)('%s', async (_, model) => {
    expect(await differenceOn((source) => createWebSession(source, { device: 'wasm' }), model)).toBeUndefined()
  })
})

describe.skipIf(!useSoftwareVulkan('operators on the WebGPU provider'))('the WebGPU provider', () => {
  const outputs = new Map<string, NamedTensors>()
  /** Where nodes of each operator ran. */
  const providers = new Map<string, Set<string>>()

  beforeAll(async () => {
    for (const { operator, lowered, feeds } of models) {
      // Without optimisation each operator stays a node of its own.
      const run = await profileRun(lowered, feeds, { device: 'webgpu', optimization: 'disabled' }, createLocalSession)
      outputs.set(operator, run.outputs)
      for (const node of run.nodes) providers.set(node.operator, (providers.get(node.operator) ?? new Set()).add(node.provider))
    }
  }, 600_000)

  test.each(named)('%s', (operator, { expected }) => {
    // WGSL promises no more for sin and cos than 2^-11 in [-pi, pi] (section 15.7.4.1), and software adapters give no more.
    const tolerance = operator === 'Sin' || operator === 'Cos' ? { absolute: 2 ** -11 } : {}
    expect(difference(outputs.get(operator) ?? {}, expected, tolerance)).toBeUndefined()
  })

  test.each([...composed, ...faults])('%s', async (_, model) => {
    expect(await differenceOn((source) => createLocalSession(source, { device: 'webgpu' }), model)).toBeUndefined()
  })

  test('computed all but these itself', () => {
    const primitives = [...definedPrimitives().keys()].sort()
    const elsewhere = primitives.filter((operator) => providers.get(operator)?.has(providerNames.webgpu) !== true)
    console.info(
      primitives.map((operator) => `${operator}: ${[...(providers.get(operator) ?? [])].sort().reverse().join(', ')}`).join('\n'),
    )
    expect(elsewhere).toEqual(['LogSoftmax', 'Or', 'Range', 'Sign'])
    expect(new Set(elsewhere.flatMap((operator) => [...(providers.get(operator) ?? [])]))).toEqual(new Set([providerNames.cpu]))
  })

  test('left to the CPU, of the others, only integers, double precision and what is empty', () => {
    const both = [...definedPrimitives().keys()].filter((operator) => providers.get(operator)?.size === 2).sort()
    const integral = [
      'Add',
      'Cast',
      'Concat',
      'Equal',
      'Expand',
      'Gather',
      'Mul',
      'ReduceProd',
      'Reshape',
      'Shape',
      'Squeeze',
      'Transpose',
      'Unsqueeze',
    ]
    expect(integral).toEqual(expect.arrayContaining(both))
  })
})

async function differenceOn(
  create: (source: KernelModel['lowered']) => ReturnType<typeof createWebSession>,
  { lowered, feeds, expected }: KernelModel,
): Promise<string | undefined> {
  await using session = await create(lowered)
  return difference(await session.run(feeds), expected)
}
