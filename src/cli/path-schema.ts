import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { z } from 'zod'
import { isTemplateName } from '../text/template-choice.ts'
import { parseModelName } from '../weights/hub/model-name.ts'

const absolutePath = (value: unknown, folder: string): unknown => (typeof value === 'string' ? resolve(folder, value) : value)

/** A path in a run file: relative to that file. On the command line: relative to the working directory. */
export const pathSchema = z.string().min(1).meta({ resolve: absolutePath })

/** As {@link pathSchema}, but what lies at no path and could be a name on the Hugging Face Hub (`org/name@revision`) stays as it is. */
export const modelNameSchema = z
  .string()
  .min(1)
  .meta({
    resolve: (value: unknown, folder: string): unknown => {
      const path = absolutePath(value, folder)
      return typeof value === 'string' && typeof path === 'string' && parseModelName(value) !== undefined && !existsSync(path)
        ? value
        : path
    },
  })

/** A named chat template, or the path of one. */
export const templateSchema = z
  .string()
  .min(1)
  .meta({
    resolve: (value: unknown, folder: string): unknown =>
      typeof value === 'string' && isTemplateName(value) ? value : absolutePath(value, folder),
  })
export const templateHelp = 'how a base model is written to: plain, pure, vicuna, chatml, or a Jinja file; default: its own chat template'
