import { resolve } from 'node:path'
import { z } from 'zod'

const absolutePath = (value: unknown, folder: string): unknown => (typeof value === 'string' ? resolve(folder, value) : value)

/** A path in a run file: relative to that file. On the command line: relative to the working directory. */
export const pathSchema = z.string().min(1).meta({ resolve: absolutePath })
