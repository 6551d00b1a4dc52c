/** Saving and loading a model: the round trip, and what is refused. */
import { existsSync } from 'node:fs'
import { cp, mkdtemp, readdir, readFile, rename, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { linear } from '../projectors/linear.ts'
import { mlp } from '../projectors/mlp.ts'
import { type ErrorData, ModalignError, renderError } from '../src/errors.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import type { Encoder } from '../src/model/contracts.ts'
import { compose, type MultimodalModel } from '../src/model/multimodal-model.ts'
import { type Catalogues, loadModel, saveModel } from '../src/model/saved-model.ts'
import { float32Tensor, int64Tensor } from '../src/tensors.ts'
import { safetensorsBytes, type TensorToWrite } from '../src/weights/safetensors.ts'
import { colours, openEncoder, writeDataset, writeLanguageModel } from './tune-tiny-pair.ts'

const catalogues: Catalogues = { encoders: {}, projectors: { linear, mlp } }
const pictures = Object.keys(colours).map((name) => `${name}.png`)

let root: string
let llm: LanguageModel
let encoder: Encoder<'image'>
let model: MultimodalModel
let saved: string

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-saved-'))
  await Promise.all([
    writeLanguageModel(join(root, 'llm')),
    writeLanguageModel(join(root, 'other-llm'), 7),
    writeDataset(join(root, 'data')),
  ])
  llm = await loadLanguageModel(join(root, 'llm'), { device: 'cpu', threads: 1 })
  encoder = await openEncoder(join(root, 'encoder.onnx'))
  model = await compose({ llm, image: { encoder, projector: mlp({ depth: 2 }) }, seed: 5 })
  saved = join(root, 'saved')
  await saveModel(model, saved)
})

afterAll(async () => {
  await model?.dispose()
  await llm?.dispose()
  await rm(root, { recursive: true, force: true })
})

async function copyOfSaved(): Promise<string> {
  const folder = await mkdtemp(join(root, 'copy-'))
  await cp(saved, folder, { recursive: true })
  return folder
}

async function refusal(
  folder: string,
  parts: Parameters<typeof loadModel>[2] = { llm, encoders: { image: encoder } },
  from = catalogues,
): Promise<ErrorData> {
  const error: unknown = await loadModel(folder, from, parts).then(
    () => 'no error',
    (thrown: unknown) => thrown,
  )
  if (error instanceof ModalignError) return error.details
  throw new Error(`not a typed error: ${String(error)}`)
}

async function editManifest(folder: string, edit: (text: string) => string): Promise<void> {
  const file = join(folder, 'modalign.json')
  const before = await readFile(file, 'utf8')
  const after = edit(before)
  expect(after).not.toBe(before)
  await writeFile(file, after)
}

describe('a round trip', () => {
  test('gives the same values, features and answers', async () => {
    const loaded = await loadModel(saved, catalogues, { llm, encoders: { image: encoder } })
    expect(loaded.parameters).toEqual(model.parameters)
    expect(loaded.branch('image').projector).toMatchObject({ options: { depth: 2 } })
    const options = { root: join(root, 'data'), maxNewTokens: 8 }
    expect(await loaded.caption(pictures, options)).toEqual(await model.caption(pictures, options))
    const again = join(root, 'again')
    await saveModel(loaded, again)
    for (const name of ['projector.safetensors', 'modalign.json'])
      expect((await readFile(join(again, name))).equals(await readFile(join(saved, name)))).toBe(true)
  })

  test('finds the language model where the manifest says, also after everything has moved together', async () => {
    const before = await mkdtemp(join(root, 'before-'))
    await cp(join(root, 'llm'), join(before, 'llm'), { recursive: true })
    const there = await loadLanguageModel(join(before, 'llm'), { device: 'cpu', threads: 1 })
    await saveModel(await compose({ llm: there, image: { encoder, projector: linear() } }), join(before, 'model'))
    expect(await readFile(join(before, 'model', 'modalign.json'), 'utf8')).not.toContain(before)
    const after = join(root, 'after')
    await rename(before, after)
    const loaded = await loadModel(join(after, 'model'), catalogues, { encoders: { image: encoder }, device: 'cpu' })
    expect(loaded.llm.identity).toBe(there.identity)
    expect(loaded.llm.folder).toBe(join(after, 'llm'))
  })

  test("keeps a template that was chosen, and none that is the model's own", async () => {
    expect(await readFile(join(saved, 'modalign.json'), 'utf8')).not.toContain('"template"')
    await using vicuna = await loadLanguageModel(join(root, 'llm'), { device: 'cpu', threads: 1, template: 'vicuna' })
    const folder = join(root, 'with-template')
    await saveModel(await compose({ llm: vicuna, image: { encoder, projector: linear() } }), folder)
    await using loaded = await loadModel(folder, catalogues, { encoders: { image: encoder }, device: 'cpu' })
    const asked = [{ role: 'user' as const, content: 'What is it?' }]
    const text = loaded.llm.template.render(asked, { addGenerationPrompt: true })
    expect(text).toBe(vicuna.template.render(asked, { addGenerationPrompt: true }))
    expect(text).toMatch(/USER: What is it\? ASSISTANT:$/)
    expect(text).not.toBe(llm.template.render(asked, { addGenerationPrompt: true }))
    await expect(loadLanguageModel(join(root, 'llm'), { template: 'unknown' })).rejects.toMatchObject({
      details: { code: 'TEMPLATE_CHOICE', got: 'unknown' },
    })
  })

  test("makes the encoder again by the catalogue's name and the recipe's options", async () => {
    const file = join(root, 'encoder.onnx')
    const recipe = { family: 'tiny', model: file, options: { seed: 0, extra: ['a', null] } }
    const made: unknown[] = []
    const tiny: Catalogues = {
      ...catalogues,
      encoders: {
        async tiny(options) {
          made.push(options)
          return openEncoder(file)
        },
      },
    }
    const folder = join(root, 'with-recipe')
    await saveModel(await compose({ llm, image: { encoder: { ...encoder, recipe }, projector: linear() } }), folder)
    await using loaded = await loadModel(folder, tiny, { llm })
    expect(made).toEqual([{ ...recipe.options, model: file }])
    expect(loaded.branch('image').encoder.fingerprint).toBe(encoder.fingerprint)
    expect(await refusal(folder, { llm })).toMatchObject({ code: 'MODEL_ENCODER_UNKNOWN', field: '/image/encoder/recipe', got: 'tiny' })
    const { recipe: _, ...byHand } = encoder
    await saveModel(await compose({ llm, image: { encoder: byHand, projector: linear() } }), folder)
    expect(await refusal(folder, { llm })).toMatchObject({ code: 'MODEL_ENCODER_UNKNOWN', got: 'none' })
  })
})

describe('another pair is refused, with what differs', () => {
  test('another language model', async () => {
    const other = await loadLanguageModel(join(root, 'other-llm'))
    const details = await refusal(saved, { llm: other, encoders: { image: encoder } })
    expect(details).toMatchObject({ code: 'MODEL_MISMATCH', file: join(saved, 'modalign.json') })
    const text = renderError(details)
    expect(text).toContain(
      `language model: trained with llm (${llm.identity.slice(0, 12)}), given other-llm (${other.identity.slice(0, 12)})`,
    )
    expect(text).not.toContain('encoder:')
  })

  test('another encoder, which stays open for its owner', async () => {
    const other = await openEncoder(join(root, 'other-encoder.onnx'), 9)
    try {
      const details = await refusal(saved, { llm, encoders: { image: other } })
      expect(details.code).toBe('MODEL_MISMATCH')
      expect(renderError(details)).toContain(
        `encoder: trained with encoder.onnx (${encoder.fingerprint.slice(0, 12)}), given other-encoder.onnx (${other.fingerprint.slice(0, 12)})`,
      )
      const image = await other.preprocess({ width: 2, height: 2, data: new Uint8Array(12) })
      expect((await other.encode([image])).count).toBe(1)
    } finally {
      await other.dispose()
    }
  })

  test('both, and other sizes, all at once', async () => {
    const other = await loadLanguageModel(join(root, 'other-llm'))
    const wider: Encoder<'image'> = {
      ...encoder,
      fingerprint: 'f'.repeat(64),
      width: 99,
      grid: () => ({ segments: [{ frames: 1, rows: 3, columns: 3 }] }),
    }
    const { message } = new ModalignError(await refusal(saved, { llm: other, encoders: { image: wider } }))
    for (const part of [
      'given other-llm',
      'encoder: trained with',
      'feature width: trained with 8, given 99',
      'features of a picture: trained with 4, given 9',
    ])
      expect(message).toContain(part)
  })
})

describe('projector.safetensors', () => {
  const weightsOf = (folder: string): string => join(folder, 'projector.safetensors')
  const tensorsOf = (): TensorToWrite[] =>
    Object.entries(model.parameters).map(([name, { dims, data }]) => ({ name, value: float32Tensor(data, dims) }))

  test.each<[string, (file: string) => Promise<void>, RegExp]>([
    ['missing', (file) => rm(file), /^FILE_MISSING$/],
    ['empty', (file) => truncate(file, 0), /^SAFETENSORS_/],
    ['truncated in its header', (file) => truncate(file, 60), /^SAFETENSORS_/],
    ['truncated in its data', async (file) => truncate(file, (await readFile(file)).length - 1), /^SAFETENSORS_/],
    ['one byte too long', async (file) => writeFile(file, Buffer.concat([await readFile(file), Buffer.of(0)])), /^SAFETENSORS_/],
    ['lying about a shape', (file) => lie(file, '"shape":[32]', '"shape":[31]'), /^SAFETENSORS_/],
    ['lying about a place', (file) => lie(file, '"data_offsets":[0,', '"data_offsets":[4,'), /^SAFETENSORS_/],
    ['no safetensors', (file) => writeFile(file, '<html>not found</html>'), /^SAFETENSORS_/],
    ['without a parameter', async (file) => writeFile(file, await safetensorsBytes(tensorsOf().slice(1))), /^MODEL_PARAMETERS$/],
    [
      'with a parameter too many',
      async (file) =>
        writeFile(
          file,
          await safetensorsBytes([...tensorsOf(), { name: 'image.9.weight', value: float32Tensor(new Float32Array(1), [1]) }]),
        ),
      /^MODEL_PARAMETERS$/,
    ],
    [
      'of another shape',
      async (file) =>
        writeFile(
          file,
          await safetensorsBytes(tensorsOf().map(({ name }) => ({ name, value: float32Tensor(new Float32Array(6), [2, 3]) }))),
        ),
      /^MODEL_PARAMETERS$/,
    ],
    [
      'of integers',
      async (file) =>
        writeFile(
          file,
          await safetensorsBytes(
            Object.entries(model.parameters).map(([name, { dims, data }]) => ({
              name,
              value: int64Tensor(new BigInt64Array(data.length), dims),
            })),
          ),
        ),
      /^MODEL_PARAMETERS$/,
    ],
    [
      'with NaN in it',
      async (file) =>
        writeFile(
          file,
          await safetensorsBytes(
            Object.entries(model.parameters).map(([name, { dims, data }]) => ({
              name,
              value: float32Tensor(
                data.map(() => Number.NaN),
                dims,
              ),
            })),
          ),
        ),
      /^MODEL_PARAMETERS$/,
    ],
  ])('%s', async (_, damage, code) => {
    const folder = await copyOfSaved()
    await damage(weightsOf(folder))
    const details = await refusal(folder)
    expect(details.code).toMatch(code)
    expect(details.file).toBe(weightsOf(folder))
  })

  async function lie(file: string, from: string, to: string): Promise<void> {
    const bytes = (await readFile(file)).toString('latin1')
    expect(bytes).toContain(from)
    await writeFile(file, bytes.replace(from, to), 'latin1')
  }
})

describe('modalign.json', () => {
  test.each<[string, (text: string) => string, ErrorData]>([
    ['not JSON', (text) => text.slice(0, -10), { code: 'MODEL_MANIFEST', expected: 'JSON' }],
    ['empty', () => '', { code: 'MODEL_MANIFEST', expected: 'JSON' }],
    ['another format', (text) => text.replace('"format": 1', '"format": 2'), { code: 'MODEL_MANIFEST', field: '/format' }],
    ['a list', () => '[]', { code: 'MODEL_MANIFEST', field: '/' }],
    ['a key too many', (text) => text.replace('"format": 1', '"format": 1, "extra": true'), { code: 'MODEL_MANIFEST' }],
    ['a key too few', (text) => text.replace(/"hiddenSize": 32,?/, ''), { code: 'MODEL_MANIFEST', field: '/llm/hiddenSize' }],
    ['another type', (text) => text.replace('"width": 8', '"width": "8"'), { code: 'MODEL_MANIFEST', field: '/image/encoder/width' }],
    [
      'an unknown projector',
      (text) => text.replace('"name": "mlp"', '"name": "pixie"'),
      { code: 'MODEL_PROJECTOR_UNKNOWN', field: '/image/projector/name', got: 'pixie' },
    ],
    [
      'a projector named as what every object has',
      (text) => text.replace('"name": "mlp"', '"name": "constructor"'),
      { code: 'MODEL_PROJECTOR_UNKNOWN' },
    ],
    [
      'options that the projector refuses',
      (text) => text.replace('"depth": 2', '"depth": 0'),
      { code: 'MODEL_MANIFEST', field: '/image/projector/options' },
    ],
    [
      'other options than were trained',
      (text) => text.replace('"depth": 2', '"depth": 3'),
      { code: 'MODEL_PARAMETERS', field: 'image.4.weight' },
    ],
    [
      'another hidden size',
      (text) => text.replace('"hiddenSize": 32', '"hiddenSize": 64'),
      { code: 'MODEL_MISMATCH', got: 'another pair' },
    ],
    ['another number of tokens', (text) => text.replace('"tokens": 4', '"tokens": 9'), { code: 'MODEL_MISMATCH' }],
  ])('by hand: %s', async (_, edit, expected) => {
    const folder = await copyOfSaved()
    await editManifest(folder, edit)
    expect(await refusal(folder)).toMatchObject(expected)
  })

  test('no folder, or a folder without one', async () => {
    expect(await refusal(join(root, 'nowhere'))).toMatchObject({ code: 'FILE_MISSING', file: join(root, 'nowhere', 'modalign.json') })
    expect(await refusal(join(root, 'data'))).toMatchObject({ code: 'FILE_MISSING' })
  })

  test('a path to no language model names it', async () => {
    const folder = await copyOfSaved()
    await editManifest(folder, (text) => text.replace(/"path": "[^"]*"/, '"path": "elsewhere"'))
    expect(await refusal(folder, { encoders: { image: encoder } })).toMatchObject({
      code: 'FILE_MISSING',
      file: join(folder, 'elsewhere'),
    })
  })
})

test('a save that is cut short leaves no model: the manifest comes last', async () => {
  const folder = join(root, 'cut')
  const broken: MultimodalModel = Object.create(model, {
    parameters: {
      get: () => {
        throw new Error('power cut')
      },
    },
  })
  await expect(saveModel(broken, folder)).rejects.toThrow('power cut')
  expect(existsSync(folder) ? await readdir(folder) : []).toEqual([])
})
