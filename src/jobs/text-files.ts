import { stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { ModalignError } from '../errors.ts'
import { createFileAtomic, removeTemporariesIn } from '../io/atomic.ts'
import { errnoOf, fileError } from '../io/file-error.ts'
import type { FsOps } from '../io/fs-ops.ts'

/** Captions as files of their own, one an item, named like the item: `cats/1.jpg` -> `cats/1.txt`, the layout that fine-tuning tools read. */
export interface TextFiles {
  /** @throws ModalignError `JOB_OUTPUT_EXISTS`, `JOB_OUTPUT_COLLISION`, `JOB_ID_NOT_A_PATH` */
  reserve(id: string): Promise<void>
  /** Makes sure that the item's file is there. One that is there already stays as it is. */
  write(id: string, caption: string): Promise<void>
  has(id: string): Promise<boolean>
}

export function textFiles(folder: string, { fs }: { readonly fs: FsOps }): TextFiles {
  const owners = new Map<string, string>()
  const swept = new Set<string>()

  function pathOf(id: string): string {
    const parts = id.split('/')
    if (parts.some((part) => part === '' || part === '.' || part === '..' || /[\\:\0]/.test(part))) {
      throw new ModalignError({
        code: 'JOB_ID_NOT_A_PATH',
        field: '/id',
        got: id,
        expected: 'an id that can name a file inside the output folder',
        hint: 'write JSONL or CSV instead',
      })
    }
    const target = `${id.replace(/\.[^./]+$/, '')}.txt`
    const owner = owners.get(target)
    if (owner !== undefined && owner !== id) {
      throw new ModalignError({
        code: 'JOB_OUTPUT_COLLISION',
        file: join(folder, target),
        got: `${owner} and ${id}`,
        expected: 'items whose names differ in more than the extension',
        hint: 'rename one of them, or write JSONL or CSV instead',
      })
    }
    owners.set(target, id)
    return join(folder, target)
  }
  async function exists(path: string): Promise<boolean> {
    try {
      await stat(path)
      return true
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return false
      throw fileError(error, path)
    }
  }
  /** Removes what an earlier run may have left, once a folder. */
  async function sweep(parent: string): Promise<void> {
    if (swept.has(parent)) return
    swept.add(parent)
    await removeTemporariesIn(parent, '.txt', { fs })
  }
  return {
    async reserve(id) {
      const path = pathOf(id)
      if (!(await exists(path))) return
      throw new ModalignError({
        code: 'JOB_OUTPUT_EXISTS',
        file: path,
        got: 'a file that this job did not write',
        expected: 'no file',
        hint: 'move it away, or choose another output folder',
      })
    },
    async has(id) {
      const path = pathOf(id)
      if (!(await exists(path))) return false
      await sweep(dirname(path))
      return true
    },
    async write(id, caption) {
      const path = pathOf(id)
      try {
        await fs.mkdir(dirname(path))
      } catch (error) {
        throw fileError(error, path)
      }
      await sweep(dirname(path))
      try {
        await createFileAtomic(path, `${caption}\n`, { fs })
      } catch (error) {
        if (!(error instanceof ModalignError) || error.code !== 'FILE_EXISTS') throw error
      }
    },
  }
}
