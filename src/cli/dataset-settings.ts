/** How a dataset is named: the same settings wherever a command reads one. */
import { z } from 'zod'
import { datasets } from '../../datasets/index.ts'
import type { DatasetSource } from '../model/contracts.ts'
import { pathSchema } from './catalogues.ts'

const readers: Readonly<Record<string, (path: string, options: { readonly root?: string }) => DatasetSource & { readonly root: string }>> =
  datasets

export const datasetSettings = {
  path: pathSchema,
  root: pathSchema.optional(),
  format: z.enum(Object.keys(datasets)).default('llava'),
} as const

export const datasetHelp = {
  root: "the folder that the records' media paths are relative to; default: the folder of the file",
  format: 'default llava',
} as const

const schema = z.strictObject(datasetSettings)

export function openDataset({ path, root, format }: z.output<typeof schema>): DatasetSource & { readonly root: string } {
  const read = Object.hasOwn(readers, format) ? readers[format] : undefined
  if (read === undefined) throw new Error(`internal: no dataset format ${format}`)
  return read(path, root === undefined ? {} : { root })
}
