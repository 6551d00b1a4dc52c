/** Every projector of the catalogue against PyTorch: what it gives, and the gradients that are derived for it. */
import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { z } from 'zod'
import { projectors } from '../projectors/index.ts'
import { evaluate, type Value, value } from '../src/graph/evaluate.ts'
import { gradients } from '../src/graph/gradients.ts'
import { mul } from '../src/graph/operators/mul.ts'
import { reduceSum } from '../src/graph/operators/reduce-sum.ts'
import { ParameterScope } from '../src/graph/parameters.ts'
import { input } from '../src/graph/tensor.ts'
import type { ProjectorDefinition } from '../src/model/contracts.ts'

const tensor = z.object({ dims: z.array(z.int()), data: z.array(z.number()) })
const cases = z
  .array(
    z.object({
      name: z.enum(['linear', 'mlp', 'pooledMlp', 'stackedMlp']),
      options: z.record(z.string(), z.unknown()),
      grid: z.tuple([z.int(), z.int(), z.int()]),
      x: tensor,
      parameters: z.record(z.string(), tensor),
      weights: tensor,
      out: tensor,
      gradients: z.record(z.string(), z.array(z.number())),
    }),
  )
  .parse(JSON.parse(readFileSync(new URL('./fixtures/projectors/projectors.json', import.meta.url), 'utf8')))

const fed = ({ dims, data }: z.infer<typeof tensor>): Value => value('float32', dims, Float64Array.from(data))

function expectNear(found: Value | undefined, expected: readonly number[], name: string): void {
  expect(found?.data.length, name).toBe(expected.length)
  const largest = Math.max(...expected.map(Math.abs), 1e-3)
  for (const [place, wanted] of expected.entries())
    expect(Math.abs((found?.data[place] ?? Number.NaN) - wanted) / largest, `${name}[${place}]`).toBeLessThan(1e-6)
}

test('every projector is here', () => {
  expect(cases.map(({ name }) => name).sort()).toEqual(Object.keys(projectors).sort())
})

test.each(cases)('$name', ({ name, options, grid: [frames, rows, columns], x, parameters, weights, out, gradients: expected }) => {
  const family: ProjectorDefinition = projectors[name]
  const scope = new ParameterScope()
  const features = input('x', 'float32', x.dims)
  const context = { outputWidth: 4, embeddingRms: 1, grid: { segments: [{ frames, rows, columns }] } }
  const projected = family.build({ features: [features] }, scope, { ...context, options: family.options.parse(options) })
  expect(scope.parameters.map((parameter) => parameter.name).sort()).toEqual(Object.keys(parameters).sort())
  const wrt = [features, ...scope.parameters.map((parameter) => parameter.tensor)]
  const derived = gradients(reduceSum(mul(projected, input('weights', 'float32', weights.dims)), [0, 1, 2]), wrt)
  const feeds = { x: fed(x), weights: fed(weights), ...Object.fromEntries(Object.entries(parameters).map(([key, one]) => [key, fed(one)])) }
  const [found, ...slopes] = evaluate([projected, ...derived], feeds)
  expectNear(found, out.data, 'output')
  for (const [index, key] of ['x', ...scope.parameters.map((parameter) => parameter.name)].entries())
    expectNear(slopes[index], expected[key] ?? [], key)
})
