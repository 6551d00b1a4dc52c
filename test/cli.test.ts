import { copyFile, mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { call, makeWorld, recordOf, type World } from './cli-world.ts'
import { entry, ggufBytes } from './gguf-bytes.ts'

// Each call loads real models in worker threads of their own: seconds on a quiet machine, minutes on a crowded one.
vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 })

let world: World
beforeAll(async () => {
  world = await makeWorld()
  // The model that the later tests talk to.
  const tuned = await call(['tune', world.runFile, '--json'])
  expect(tuned.stderr).not.toMatch(/Error|defect/)
  expect(tuned.code).toBe(0)
})
afterAll(() => world[Symbol.asyncDispose]())

const jsonLines = async (path: string): Promise<readonly Readonly<Record<string, unknown>>[]> =>
  (await readFile(path, 'utf8'))
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))

describe('tune', () => {
  test('leaves a whole run: metrics, a falling loss, curve and model', async () => {
    const rows = await jsonLines(world.path('runs', 'first', 'metrics.jsonl'))
    expect(rows.map(({ step }) => step)).toEqual(Array.from({ length: 12 }, (_, i) => i + 1))
    expect(Number(rows.at(-1)?.loss)).toBeLessThan(0.9 * Number(rows[0]?.loss))
    expect((await readdir(world.path('runs', 'first'))).sort()).toEqual(['checkpoints', 'loss.png', 'loss.svg', 'metrics.jsonl', 'model'])
    const manifest = JSON.parse(await readFile(world.path('runs', 'first', 'model', 'modalign.json'), 'utf8'))
    expect(manifest).toMatchObject({
      llm: { path: '../../../llm', hiddenSize: 32 },
      image: {
        encoder: { width: 6, tokens: 4, recipe: { family: 'onnxImage', model: '../../../encoder.onnx' } },
        projector: { name: 'mlp', options: { depth: 2 } },
      },
    })
  })

  test('flags win over the run file; stdout is one JSON object a line, the last a summary of what was done', async () => {
    const tuned = await call([
      'tune',
      world.runFile,
      '--json',
      '--output',
      world.path('runs', 'flags'),
      '--max-steps',
      '2',
      '--image-projector',
      '{name: mlp, depth: 1}',
    ])
    expect(tuned.code).toBe(0)
    const records = tuned.records()
    expect(records.map(({ type }) => type)).toEqual(['start', 'step', 'step', 'end', 'summary'])
    expect(records.at(-1)).toMatchObject({
      steps: 2,
      samples: 4,
      badRecords: 0,
      device: 'cpu',
      passedOver: [],
      parameters: 6 * 32 + 32,
      badByCode: {},
    })
    expect(tuned.stderr).toContain('trained: the projector mlp, 224 parameters, 2 steps')
    expect(tuned.stderr).toContain('not trained: the encoder encoder.onnx and the language model llm (frozen)')
  })

  test('an interrupt ends the step, saves a checkpoint and says how to resume; the resumed run ends as if nothing had happened', async () => {
    const output = world.path('runs', 'interrupted')
    let sent = false
    const stopped = await call(['tune', world.runFile, '--output', output, '--json'], {
      onOutput(text, signal) {
        if (!sent && text.includes('"step":5,')) {
          sent = true
          signal('SIGINT')
        }
      },
    })
    expect(stopped.code).toBe(130)
    const done = (await jsonLines(join(output, 'metrics.jsonl'))).length
    expect(done).toBeGreaterThanOrEqual(5)
    expect(done).toBeLessThan(12)
    expect(stopped.stderr).toContain(`interrupted after step ${done}`)
    expect(stopped.stderr).toContain('--resume')
    expect(await readdir(output)).not.toContain('model')

    // Without --resume nothing of the run is touched.
    const refused = await call(['tune', world.runFile, '--output', output])
    expect([refused.code, refused.stderr.split(':')[0]]).toEqual([2, 'RUN_LOG_EXISTS'])

    const resumed = await call(['tune', world.runFile, '--output', output, '--resume'])
    expect(resumed.code).toBe(0)
    const strip = (rows: readonly Readonly<Record<string, unknown>>[]) => rows.map(({ seconds: _, ...row }) => row)
    expect(strip(await jsonLines(join(output, 'metrics.jsonl')))).toEqual(
      strip(await jsonLines(world.path('runs', 'first', 'metrics.jsonl'))),
    )
    expect(await readFile(join(output, 'model', 'projector.safetensors'))).toEqual(
      await readFile(world.path('runs', 'first', 'model', 'projector.safetensors')),
    )
  })

  test('bad records: fail tells them all before anything is loaded, skip leaves them out and counts them', async () => {
    const records = world.path('bad.json')
    await writeFile(
      records,
      JSON.stringify([
        recordOf('red'),
        { ...recordOf('green'), conversations: [] },
        recordOf('blue', 'pictures/gone.png'),
        recordOf('black'),
      ]),
    )
    const failed = await call([
      'tune',
      world.runFile,
      '--data-path',
      records,
      '--llm',
      world.path('nowhere'),
      '--output',
      world.path('runs', 'bad'),
    ])
    expect(failed.code).toBe(3)
    expect(failed.stderr).toContain('DATASET_CONVERSATIONS')
    expect(failed.stderr).toContain('record 2')
    expect(await readdir(world.path('runs'))).not.toContain('bad')

    const skipped = await call([
      'tune',
      world.runFile,
      '--data-path',
      records,
      '--on-bad',
      'skip',
      '--max-steps',
      '1',
      '--output',
      world.path('runs', 'skip'),
      '--json',
    ])
    expect(skipped.code).toBe(0)
    expect(skipped.records().at(-1)).toMatchObject({ samples: 2, badRecords: 2, badByCode: { DATASET_CONVERSATIONS: 1, FILE_MISSING: 1 } })
  })

  test('a run file with several mistakes: every one is told, with its line', async () => {
    const file = world.path('wrong.yaml')
    await writeFile(file, 'llm: llm\nlerningRate: 1e-3\nepochs: 0x10\n')
    const hex = await call(['tune', file])
    expect([hex.code, hex.stderr]).toEqual([2, expect.stringContaining('line 3')])
    await writeFile(
      file,
      'llm: llm\nlerningRate: 1e-3\nimage:\n  encoder: mobilnetV2\n  projector: { name: mlp, dept: 2 }\ndata: { path: records.json }\n',
    )
    const wrong = await call(['tune', file, '--batch-size', ' 5 ', '--json'])
    expect(wrong.code).toBe(2)
    const [error] = wrong.records()
    expect(error).toMatchObject({
      type: 'error',
      exitCode: 2,
      problems: [
        { code: 'CONFIG_VALUE', field: '--batch-size', got: ' 5 ' },
        { code: 'CONFIG_VALUE', field: '/image/encoder', line: 4, hint: 'did you mean mobilenetV2?' },
        { code: 'CONFIG_UNKNOWN_KEY', field: '/image/projector/dept', line: 5, hint: 'did you mean depth?' },
        { code: 'CONFIG_MISSING', field: '/output', hint: 'give --output, or "output" in the run file' },
        { code: 'CONFIG_UNKNOWN_KEY', field: '/lerningRate', line: 2, hint: 'did you mean learningRate?' },
      ],
    })
    expect(wrong.stderr.trimEnd().split('\n')).toHaveLength(5)
  })

  test("a user's own projector: tuned from its module, asked with --module", async () => {
    // A user imports 'modalign'; here the same source by its place.
    const source = new URL('../src/index.ts', import.meta.url).href
    const graph = new URL('../src/graph/index.ts', import.meta.url).href
    await writeFile(
      world.path('mine.mjs'),
      `import { defineProjector, onlyFeatures } from ${JSON.stringify(source)}
import { linear, mul } from ${JSON.stringify(graph)}
import { z } from ${JSON.stringify(import.meta.resolve('zod'))}
export const scaled = defineProjector({ name: 'scaled', options: z.strictObject({ factor: z.number().default(2) }), tokens: (grid) => grid,
  build: (input, scope, { outputWidth, options }) => linear(mul(onlyFeatures(input, 'scaled'), options.factor), scope, outputWidth) })
`,
    )
    const run = await readFile(world.runFile, 'utf8')
    await writeFile(
      world.path('mine.yaml'),
      run.replace('{ name: mlp, depth: 2 }', '{ name: ./mine.mjs#scaled, factor: 3 }').replace('runs/first', 'runs/mine'),
    )
    const tuned = await call(['tune', world.path('mine.yaml'), '--max-steps', '1'])
    expect([tuned.code, tuned.stderr]).toEqual([0, expect.stringContaining('the projector scaled, 224 parameters')])
    const model = world.path('runs', 'mine', 'model')
    const unknown = await call(['chat', 'Hi', '--model', model])
    expect([unknown.code, unknown.stderr.split(':')[0]]).toEqual([2, 'MODEL_PROJECTOR_UNKNOWN'])
    const known = await call([
      'chat',
      'Hi',
      '--model',
      model,
      '--module',
      `${world.path('mine.mjs')}#scaled`,
      '--max-new-tokens',
      '3',
      '--json',
      '--device',
      'cpu',
      '--threads',
      '1',
    ])
    expect([known.code, known.records()]).toEqual([0, [expect.objectContaining({ type: 'answer', question: 'Hi' })]])
    const misspelt = await call(['tune', world.path('mine.yaml'), '--image-projector', `${world.path('mine.mjs')}#scald`])
    expect([misspelt.code, misspelt.stderr]).toEqual([2, expect.stringContaining('did you mean scaled?')])
  })

  test.each([
    ['the root of the disk', ['--output', '/'], 'CONFIG_OUTPUT'],
    ['a named device that is not there', ['--device', 'coreml', '--output', 'unused-output'], 'RUNTIME_DEVICE_UNAVAILABLE'],
  ])('refuses %s', async (_, flags, code) => {
    if (code === 'RUNTIME_DEVICE_UNAVAILABLE' && process.platform === 'darwin') return
    const refused = await call(['tune', world.runFile, ...flags.map((flag) => flag.replace('unused-output', world.path('unused')))])
    expect([refused.code, refused.stderr.split(':')[0]]).toEqual([code === 'CONFIG_OUTPUT' ? 2 : 4, code])
  })
})

describe('chat', () => {
  const model = () => world.path('runs', 'first', 'model')
  const common = ['--device', 'cpu', '--threads', '1', '--max-new-tokens', '4', '--temperature', '0']

  test('answers one question about a picture, the same each time, on stdout alone', async () => {
    const argv = ['chat', 'What is this?', '--image', join(world.pictures, 'red.png'), '--model', model(), ...common]
    const [one, two] = [await call(argv), await call([...argv, '--json'])]
    expect([one.code, one.stderr]).toEqual([0, ''])
    expect(two.records()).toEqual([
      { type: 'answer', question: 'What is this?', images: [join(world.pictures, 'red.png')], answer: one.stdout.slice(0, -1) },
    ])
  })

  test('converses from a pipe: history is kept, a language model alone needs no encoder', async () => {
    const talk = await call(['chat', '--llm', world.llm, '--json', ...common], { input: 'Hi\n\nWhat is this?\n' })
    expect(talk.code).toBe(0)
    const [first, second] = talk.records()
    expect([first?.question, second?.question]).toEqual(['Hi', 'What is this?'])
    // The second answer depends on the first exchange: asked alone, the model answers otherwise or the prompt was not longer.
    const alone = await call(['chat', 'What is this?', '--llm', world.llm, '--json', ...common])
    expect(alone.records()[0]?.answer).not.toBe(second?.answer)
  })

  test.each<[string, () => readonly string[], number, string]>([
    [
      'a picture for a language model alone',
      () => ['Hi', '--llm', world.llm, '--image', join(world.pictures, 'red.png')],
      2,
      'CLI_CHAT_IMAGE',
    ],
    ['a picture that is missing', () => ['Hi', '--model', model(), '--image', world.path('gone.png')], 2, 'FILE_MISSING'],
    ['a picture that is none', () => ['Hi', '--model', model(), '--image', world.runFile], 3, 'IMAGE_NOT_IMAGE'],
    ['a folder that is no model', () => ['Hi', '--model', world.pictures], 2, 'FILE_MISSING'],
    ['options that make no sense', () => ['Hi', '--model', model(), '--temperature', '-1'], 2, 'CONFIG_VALUE'],
  ])('refuses %s', async (_, argv, exit, code) => {
    const refused = await call(['chat', ...argv()])
    expect([refused.code, refused.stderr.split(':')[0], refused.stdout]).toEqual([exit, code, ''])
    expect(refused.stderr.trimEnd().split('\n')).toHaveLength(1)
  })

  test('a projector of another pair: the differences, and exit 2', async () => {
    const other = world.path('other-llm')
    await mkdir(other)
    for (const name of await readdir(world.llm)) await copyFile(join(world.llm, name), join(other, name))
    const config = JSON.parse(await readFile(join(other, 'config.json'), 'utf8'))
    await writeFile(join(other, 'config.json'), JSON.stringify({ ...config, rope_theta: 20_000 }))
    const refused = await call(['chat', 'Hi', '--model', model(), '--llm', other])
    expect([refused.code, refused.stderr]).toEqual([2, expect.stringMatching(/^MODEL_MISMATCH: .*trained with llm .*given other-llm/)])
  })

  test('a truncated projector file is a corrupt artefact', async () => {
    const copy = world.path('runs', 'torn')
    await mkdir(copy)
    await copyFile(join(model(), 'modalign.json'), join(copy, 'modalign.json'))
    const manifest = JSON.parse(await readFile(join(model(), 'modalign.json'), 'utf8'))
    manifest.llm.path = world.llm
    manifest.image.encoder.recipe.model = world.encoder
    await writeFile(join(copy, 'modalign.json'), JSON.stringify(manifest))
    await writeFile(join(copy, 'projector.safetensors'), (await readFile(join(model(), 'projector.safetensors'))).subarray(0, 200))
    const refused = await call(['chat', 'Hi', '--model', copy])
    expect([refused.code, refused.stderr]).toEqual([5, expect.stringMatching(/^SAFETENSORS_/)])
  })
})

describe('caption', () => {
  const common = () => ['--model', world.path('runs', 'first', 'model'), '--device', 'cpu', '--threads', '1', '--max-new-tokens', '4']

  test('a folder with bad pictures: a row an item; more bad ones than allowed are exit 1; run again nothing changes', async () => {
    const folder = world.path('mixed')
    await mkdir(folder)
    for (const name of ['red.png', 'green.png', 'blue.png']) await copyFile(join(world.pictures, name), join(folder, name))
    await writeFile(join(folder, 'empty.jpg'), '')
    await writeFile(join(folder, 'cut.png'), (await readFile(join(world.pictures, 'red.png'))).subarray(0, 60))
    const output = world.path('captions.jsonl')
    const argv = ['caption', folder, '--output', output, '--batch-size', '2', ...common()]
    const first = await call([...argv, '--json'])
    expect(first.code).toBe(1)
    expect(first.records().at(-1)).toMatchObject({
      type: 'summary',
      status: 'finished',
      total: 5,
      captioned: 3,
      bad: 2,
      resumed: 0,
      byCode: { IMAGE_EMPTY: 1 },
    })
    const rows = await jsonLines(output)
    expect(rows.map(({ id, caption, error }) => [id, caption === null, error === null])).toEqual([
      ['blue.png', false, true],
      ['cut.png', true, false],
      ['empty.jpg', true, false],
      ['green.png', false, true],
      ['red.png', false, true],
    ])
    // Rows do not say where on this machine the pictures lay.
    expect(JSON.stringify(rows)).not.toContain(world.folder)

    // In other batches the captions are the same, and what is there is not done again.
    const again = await call(
      [...argv, '--max-bad', '40%', '--batch-size', '3'].filter(
        (word, i, all) => !(word === '--batch-size' && all.indexOf(word) === i) && !(word === '2' && all[i - 1] === '--batch-size'),
      ),
    )
    expect([again.code, again.stderr]).toEqual([0, expect.stringContaining('5 rows were there already')])
    expect(await jsonLines(output)).toEqual(rows)
    const other = world.path('one-by-one.csv')
    expect(
      (await call(['caption', folder, '--output', other, '--format', 'csv', '--batch-size', '1', '--max-bad', '2', ...common()])).code,
    ).toBe(0)
    for (const { id, caption } of rows)
      if (typeof caption === 'string')
        expect(await readFile(other, 'utf8')).toContain(
          `${id},${id},${/[",\r\n]/.test(caption) ? JSON.stringify(caption).slice(0, 2) : caption}`,
        )

    // Another question is another job.
    const changed = await call([...argv, '--prompt', 'What colour?'])
    expect([changed.code, changed.stderr]).toEqual([2, expect.stringMatching(/^JOB_SPEC_CHANGED: .*prompt/m)])
  })

  test('--on-bad fail ends with the exit code of the bad item', async () => {
    const folder = world.path('failing')
    await mkdir(folder)
    await writeFile(join(folder, 'a.png'), 'no picture')
    const failed = await call(['caption', folder, '--output', world.path('failing.jsonl'), '--on-bad', 'fail', ...common()])
    expect([failed.code, failed.stderr]).toEqual([3, expect.stringMatching(/^IMAGE_NOT_IMAGE: a\.png/m)])
  })

  test('an interrupt finishes the batch, says how to go on, and the next start goes on there', async () => {
    const folder = world.path('many')
    await mkdir(folder)
    for (let i = 0; i < 12; i++) await copyFile(join(world.pictures, 'blue.png'), join(folder, `${String(i).padStart(2, '0')}.png`))
    const output = world.path('many.jsonl')
    const argv = ['caption', folder, '--output', output, '--batch-size', '1', ...common()]
    let sent = false
    const stopped = await call(argv, {
      onError(text, signal) {
        if (!sent && text.includes('caption: 1/12')) {
          sent = true
          signal('SIGTERM')
        }
      },
    })
    expect(stopped.code).toBe(143)
    expect(stopped.stderr).toContain('Go on with: modalign caption')
    const before = await jsonLines(output)
    expect(before.length).toBeGreaterThanOrEqual(1)
    expect(before.length).toBeLessThan(12)
    const resumed = await call([...argv, '--json'])
    expect([resumed.code, resumed.records().at(-1)]).toEqual([0, expect.objectContaining({ captioned: 12, resumed: before.length })])
    expect((await jsonLines(output)).slice(0, before.length)).toEqual(before)
  })

  test.each<[string, () => readonly string[], number, string]>([
    ['an input that is missing', () => [world.path('gone'), '--output', world.path('x.jsonl')], 2, 'FILE_MISSING'],
    ['no output', () => [world.pictures], 2, 'CONFIG_MISSING'],
    ['an unknown format', () => [world.pictures, '--output', world.path('x.jsonl'), '--format', 'xml'], 2, 'CONFIG_VALUE'],
  ])('refuses %s', async (_, argv, exit, code) => {
    const refused = await call(['caption', ...argv(), ...common()])
    expect([refused.code, refused.stderr.split('\n').find((line) => line.startsWith(code)) === undefined]).toEqual([exit, false])
  })
})

describe('data', () => {
  test('validate: a full report, exit 3 where there are problems', async () => {
    const good = await call(['data', 'validate', world.records, '--json'])
    expect([good.code, good.records()]).toEqual([
      0,
      [expect.objectContaining({ type: 'report', records: 4, good: 4, problemCount: 0, files: 4 })],
    ])
    const path = world.path('validate.json')
    await writeFile(path, JSON.stringify([recordOf('red'), recordOf('blue', 'pictures/gone.png'), { conversations: 5 }]))
    const bad = await call(['data', 'validate', path])
    expect(bad.code).toBe(3)
    expect(bad.stdout).toMatch(/FILE_MISSING: .*record 1/)
    expect(bad.stdout).toMatch(/DATASET_CONVERSATIONS: .*record 2/)
    expect(bad.stdout).toContain('3 records (1 good')
    expect((await call(['data', 'validate', world.path('gone.json')])).code).toBe(2)
  })

  test('preview: the learned spans are marked, pictures take as many tokens as the model says', async () => {
    const preview = await call(['data', 'preview', world.records, '--model', world.path('runs', 'first', 'model'), '--limit', '2'])
    expect([preview.code, preview.stderr]).toEqual([0, ''])
    expect(preview.stdout.match(/⟨image 1: 4 tokens⟩/g)).toHaveLength(2)
    expect(preview.stdout).toContain('⟦red paint<|im_end|>⟧')
    expect(preview.stdout).not.toContain('blue paint')
    const withoutModel = await call(['data', 'preview', world.records, '--llm', world.llm, '--limit', '1', '--json'])
    expect(withoutModel.stderr).toContain('a picture counts as 1 token')
    expect(withoutModel.records()[0]).toMatchObject({ type: 'sample', id: 'red', media: 1, record: 0 })
  })

  test('preview: with a chosen template, as in chat and tune', async () => {
    const preview = (...template: string[]) => call(['data', 'preview', world.records, '--llm', world.llm, '--limit', '1', ...template])
    const named = await preview('--template', 'pure')
    expect(named.code).toBe(0)
    expect(named.stdout).toMatch(/In: [\s\S]*Out: ⟦red paint/)
    const file = world.path('shout.jinja')
    await writeFile(file, '{% for message in messages %}{{ message.role | upper }}! {{ message.content }}{{ eos_token }}{% endfor %}')
    const written = await preview('--template', file)
    expect(written.stdout).toMatch(/USER! [\s\S]*ASSISTANT! ⟦red paint/)
    const unknown = await preview('--template', 'vicunna')
    expect(unknown.stderr).toContain('vicuna')
    expect(unknown.code).not.toBe(0)
  })
})

test('doctor tries the devices and says which one auto takes', async () => {
  const doctor = await call(['doctor', '--json'])
  expect(doctor.code).toBe(0)
  const [diagnosis] = doctor.records()
  expect(diagnosis).toMatchObject({ type: 'diagnosis', auto: expect.any(String), node: { works: true } })
  expect(diagnosis?.devices).toContainEqual(expect.objectContaining({ device: 'wasm', works: true }))
})

describe('inspect', () => {
  test.each<[string, () => string, object]>([
    [
      'an ONNX file',
      () => world.encoder,
      {
        kind: 'onnx',
        opsets: { '': 21 },
        parameters: 288,
        operators: [
          { operator: 'Conv', count: 1 },
          { operator: 'GlobalAveragePool', count: 1 },
        ],
      },
    ],
    ['a safetensors file', () => join(world.llm, 'model.safetensors'), { kind: 'safetensors', metadata: { format: 'pt' } }],
    ['a tuned model', () => world.path('runs', 'first', 'model'), { kind: 'modalign', parameters: 6 * 32 + 32 + 32 * 32 + 32 }],
    ['a language model', () => world.llm, { kind: 'language-model', chatTemplate: true, tokenizer: true, dtypes: { float32: 20 } }],
  ])('%s', async (_, path, expected) => {
    const found = await call(['inspect', path(), '--json'])
    expect([found.code, found.records()]).toEqual([0, [expect.objectContaining(expected)]])
    expect((await call(['inspect', path(), '--tensors'])).stdout).toMatch(/float32 +\[/)
  })

  test('a GGUF file, whatever its name', async () => {
    const file = world.path('model.bin')
    const tensors = [{ name: 'token_embd.weight', sizes: [4n, 3n], type: 0 }]
    const entries = [
      entry.string('general.architecture', 'llama'),
      entry.uint32('llama.block_count', 2),
      entry.strings('tokenizer.ggml.tokens', ['a', 'b', 'c']),
      entry.string('tokenizer.chat_template', '{{ messages }}'.repeat(20)),
    ]
    await writeFile(file, ggufBytes({ entries, tensors }))
    const found = await call(['inspect', file, '--json'])
    expect(found.records()).toEqual([
      expect.objectContaining({
        kind: 'gguf',
        metadata: { 'general.architecture': 'llama', 'llama.block_count': 2 },
        parameters: 12,
        dtypes: { F32: 1 },
        tokenizer: true,
        chatTemplate: true,
      }),
    ])
    expect((await call(['inspect', file, '--tensors'])).stdout).toMatch(/token_embd\.weight +F32 +\[3, 4\]/)
  })

  test('what is none of these', async () => {
    expect((await call(['inspect', world.pictures])).code).toBe(3)
    const refused = await call(['inspect', world.runFile])
    expect([refused.code, refused.stderr.split('_')[0]]).toEqual([5, 'ONNX'])
  })
})
