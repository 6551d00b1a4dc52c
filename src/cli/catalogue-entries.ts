/** How a run file names an encoder or a projector: a catalogue's entry with its options, or a user's own module. */
import { resolve } from 'node:path'
import { z } from 'zod'
import { projectors } from '../../projectors/index.ts'
import { ModalignError } from '../errors.ts'
import type { Encoder, JsonObject, Projector, ProjectorDefinition } from '../model/contracts.ts'
import { type EncoderPlace, encoderCatalogue, encoderSettings } from './catalogues.ts'
import { addDescribed, describeIssues } from './issues.ts'
import { isRecord } from './run-file.ts'
import { resolvePaths } from './schema-walk.ts'
import { didYouMean } from './suggestion.ts'
import { isModuleReference, moduleEncoder, moduleProjector, resolveReference } from './user-modules.ts'

interface Entry {
  readonly name: string
  readonly options: JsonObject
}

const jsonObject: z.ZodType<JsonObject> = z.record(z.string(), z.json())

/**
 * A schema for `NAME` or `{ KEY: NAME, ...options }`, which gives `{ name, options }`.
 *
 * @param optionsOf the schema of an entry's options; undefined where there is no such entry
 */
function entrySchema(key: string, names: readonly string[], optionsOf: (name: string) => z.core.$ZodType | undefined) {
  return z
    .union([z.string().min(1), z.looseObject({ [key]: z.string().min(1) })])
    .transform((given, context): Entry => {
      const inside = typeof given === 'string' ? [] : [key]
      const name = typeof given === 'string' ? given : String(given[key])
      const { [key]: _, ...rest } = typeof given === 'string' ? {} : given
      const options = jsonObject.safeParse(rest)
      if (!options.success) addDescribed(context, [{ path: [], code: 'CONFIG_VALUE', expected: 'options as plain data' }])
      else if (!isModuleReference(name)) {
        const schema = optionsOf(name)
        const parsed = schema === undefined ? undefined : z.safeParse(schema, rest, { reportInput: true })
        if (schema === undefined) {
          const hint = didYouMean(name, names) ?? 'a module of your own is named as ./FILE.js#EXPORT'
          addDescribed(context, [{ path: inside, code: 'CONFIG_VALUE', got: name, expected: `one of ${names.join(', ')}`, hint }])
        } else if (parsed?.success === false) addDescribed(context, describeIssues(parsed.error.issues, schema))
      }
      return { name, options: options.data ?? {} }
    })
    .meta({ resolve: (value: unknown, folder: string) => resolvedEntry(value, folder, key, optionsOf) })
}

function resolvedEntry(value: unknown, folder: string, key: string, optionsOf: (name: string) => z.core.$ZodType | undefined): unknown {
  if (typeof value === 'string') return isModuleReference(value) ? resolveReference(value, folder) : value
  if (!isRecord(value)) return value
  const { [key]: name, ...rest } = value
  if (typeof name !== 'string') return value
  if (isModuleReference(name)) {
    const { model } = rest
    return { ...rest, ...(typeof model === 'string' && { model: resolve(folder, model) }), [key]: resolveReference(name, folder) }
  }
  const schema = optionsOf(name)
  const resolved = schema === undefined ? rest : resolvePaths(schema, rest, folder)
  return { ...(isRecord(resolved) ? resolved : {}), [key]: name }
}

const settingsOfEncoders: Readonly<Record<string, z.core.$ZodType>> = encoderSettings
const definitions: Readonly<Record<string, ProjectorDefinition>> = projectors

const own = <T>(map: Readonly<Record<string, T>>, name: string): T | undefined => (Object.hasOwn(map, name) ? map[name] : undefined)

/** `mobilenetV2`, `{ family: onnxImage, model, output, preprocessing, ... }` or `./mine.js#encoder`. */
export const encoderEntrySchema = entrySchema('family', Object.keys(encoderSettings), (name) => own(settingsOfEncoders, name))
/** `mlp`, `{ name: mlp, depth: 2 }` or `./mine.js#pooler`. */
export const projectorEntrySchema = entrySchema('name', Object.keys(projectors), (name) => own(definitions, name)?.options)

/** @throws what the encoder throws, and ModalignError `MODULE_*` */
export async function makeEncoder({ name, options }: Entry, place: EncoderPlace): Promise<Encoder> {
  const { model, ...rest } = options
  const given = { ...rest, ...(typeof model === 'string' && { model }) }
  if (isModuleReference(name)) return (await moduleEncoder(name)).make(given)
  const make = own(encoderCatalogue(place), name)
  if (make === undefined) throw new Error(`internal: no encoder ${name}`)
  return make(given)
}

/** @throws ModalignError `MODULE_*`, `PROJECTOR_OPTIONS` */
export async function makeProjector({ name, options }: Entry): Promise<Projector> {
  const definition = isModuleReference(name) ? await moduleProjector(name) : own(definitions, name)
  if (definition === undefined) throw new Error(`internal: no projector ${name}`)
  const parsed = definition.options.safeParse(options)
  if (parsed.success) return { definition, options: parsed.data }
  const [issue] = parsed.error.issues
  throw new ModalignError({
    code: 'PROJECTOR_OPTIONS',
    file: name,
    field: `/${issue?.path.join('/') ?? ''}`,
    got: JSON.stringify(options),
    expected: issue?.message,
  })
}
