/** A trained projector on disk: `projector.safetensors`, `adapters/` of the language model where it has some, and `modalign.json`, which says what it was trained between and refuses anything else. */
import { readFile } from 'node:fs/promises'
import { isAbsolute, join, relative, resolve } from 'node:path'
import { z } from 'zod'
import { excerpt, ModalignError } from '../errors.ts'
import type { Trainables } from '../graph/parameters.ts'
import { isFloating } from '../graph/tensor.ts'
import { writeFileAtomic } from '../io/atomic.ts'
import { fileError } from '../io/file-error.ts'
import { nodeFs } from '../io/fs-ops.ts'
import { loadAdapters, saveAdapters } from '../llm/adapters/adapter-files.ts'
import { adapterSchema } from '../llm/adapters/settings.ts'
import { type LanguageModel, type LanguageModelOptions, loadLanguageModel } from '../llm/language-model.ts'
import { float32Tensor } from '../tensors.ts'
import { toFloat32 } from '../weights/float16.ts'
import { openSafetensors, writeSafetensors } from '../weights/safetensors.ts'
import type { Encoder, JsonObject, Projector, ProjectorDefinition } from './contracts.ts'
import type { MediaReader } from './media-reader.ts'
import { compose, type MultimodalModel } from './multimodal-model.ts'
import { gridTokens } from './token-grid.ts'

const manifestName = 'modalign.json'
const weightsName = 'projector.safetensors'
const adaptersName = 'adapters'
const formatVersion = 1

const jsonObject: z.ZodType<JsonObject> = z.record(z.string(), z.json())

const manifestSchema = z.strictObject({
  format: z.literal(formatVersion),
  llm: z.strictObject({
    label: z.string(),
    identity: z.string(),
    hiddenSize: z.int().positive(),
    /** Relative to the manifest's folder, or absolute. */
    path: z.string().optional(),
    /** What of it was trained; the values lie in `adapters/`. */
    adapters: adapterSchema.optional(),
  }),
  image: z.strictObject({
    encoder: z.strictObject({
      label: z.string(),
      fingerprint: z.string(),
      width: z.int().positive(),
      tokens: z.int().positive(),
      recipe: z.strictObject({ family: z.string(), model: z.string().optional(), options: jsonObject }).optional(),
    }),
    projector: z.strictObject({ name: z.string(), options: jsonObject, tokens: z.int().positive() }),
  }),
})
export type ModelManifest = z.infer<typeof manifestSchema>

/**
 * Writes a model's projector and what it belongs to. The encoder's and language model's own files are not copied: the manifest names them.
 *
 * @throws what writing files throws; a manifest is written last, so that a folder with one is complete.
 * @example
 * await saveModel(model, 'runs/first/model')
 */
export async function saveModel(model: MultimodalModel, folder: string): Promise<void> {
  const target = resolve(folder)
  await nodeFs.mkdir(target)
  const { adapters } = model.llm
  const tensors = Object.entries(model.parameters)
    .filter(([name]) => adapters === undefined || !Object.hasOwn(adapters.parameters, name))
    .map(([name, { dims, data }]) => ({ name, value: float32Tensor(data, dims) }))
  await writeSafetensors(join(target, weightsName), tensors, { format: 'modalign' })
  if (adapters !== undefined) await saveAdapters(model.llm, join(target, adaptersName))
  await writeFileAtomic(join(target, manifestName), `${JSON.stringify(manifestOf(model, target), undefined, 2)}\n`)
}

function manifestOf({ llm, image: { encoder, projector }, grid, imageTokens }: MultimodalModel, folder: string): ModelManifest {
  const { recipe } = encoder
  return {
    format: formatVersion,
    llm: {
      label: llm.label,
      identity: llm.identity,
      hiddenSize: llm.decoder.hiddenSize,
      path: portable(folder, llm.folder),
      ...(llm.adapters && { adapters: llm.adapters.settings }),
    },
    image: {
      encoder: {
        label: encoder.label,
        fingerprint: encoder.fingerprint,
        width: encoder.width,
        tokens: gridTokens(grid),
        ...(recipe && {
          recipe: {
            family: recipe.family,
            options: json(recipe.options),
            ...(recipe.model !== undefined && { model: portable(folder, recipe.model) }),
          },
        }),
      },
      projector: { name: projector.definition.name, options: json(projector.options), tokens: imageTokens },
    },
  }
}

/** What a saved projector may be loaded with: exact-key maps. */
export interface Catalogues {
  readonly encoders: Readonly<Record<string, (options: JsonObject & { readonly model?: string }) => Promise<Encoder<'image'>>>>
  readonly projectors: Readonly<Record<string, ProjectorDefinition>>
}
export interface LoadOptions extends LanguageModelOptions {
  /** In place of the language model that the manifest names; it must be the same one, without adapters. */
  readonly llm?: LanguageModel
  /** In place of the encoder that the manifest names; it must be the same one. */
  readonly encoder?: Encoder<'image'>
  readonly reader?: MediaReader
}

/**
 * Loads a saved model with the encoder and language model that its manifest names.
 *
 * @throws MODEL_MISSING, MODEL_MANIFEST, MODEL_PROJECTOR_UNKNOWN, MODEL_ENCODER_UNKNOWN, MODEL_MISMATCH with every difference, and what loading the parts throws.
 * @example
 * await using model = await loadModel('runs/first/model', { encoders, projectors })
 */
export async function loadModel(folder: string, catalogues: Catalogues, options: LoadOptions = {}): Promise<MultimodalModel> {
  const directory = resolve(folder)
  const file = join(directory, manifestName)
  const manifest = await readManifest(file)
  const projector = namedProjector(manifest, catalogues, file)
  const llm = options.llm ?? (await loadLanguageModel(namedPath(directory, manifest.llm.path, 'llm', file), options))
  const encoder = options.encoder ?? (await namedEncoder(manifest, catalogues, directory, file))
  try {
    assertSamePair(manifest, { llm, encoder }, file)
    const { adapters } = manifest.llm
    const adapted = adapters === undefined ? llm : await loadAdapters(llm, adapters, join(directory, adaptersName))
    const model = await compose({ llm: adapted, image: { encoder, projector }, ...(options.reader && { reader: options.reader }) })
    const weights = join(directory, weightsName)
    setParameters(model, { ...adapted.adapters?.parameters, ...(await readParameters(weights)) }, weights)
    return model
  } catch (error) {
    // One that was given stays with whoever gave it.
    if (options.encoder === undefined) await encoder.dispose()
    throw error
  }
}

function setParameters(model: MultimodalModel, parameters: Trainables, file: string): void {
  try {
    model.setParameters(parameters)
  } catch (error) {
    throw error instanceof ModalignError ? new ModalignError({ ...error.details, file, cause: error }) : error
  }
}

export async function readManifest(file: string): Promise<ModelManifest> {
  const text = await readFile(file, 'utf8').catch((error: unknown) => {
    throw fileError(error, file, 'a folder that `tune` wrote, with modalign.json and projector.safetensors')
  })
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw new ModalignError({
      code: 'MODEL_MANIFEST',
      file,
      got: error instanceof Error ? error.message : 'no JSON',
      expected: 'JSON',
      cause: error,
    })
  }
  const parsed = manifestSchema.safeParse(value)
  if (parsed.success) return parsed.data
  const [issue] = parsed.error.issues
  throw new ModalignError({
    code: 'MODEL_MANIFEST',
    file,
    field: `/${issue?.path.join('/') ?? ''}`,
    expected: issue?.message,
    hint: 'the file was written by another version, or changed by hand',
  })
}

/** The values of a projector file. @throws MODEL_PARAMETERS for values that are no finite floating point numbers, and what `openSafetensors` throws */
export async function readParameters(file: string): Promise<Trainables> {
  const weights = await openSafetensors(file)
  const entries = await Promise.all(
    [...weights.tensors].map(async ([name, { shape, dtype }]) => {
      const refuse = (got: string): ModalignError =>
        new ModalignError({ code: 'MODEL_PARAMETERS', file, field: name, got, expected: 'finite floating point numbers' })
      if (!isFloating(dtype)) throw refuse(dtype)
      const data = toFloat32(await weights.read(name))
      const place = data.findIndex((value) => !Number.isFinite(value))
      if (place >= 0) throw refuse(`${data[place]} at element ${place}`)
      return [name, { dims: shape, data }] as const
    }),
  )
  return Object.fromEntries(entries)
}

/** A projector learns to speak to one language model about one encoder's features: elsewhere its output means nothing, even where the widths agree. */
function assertSamePair(
  manifest: ModelManifest,
  { llm, encoder }: { readonly llm: LanguageModel; readonly encoder: Encoder<'image'> },
  file: string,
): void {
  const saved = manifest.image.encoder
  const differences = [
    difference(
      'language model',
      `${manifest.llm.label} (${short(manifest.llm.identity)})`,
      `${llm.label} (${short(llm.identity)})`,
      manifest.llm.identity === llm.identity,
    ),
    difference('hidden size', manifest.llm.hiddenSize, llm.decoder.hiddenSize),
    difference(
      'encoder',
      `${saved.label} (${short(saved.fingerprint)})`,
      `${encoder.label} (${short(encoder.fingerprint)})`,
      saved.fingerprint === encoder.fingerprint,
    ),
    difference('feature width', saved.width, encoder.width),
    difference('features of a picture', saved.tokens, gridTokens(encoder.grid({}))),
  ].filter((text) => text !== undefined)
  if (differences.length > 0) {
    throw new ModalignError({
      code: 'MODEL_MISMATCH',
      file,
      got: 'another pair',
      expected: `the encoder and language model that the projector was trained between: ${differences.join('; ')}`,
      hint: 'name those, or tune a new projector for this pair',
    })
  }
}

function difference(what: string, saved: string | number, given: string | number, same = saved === given): string | undefined {
  return same ? undefined : `${what}: trained with ${excerpt(`${saved}`)}, given ${excerpt(`${given}`)}`
}

function namedProjector(manifest: ModelManifest, { projectors }: Catalogues, file: string): Projector {
  const { name, options } = manifest.image.projector
  const definition = Object.hasOwn(projectors, name) ? projectors[name] : undefined
  if (definition === undefined) {
    throw new ModalignError({
      code: 'MODEL_PROJECTOR_UNKNOWN',
      file,
      field: '/image/projector/name',
      got: name,
      expected: `one of ${Object.keys(projectors).join(', ')}`,
      hint: 'pass your own projector in `projectors`',
    })
  }
  const parsed = definition.options.safeParse(options)
  if (!parsed.success)
    throw new ModalignError({ code: 'MODEL_MANIFEST', file, field: '/image/projector/options', expected: parsed.error.issues[0]?.message })
  return { definition, options: parsed.data }
}

async function namedEncoder(manifest: ModelManifest, { encoders }: Catalogues, directory: string, file: string): Promise<Encoder<'image'>> {
  const { recipe } = manifest.image.encoder
  const make = recipe !== undefined && Object.hasOwn(encoders, recipe.family) ? encoders[recipe.family] : undefined
  if (recipe === undefined || make === undefined) {
    throw new ModalignError({
      code: 'MODEL_ENCODER_UNKNOWN',
      file,
      field: '/image/encoder/recipe',
      got: recipe?.family ?? 'none',
      expected: `one of ${Object.keys(encoders).join(', ')}`,
      hint: 'pass the encoder as `encoder`',
    })
  }
  return make({ ...recipe.options, ...(recipe.model !== undefined && { model: namedPath(directory, recipe.model, 'encoder', file) }) })
}

function namedPath(directory: string, path: string | undefined, what: string, file: string): string {
  if (path === undefined)
    throw new ModalignError({ code: 'MODEL_MANIFEST', file, field: `/${what}`, expected: 'a path', hint: `name the ${what}` })
  return isAbsolute(path) ? path : resolve(directory, path)
}

/** Relative, so that a folder that holds everything can be moved; on another drive there is no such path. */
function portable(folder: string, path: string): string {
  return relative(folder, resolve(path)).replaceAll('\\', '/')
}

function json(value: unknown): JsonObject {
  return jsonObject.parse(value)
}

function short(hash: string): string {
  return hash.slice(0, 12)
}
