/** The tiny demonstration pair that comes with the package. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { ModalignError } from '../errors.ts'
import { packageRoot } from './package-root.ts'

/**
 * The folder of the tiny model: its manifest names the tiny language model and the encoder beside it.
 *
 * @throws ModalignError `EMBEDDED_MISSING` for a package without it
 */
export function embeddedModel(): string {
  const folder = join(packageRoot(), 'examples', 'tiny', 'model')
  if (existsSync(join(folder, 'modalign.json'))) return folder
  throw new ModalignError({
    code: 'EMBEDDED_MISSING',
    file: folder,
    got: 'a package without its tiny demonstration model',
    expected: 'modalign.json and projector.safetensors',
    hint: 'name a model that `modalign tune` wrote: --model DIR',
  })
}

export const embeddedNotice =
  'using the tiny demonstration pair, which knows emoji drawings and little else; name your own with --model DIR (a folder that `modalign tune` wrote) or --llm DIR'
