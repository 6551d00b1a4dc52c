/** Which model a command speaks with: a tuned one, a language model alone, or the embedded pair. */
import { z } from 'zod'
import { projectors } from '../../projectors/index.ts'
import { type LanguageModel, loadLanguageModel } from '../llm/language-model.ts'
import type { Modality, Turn } from '../model/contracts.ts'
import type { MediaReader } from '../model/media-reader.ts'
import type { ChatOptions, MultimodalModel } from '../model/multimodal-model.ts'
import { loadModel } from '../model/saved-model.ts'
import { devices, withoutUndefined } from '../runtime/session.ts'
import { renderPrompt } from '../text/label-spans.ts'
import { encoderCatalogue, pathSchema } from './catalogues.ts'
import { downloading } from './downloading.ts'
import { embeddedModel, embeddedNotice } from './embedded.ts'
import { modelNameSchema, templateHelp, templateSchema } from './path-schema.ts'
import type { Terminal } from './terminal.ts'
import { resolveReference, withModules } from './user-modules.ts'

/** Settings that every command with a model has. */
export const modelSettings = {
  model: pathSchema.optional(),
  llm: modelNameSchema.optional(),
  template: templateSchema.optional(),
  download: z.boolean().optional(),
  device: z.enum(['auto', ...devices]).optional(),
  threads: z.int().min(1).max(1024).optional(),
  module: z
    .array(
      z
        .string()
        .min(1)
        .meta({ resolve: (value: unknown, folder: string) => (typeof value === 'string' ? resolveReference(value, folder) : value) }),
    )
    .optional(),
} as const

export const modelHelp = {
  model: 'a folder that `modalign tune` wrote; default: the tiny demonstration pair',
  llm: "the language model's Hugging Face folder, or its name on the Hub; with --model: where the one that it names lies",
  template: templateHelp,
  download: 'fetch a language model that is named, and not in the Hugging Face cache, from the Hub',
  device: 'where to compute; default auto',
  threads: 'threads on the CPU',
  module: 'your own projector or encoder that the model was made with, as ./FILE.js#EXPORT',
} as const

const modelSchema = z.strictObject(modelSettings)
export type ModelSettings = z.output<typeof modelSchema>

/**
 * Loads the model that the settings name, the embedded pair where they name none.
 *
 * @throws what {@link loadModel} and loading modules throw, and `EMBEDDED_MISSING`
 */
export async function openModel(
  { model, llm: llmFolder, template, download, device, threads, module = [] }: ModelSettings,
  terminal: Terminal,
  reader?: MediaReader,
): Promise<MultimodalModel & { readonly llm: LanguageModel }> {
  const place = withoutUndefined({ device, threads, template })
  const folder = model ?? embeddedModel()
  if (model === undefined) terminal.note(embeddedNotice)
  const catalogues = await withModules({ encoders: encoderCatalogue(withoutUndefined({ device, threads })), projectors }, module)
  const llm = llmFolder === undefined ? undefined : await loadLanguageModel(llmFolder, { ...place, ...downloading(download, terminal) })
  return loadModel(folder, catalogues, { ...place, preload: true, ...(llm && { llm }), ...(reader && { reader }) })
}

/** Closes a model with the language model that was loaded for it. */
export async function closeModel(model: MultimodalModel): Promise<void> {
  await Promise.all([model.dispose(), model.llm.dispose()])
}

/** Who answers in a conversation. */
export interface Talker extends AsyncDisposable {
  readonly label: string
  /** What it sees or hears. */
  readonly modalities: readonly Modality[]
  answer(turns: readonly Turn[], options: ChatOptions): AsyncGenerator<string>
}

/**
 * A language model alone where only `llm` is named; else as {@link openModel}.
 *
 * @param stays for more than one question: opening may take longer where each token of an answer then takes less
 */
export async function openTalker(settings: ModelSettings, terminal: Terminal, stays: boolean): Promise<Talker> {
  if (settings.llm !== undefined && settings.model === undefined) {
    const { llm, template, download, device, threads } = settings
    return textTalker(
      await loadLanguageModel(llm, {
        ...withoutUndefined({ device, threads, template }),
        preload: true,
        ...(stays && { batchSize: 1 }),
        ...downloading(download, terminal),
      }),
    )
  }
  const model = await openModel(settings, terminal)
  return {
    label: [...model.modalities.map((modality) => model.branch(modality).encoder.label), model.llm.label].join(' and '),
    modalities: model.modalities,
    answer: (turns, options) => model.chat(turns, options),
    [Symbol.asyncDispose]: () => closeModel(model),
  }
}

function textTalker(llm: LanguageModel): Talker {
  return {
    label: llm.label,
    modalities: [],
    async *answer(turns, { root: _, signal, ...options }) {
      const { ids } = renderPrompt(turns, { tokenizer: llm.tokenizer, template: llm.template, mediaTokens: () => 1 })
      for await (const event of llm.generate([{ ids }], { ...options, ...(signal && { signal }) })) {
        if (event.text !== '') yield event.text
      }
    },
    [Symbol.asyncDispose]: () => llm.dispose(),
  }
}
