/** A user's own encoders and projectors: `./mine.js#pooler` names the export `pooler` of a module. */
import { isAbsolute, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { ModalignError } from '../errors.ts'
import { fileSource } from '../io/byte-source.ts'
import { modalities } from '../model/branches.ts'
import type { Encoder, JsonObject, ProjectorDefinition } from '../model/contracts.ts'
import type { Catalogues } from '../model/saved-model.ts'
import { withRecipe } from './catalogues.ts'
import { didYouMean } from './suggestion.ts'

/** Whether a name is a module's and not a catalogue entry's. */
export function isModuleReference(name: string): boolean {
  return name.includes('#') || name.startsWith('./') || name.startsWith('../') || isAbsolute(name)
}

/** The same reference with an absolute path. */
export function resolveReference(reference: string, folder: string): string {
  const { file, exported } = parts(reference)
  return `${resolve(folder, file)}#${exported}`
}

function parts(reference: string): { readonly file: string; readonly exported: string } {
  const cut = reference.lastIndexOf('#')
  return cut < 0 ? { file: reference, exported: 'default' } : { file: reference.slice(0, cut), exported: reference.slice(cut + 1) }
}

async function exportOf(reference: string): Promise<{ readonly value: unknown; readonly file: string; readonly exported: string }> {
  const { file, exported } = parts(reference)
  await fileSource(file)
  let found: Readonly<Record<string, unknown>>
  try {
    found = await import(pathToFileURL(file).href)
  } catch (error) {
    throw new ModalignError({
      code: 'MODULE_FAILED',
      file,
      got: error instanceof Error ? `${error.name}: ${error.message}` : String(error),
      expected: 'a JavaScript module that loads',
      cause: error,
    })
  }
  if (Object.hasOwn(found, exported)) return { value: found[exported], file, exported }
  const names = Object.keys(found)
  throw new ModalignError({
    code: 'MODULE_EXPORT',
    file,
    got: `no export ${exported}`,
    expected: names.length === 0 ? 'a module that exports something' : `one of ${names.join(', ')}`,
    hint: didYouMean(exported, names) ?? 'write FILE#EXPORT',
  })
}

/** @throws ModalignError `MODULE_FAILED`, `MODULE_EXPORT`, `MODULE_PROJECTOR` */
export async function moduleProjector(reference: string): Promise<ProjectorDefinition> {
  const { value, file, exported } = await exportOf(reference)
  if (isProjector(value)) return value
  throw new ModalignError({
    code: 'MODULE_PROJECTOR',
    file,
    field: exported,
    got: typeof value,
    expected: 'a projector, as defineProjector makes it',
  })
}

/** What a module's encoder is made by. */
type EncoderMaker = (options: JsonObject & { readonly model?: string }) => Promise<Encoder>

/**
 * The maker that a module exports, checked when it makes something. What it makes is remembered by a saved model under the export's name.
 *
 * @throws ModalignError `MODULE_FAILED`, `MODULE_EXPORT`, `MODULE_ENCODER`
 */
export async function moduleEncoder(reference: string): Promise<{ readonly name: string; readonly make: EncoderMaker }> {
  const { value, file, exported } = await exportOf(reference)
  const wrong = (got: string): ModalignError =>
    new ModalignError({ code: 'MODULE_ENCODER', file, field: exported, got, expected: 'a function that gives an encoder' })
  if (typeof value !== 'function') throw wrong(typeof value)
  return {
    name: exported,
    make: async (options) => {
      const encoder: unknown = await value(options)
      if (!isEncoder(encoder)) throw wrong('a function that gives something else')
      const { model, ...rest } = options
      return withRecipe(encoder, { family: exported, options: rest, ...(model !== undefined && { model }) })
    },
  }
}

/** The catalogues with a user's modules beside their entries. */
export async function withModules(catalogues: Catalogues, references: readonly string[]): Promise<Catalogues> {
  const encoders = { ...catalogues.encoders }
  const projectors = { ...catalogues.projectors }
  for (const reference of references) {
    const { value, file, exported } = await exportOf(reference)
    const [catalogue, name] = isProjector(value) ? [projectors, value.name] : [encoders, exported]
    if (Object.hasOwn(catalogue, name)) {
      throw new ModalignError({
        code: 'MODULE_NAME_TAKEN',
        file,
        field: exported,
        got: name,
        expected: `a name other than ${Object.keys(catalogue).join(', ')}`,
      })
    }
    if (isProjector(value)) projectors[name] = value
    else encoders[name] = (await moduleEncoder(reference)).make
  }
  return { encoders, projectors }
}

function isProjector(value: unknown): value is ProjectorDefinition {
  if ((typeof value !== 'object' && typeof value !== 'function') || value === null) return false
  const { name, tokens, build, options }: Partial<Record<keyof ProjectorDefinition, unknown>> = value
  return (
    typeof name === 'string' &&
    typeof tokens === 'function' &&
    typeof build === 'function' &&
    typeof options === 'object' &&
    options !== null &&
    'safeParse' in options
  )
}

function isEncoder(value: unknown): value is Encoder {
  if (typeof value !== 'object' || value === null) return false
  const found: Partial<Record<keyof Encoder, unknown>> = value
  const methods = [found.grid, found.preprocess, found.encode, found.dispose]
  return (
    modalities.some((modality) => found.modality === modality) &&
    typeof found.fingerprint === 'string' &&
    methods.every((method) => typeof method === 'function')
  )
}
