import { statfs } from 'node:fs/promises'
import { fileError } from './file-error.ts'

/** Bytes that this user may still write on the disk that holds the folder. @throws FILE_MISSING, FILE_PERMISSION */
export async function freeBytes(folder: string): Promise<number> {
  try {
    const { bavail, bsize } = await statfs(folder)
    return bavail * bsize
  } catch (error) {
    throw fileError(error, folder, 'a folder')
  }
}
