/** A trained projector on disk: `projector.safetensors`, `adapters/` of the language model and `image-encoder/` where something of them was trained, and `modalign.json`, which says what it was trained between and refuses anything else. */
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
import { type Branch, checkedBranches, gridVaries, modalities } from './branches.ts'
import type { Encoder, JsonObject, Modality, Projector, ProjectorDefinition } from './contracts.ts'
import type { MediaReader } from './media-reader.ts'
import { compose, type MultimodalModel } from './multimodal-model.ts'
import { gridTokens } from './token-grid.ts'
import { loadTrainedEncoder, saveTrainedEncoder } from './trained-encoder.ts'

const manifestName = 'modalign.json'
/** One file for each modality's projector. */
export const projectorFile = (modality: Modality): string =>
  modality === 'image' ? 'projector.safetensors' : `${modality}-projector.safetensors`
const adaptersName = 'adapters'
/** What is trained of an encoder. */
const encoderFolder = (modality: Modality): string => `${modality}-encoder`
const formatVersion = 1

const jsonObject: z.ZodType<JsonObject> = z.record(z.string(), z.json())

const branchSchema = z.strictObject({
  encoder: z.strictObject({
    label: z.string(),
    fingerprint: z.string(),
    width: z.int().positive(),
    /** Features of a medium; absent where that depends on the medium. */
    tokens: z.int().positive().optional(),
    recipe: z.strictObject({ family: z.string(), model: z.string().optional(), options: jsonObject }).optional(),
    /** What of it was trained; the values lie in `<modality>-encoder/`. */
    adapters: adapterSchema.optional(),
  }),
  projector: z.strictObject({ name: z.string(), options: jsonObject, tokens: z.int().positive().optional() }),
})
type ManifestBranch = z.infer<typeof branchSchema>

const manifestSchema = z.strictObject({
  format: z.literal(formatVersion),
  llm: z.strictObject({
    label: z.string(),
    identity: z.string(),
    hiddenSize: z.int().positive(),
    /** Relative to the manifest's folder, or absolute. */
    path: z.string().optional(),
    /** The chat template that was chosen for it, in Jinja; absent: its own. */
    template: z.string().optional(),
    /** What of it was trained; the values lie in `adapters/`. */
    adapters: adapterSchema.optional(),
  }),
  image: branchSchema.optional(),
  audio: branchSchema.optional(),
  video: branchSchema.optional(),
})
export type ModelManifest = z.infer<typeof manifestSchema>

/**
 * Writes a model's projectors, one file each, and what they belong to. The encoders' and the language model's own files are not copied: the manifest names them.
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
    .filter(([name]) => Object.hasOwn(model.projectorParameters, name))
    .map(([name, { dims, data }]) => ({ name, value: float32Tensor(data, dims) }))
  for (const modality of model.modalities) {
    const own = tensors.filter(({ name }) => name.startsWith(`${modality}.`))
    await writeSafetensors(join(target, projectorFile(modality)), own, { format: 'modalign' })
    const { encoder } = model.branch(modality)
    if (encoder.trained !== undefined) await saveTrainedEncoder(encoder, join(target, encoderFolder(modality)))
  }
  if (adapters !== undefined) await saveAdapters(model.llm, join(target, adaptersName))
  await writeFileAtomic(join(target, manifestName), `${JSON.stringify(manifestOf(model, target), undefined, 2)}\n`)
}

function manifestOf(model: MultimodalModel, folder: string): ModelManifest {
  const { llm } = model
  return {
    format: formatVersion,
    llm: {
      label: llm.label,
      identity: llm.identity,
      hiddenSize: llm.decoder.hiddenSize,
      path: portable(folder, llm.folder),
      ...(llm.templateChosen === true && { template: llm.template.source }),
      ...(llm.adapters && { adapters: llm.adapters.settings }),
    },
    ...Object.fromEntries(model.modalities.map((modality) => [modality, manifestBranch(model, modality, folder)])),
  }
}

function manifestBranch(model: MultimodalModel, modality: Modality, folder: string): ManifestBranch {
  const { encoder, projector } = model.branch(modality)
  const { recipe } = encoder
  const varies = gridVaries(encoder)
  return {
    encoder: {
      label: encoder.label,
      // Of the encoder as it was published: what is trained lies here.
      fingerprint: (encoder.trained?.base ?? encoder).fingerprint,
      width: encoder.width,
      ...(!varies && { tokens: gridTokens(encoder.grid({})) }),
      ...(recipe && {
        recipe: {
          family: recipe.family,
          options: json(recipe.options),
          ...(recipe.model !== undefined && { model: portable(folder, recipe.model) }),
        },
      }),
      ...(encoder.trained && { adapters: encoder.trained.settings }),
    },
    projector: {
      name: projector.definition.name,
      options: json(projector.options),
      ...(!varies && { tokens: model.plannedTokens({ type: modality }) }),
    },
  }
}

/** What a saved projector may be loaded with: exact-key maps. */
export interface Catalogues {
  readonly encoders: Readonly<Record<string, (options: JsonObject & { readonly model?: string }) => Promise<Encoder>>>
  readonly projectors: Readonly<Record<string, ProjectorDefinition>>
}
export interface LoadOptions extends LanguageModelOptions {
  /** In place of the language model that the manifest names; it must be the same one, without adapters. */
  readonly llm?: LanguageModel
  /** In place of the encoders that the manifest names; each must be the same one, as it was published. */
  readonly encoders?: { readonly [M in Modality]?: Encoder<M> }
  readonly reader?: MediaReader
}

/** How the model was written to as it was tuned, where that is not as its language model has it. */
export const savedTemplate = ({ llm }: Pick<ModelManifest, 'llm'>): Pick<LanguageModelOptions, 'template'> =>
  llm.template === undefined ? {} : { template: { jinja: llm.template } }

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
  const known = modalities.filter((modality) => manifest[modality] !== undefined)
  const named = known.map((modality) => ({ modality, saved: savedBranch(manifest, modality, file) }))
  const projectors = named.map(({ modality, saved }) => namedProjector(modality, saved, catalogues, file))
  const { adapters } = manifest.llm
  const llm =
    options.llm ??
    (await loadLanguageModel(namedPath(directory, manifest.llm.path, 'llm', file), {
      ...savedTemplate(manifest),
      ...options,
      // With adapters another session generates.
      preload: options.preload === true && adapters === undefined,
    }))
  // Those that were given stay with whoever gave them.
  const opened: Encoder[] = []
  try {
    const branches: Partial<Record<Modality, Branch>> = {}
    for (const [index, { modality, saved }] of named.entries()) {
      const given: Encoder | undefined = options.encoders?.[modality]
      const encoder = given ?? (await namedEncoder(modality, saved, catalogues, directory, file))
      if (given === undefined) opened.push(encoder)
      const projector = projectors[index]
      if (projector !== undefined) branches[modality] = { encoder, projector }
    }
    assertSameParts(manifest, llm, branches, file)
    for (const { modality, saved } of named) await adaptBranch(branches, modality, saved, directory)
    const adapted = adapters === undefined ? llm : await loadAdapters(llm, adapters, join(directory, adaptersName))
    const model = await compose({ ...checkedBranches(branches), llm: adapted, ...(options.reader && { reader: options.reader }) })
    const files = known.map((modality) => join(directory, projectorFile(modality)))
    const values = await Promise.all(files.map(readParameters))
    setParameters(model, Object.assign({}, model.adapterParameters, ...values), files.join(', '))
    return model
  } catch (error) {
    await Promise.all([...opened, ...(options.llm === undefined ? [llm] : [])].map((part) => part.dispose()))
    throw error
  }
}

/** Puts what was trained of an encoder in its place. */
async function adaptBranch(
  branches: Partial<Record<Modality, Branch>>,
  modality: Modality,
  { encoder: { adapters } }: ManifestBranch,
  directory: string,
): Promise<void> {
  const branch = branches[modality]
  if (branch === undefined || adapters === undefined) return
  const encoder = await loadTrainedEncoder(branch.encoder, adapters, join(directory, encoderFolder(modality)))
  branches[modality] = { ...branch, encoder }
}

function savedBranch(manifest: ModelManifest, modality: Modality, file: string): ManifestBranch {
  const saved = manifest[modality]
  if (saved === undefined)
    throw new ModalignError({ code: 'MODEL_MANIFEST', file, field: `/${modality}`, expected: 'an encoder and a projector' })
  return saved
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
function assertSameParts(
  manifest: ModelManifest,
  llm: LanguageModel,
  branches: Readonly<Partial<Record<Modality, Branch>>>,
  file: string,
): void {
  const differences = [
    difference(
      'language model',
      `${manifest.llm.label} (${short(manifest.llm.identity)})`,
      `${llm.label} (${short(llm.identity)})`,
      manifest.llm.identity === llm.identity,
    ),
    difference('hidden size', manifest.llm.hiddenSize, llm.decoder.hiddenSize),
    ...modalities.flatMap((modality) => {
      const [saved, given] = [manifest[modality], branches[modality]]
      return saved === undefined || given === undefined ? [] : encoderDifferences(modality, saved.encoder, given.encoder)
    }),
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

const nouns: Readonly<Record<Modality, string>> = { image: 'a picture', audio: 'a sound', video: 'a video' }

function encoderDifferences(modality: Modality, saved: ManifestBranch['encoder'], given: Encoder): readonly (string | undefined)[] {
  const what = modality === 'image' ? 'encoder' : `${modality} encoder`
  return [
    difference(
      what,
      `${saved.label} (${short(saved.fingerprint)})`,
      `${given.label} (${short(given.fingerprint)})`,
      saved.fingerprint === given.fingerprint,
    ),
    difference('modality', modality, given.modality),
    difference('feature width', saved.width, given.width),
    ...(saved.tokens === undefined || gridVaries(given)
      ? []
      : [difference(`features of ${nouns[modality]}`, saved.tokens, gridTokens(given.grid({})))]),
  ]
}

function difference(what: string, saved: string | number, given: string | number, same = saved === given): string | undefined {
  return same ? undefined : `${what}: trained with ${excerpt(`${saved}`)}, given ${excerpt(`${given}`)}`
}

function namedProjector(modality: Modality, saved: ManifestBranch, { projectors }: Catalogues, file: string): Projector {
  const { name, options } = saved.projector
  const definition = Object.hasOwn(projectors, name) ? projectors[name] : undefined
  if (definition === undefined) {
    throw new ModalignError({
      code: 'MODEL_PROJECTOR_UNKNOWN',
      file,
      field: `/${modality}/projector/name`,
      got: name,
      expected: `one of ${Object.keys(projectors).join(', ')}`,
      hint: 'pass your own projector in `projectors`',
    })
  }
  const parsed = definition.options.safeParse(options)
  if (!parsed.success)
    throw new ModalignError({
      code: 'MODEL_MANIFEST',
      file,
      field: `/${modality}/projector/options`,
      expected: parsed.error.issues[0]?.message,
    })
  return { definition, options: parsed.data }
}

async function namedEncoder(
  modality: Modality,
  saved: ManifestBranch,
  { encoders }: Catalogues,
  directory: string,
  file: string,
): Promise<Encoder> {
  const { recipe } = saved.encoder
  const make = recipe !== undefined && Object.hasOwn(encoders, recipe.family) ? encoders[recipe.family] : undefined
  if (recipe === undefined || make === undefined) {
    throw new ModalignError({
      code: 'MODEL_ENCODER_UNKNOWN',
      file,
      field: `/${modality}/encoder/recipe`,
      got: recipe?.family ?? 'none',
      expected: `one of ${Object.keys(encoders).join(', ')}`,
      hint: 'pass the encoder in `encoders`',
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
