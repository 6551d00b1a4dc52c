import { z } from 'zod'
import { excerpt } from '../../errors.ts'
import type { JsonValue } from '../../io/json.ts'
import { modalities } from '../../model/branches.ts'
import type { Modality } from '../../model/contracts.ts'
import type { ModelManifest } from '../../model/saved-model.ts'
import { pathSchema } from '../catalogues.ts'
import { defineCommand } from '../command.ts'
import { exitCodes } from '../exit-codes.ts'
import { type Inspection, inspectModel, type TensorRow } from '../inspection.ts'
import { bytesText, countText, table } from '../table.ts'
import type { Terminal } from '../terminal.ts'

export const inspectCommand = defineCommand({
  settings: z.strictObject({ path: pathSchema, tensors: z.boolean().default(false) }),
  help: { tensors: 'list every tensor with its shape' },
  positionals: [
    {
      name: 'PATH',
      setting: 'path',
      help: 'a GGUF, ONNX or safetensors file, a folder that `modalign tune` wrote, or a Hugging Face language model',
    },
  ],
  async run({ path, tensors }, { terminal }) {
    const found = await inspectModel(path)
    const { tensors: rows, ...rest } = found
    terminal.record({ type: 'inspection', ...rest, ...(tensors && { tensors: rows }) })
    for (const line of table(summaryOf(found))) terminal.line(line)
    if (tensors) listTensors(rows, terminal)
    return exitCodes.ok
  },
})

/** Names in a file are a stranger's words: control characters are escaped. */
function listTensors(rows: readonly TensorRow[], terminal: Terminal): void {
  terminal.line()
  const cells = rows.map(({ name, dtype, dims, origin }) => [
    excerpt(name),
    dtype,
    shapeText(dims),
    ...(origin === undefined ? [] : [excerpt(origin)]),
  ])
  for (const line of table(cells)) {
    if (terminal.closed) return
    terminal.line(line)
  }
}

function shapeText(dims: readonly (number | string)[] | undefined): string {
  return dims === undefined ? '[...]' : `[${dims.map((size) => (size === '' ? '?' : excerpt(String(size)))).join(', ')}]`
}

function valueText({ name, dtype, dims }: TensorRow): string {
  return `${excerpt(name)} ${dtype} ${shapeText(dims)}`
}

function summaryOf(found: Inspection): readonly (readonly string[])[] {
  switch (found.kind) {
    case 'onnx':
      return [
        ['ONNX model', found.file],
        ['producer', `${excerpt(found.producer)}, IR version ${found.irVersion}`],
        [
          'opsets',
          Object.entries(found.opsets)
            .map(([domain, version]) => `${domain === '' ? 'standard' : excerpt(domain)} ${version}`)
            .join(', '),
        ],
        ...found.inputs.map((input) => ['input', valueText(input)]),
        ...found.outputs.map((output) => ['output', valueText(output)]),
        ['parameters', countText(found.parameters)],
        ['operators', found.operators.map(({ operator, count }) => `${count} ${excerpt(operator)}`).join(', ')],
      ]
    case 'safetensors':
      return [
        ['safetensors', `${found.file}, ${bytesText(found.bytes)}`],
        ['tensors', `${found.tensors.length}, ${countText(found.parameters)} parameters`],
        ...Object.entries(found.metadata).map(([key, value]) => ['metadata', `${excerpt(key)}: ${excerpt(value)}`]),
      ]
    case 'gguf':
      return [
        ['GGUF file', `${found.file}, ${bytesText(found.bytes)}`],
        ...Object.entries(found.metadata).map(([key, value]) => [excerpt(key), jsonText(value)]),
        ['parameters', countText(found.parameters)],
        ['tensors', dtypesText(found.dtypes)],
        ['tokenizer', found.tokenizer ? 'yes' : 'no'],
        ['chat template', found.chatTemplate ? 'yes' : noTemplate],
      ]
    case 'modalign': {
      const { llm } = found.manifest
      return [
        ['tuned model', `${found.folder}, ${countText(found.parameters)} parameters`],
        ...modalities.flatMap((modality) => {
          const saved = found.manifest[modality]
          return saved === undefined ? [] : branchRows(modality, saved)
        }),
        [
          'language model',
          `${excerpt(llm.label)}, hidden size ${llm.hiddenSize}, identity ${llm.identity.slice(0, 12)}, ${excerpt(llm.path ?? 'no path')}`,
        ],
      ]
    }
    case 'language-model':
      return [
        ['language model', found.folder],
        ...Object.entries(found.config).map(([key, value]) => [key, jsonText(value)]),
        ['parameters', countText(found.parameters)],
        [
          'weights',
          `${bytesText(found.bytes)} in ${found.files.length} file${found.files.length === 1 ? '' : 's'}: ${dtypesText(found.dtypes)}`,
        ],
        ['tokenizer', found.tokenizer ? 'yes' : 'no: tokenizer.json is missing'],
        ['chat template', found.chatTemplate ? 'yes' : noTemplate],
      ]
  }
}

const noTemplate = 'no: a base model? use its instruction-tuned version, or say --template where you chat with or tune it'

function dtypesText(dtypes: Readonly<Record<string, number>>): string {
  return Object.entries(dtypes)
    .map(([dtype, count]) => `${count} ${dtype}`)
    .join(', ')
}

function jsonText(value: JsonValue): string {
  return excerpt(JSON.stringify(value))
}

function branchRows(
  modality: Modality,
  { encoder, projector }: NonNullable<ModelManifest[Modality]>,
): readonly (readonly [string, string])[] {
  const tokens = projector.tokens === undefined ? 'tokens by the size of the medium' : `${projector.tokens} tokens for each ${modality}`
  return [
    [`${modality} projector`, `${excerpt(projector.name)} ${jsonText(projector.options)}, ${tokens}`],
    [
      `${modality} encoder`,
      `${excerpt(encoder.label)}, ${encoder.tokens ?? 'features'}${encoder.tokens === undefined ? '' : ' features'} of width ${encoder.width}, fingerprint ${encoder.fingerprint.slice(0, 12)}`,
    ],
    [
      `${modality} recipe`,
      encoder.recipe === undefined
        ? 'none: the encoder must be given when the model is loaded'
        : `${excerpt(encoder.recipe.family)} ${excerpt(encoder.recipe.model ?? '')}`,
    ],
  ]
}
