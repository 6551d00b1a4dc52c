import { join, resolve } from 'node:path'
import { z } from 'zod'
import { ModalignError, renderError } from '../../errors.ts'
import { readManifest, savedTemplate } from '../../model/saved-model.ts'
import { createChatTemplate } from '../../text/chat-template.ts'
import { labelSpans } from '../../text/label-spans.ts'
import { loadTokenizer, readTemplateFiles } from '../../text/model-folder.ts'
import { renderPreview } from '../../text/preview.ts'
import { chosenTemplate } from '../../text/template-choice.ts'
import { pathSchema } from '../catalogues.ts'
import { defineCommand } from '../command.ts'
import { datasetHelp, datasetSettings, openDataset } from '../dataset-settings.ts'
import { embeddedModel, embeddedNotice } from '../embedded.ts'
import { exitCodes } from '../exit-codes.ts'
import { templateHelp, templateSchema } from '../path-schema.ts'
import type { Terminal } from '../terminal.ts'

const settings = z.strictObject({
  ...datasetSettings,
  llm: pathSchema.optional(),
  model: pathSchema.optional(),
  template: templateSchema.optional(),
  imageTokens: z.int().min(1).optional(),
  limit: z.int().min(1).default(5),
  skip: z.int().min(0).default(0),
  maxLength: z.int().min(2).optional(),
  overflow: z.enum(['error', 'truncate']).optional(),
})

export const dataPreviewCommand = defineCommand({
  settings,
  help: {
    ...datasetHelp,
    llm: "the language model's Hugging Face folder; only its tokenizer and chat template are read",
    model: 'a folder that `modalign tune` wrote: its language model, and its number of tokens a picture',
    template: templateHelp,
    'image-tokens': 'tokens of one picture; default: what the model says, or 1',
    limit: 'how many records to show; default 5',
    skip: 'how many records to pass over first',
    'max-length': 'longest sample in tokens, as in tune',
    overflow: 'what becomes of a longer one, as in tune',
  },
  positionals: [{ name: 'PATH', setting: 'path', help: 'a JSON or JSONL file of records' }],
  async run({ limit, skip, maxLength, overflow, imageTokens, llm, model, template, ...dataset }, { terminal }) {
    const reader = await textReader({ llm, model, template, imageTokens }, terminal)
    const options = {
      ...reader,
      ...(maxLength !== undefined && { maxLength }),
      ...(overflow && { overflow }),
    }
    let seen = 0
    let bad = 0
    const refuse = (error: ModalignError): void => {
      if (seen++ < skip || seen > skip + limit) return
      bad++
      terminal.record({ type: 'problem', ...error.details })
      terminal.note(renderError(error.details))
    }
    for await (const sample of openDataset(dataset).samples({ onBad: refuse })) {
      if (seen >= skip + limit || terminal.closed) break
      if (seen++ < skip) continue
      try {
        const labelled = labelSpans(sample, options)
        const { ids, weights, targets, media } = labelled
        const { record } = sample.origin ?? {}
        terminal.record({
          type: 'sample',
          id: sample.id,
          record,
          tokens: ids.length,
          targets,
          media: media.length,
          ids: [...ids],
          weights: [...weights],
          text: renderPreview(labelled, reader),
        })
        terminal.line(
          terminal.paint('bold', `record ${record ?? seen - 1}, ${sample.id}: ${ids.length} tokens, ${targets} of them learned`),
        )
        terminal.line(renderPreview(labelled, { ...reader, ansi: terminal.colors() }))
        terminal.line()
      } catch (error) {
        if (!(error instanceof ModalignError)) throw error
        seen--
        refuse(error)
      }
    }
    return bad > 0 ? exitCodes.data : exitCodes.ok
  },
})

interface Named {
  readonly llm: string | undefined
  readonly model: string | undefined
  readonly template: string | undefined
  readonly imageTokens: number | undefined
}

/** Tokenizer, template and the tokens of a picture; no weights are read. */
async function textReader({ llm, model, template: choice, imageTokens }: Named, terminal: Terminal) {
  const named = model ?? (llm === undefined ? embeddedModel() : undefined)
  if (model === undefined && llm === undefined) terminal.note(embeddedNotice)
  const manifest = named === undefined ? undefined : await readManifest(join(named, 'modalign.json'))
  const folder = llm ?? (named === undefined || manifest?.llm.path === undefined ? undefined : resolve(named, manifest.llm.path))
  if (folder === undefined)
    throw new ModalignError({
      code: 'MODEL_MANIFEST',
      file: named,
      field: '/llm/path',
      got: 'nothing',
      expected: 'a path',
      hint: 'give --llm',
    })
  const tokens = imageTokens ?? manifest?.image?.projector.tokens
  if (tokens === undefined) terminal.note('a picture counts as 1 token here: --model DIR or --image-tokens says how many it really takes')
  const saved = manifest === undefined ? undefined : savedTemplate(manifest).template
  const [tokenizer, files, chosen] = await Promise.all([
    loadTokenizer(folder),
    readTemplateFiles(folder),
    // A model that was tuned with a chosen template keeps it.
    chosenTemplate(choice ?? saved),
  ])
  return { tokenizer, template: createChatTemplate({ ...files, ...chosen }), mediaTokens: () => tokens ?? 1 }
}
