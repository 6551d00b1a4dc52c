/** What kind of file this is, when it is no ONNX model. */
import { ModalignError } from '../errors.ts'

const foreignFormats: readonly { readonly name: string; readonly matches: (start: string, bytes: Uint8Array) => boolean }[] = [
  { name: 'an empty file', matches: (_, bytes) => bytes.byteLength === 0 },
  { name: 'a zip archive (a PyTorch checkpoint?)', matches: (start) => start.startsWith('PK\u0003\u0004') },
  {
    name: 'a Python pickle',
    matches: (_, [first, protocol]) => first === 0x80 && protocol !== undefined && protocol >= 2 && protocol <= 5,
  },
  { name: 'a GGUF file', matches: (start) => start.startsWith('GGUF') },
  { name: 'a safetensors file', matches: (start) => start.slice(4, 8) === '\0\0\0\0' && start.slice(8, 10) === '{"' },
  { name: 'an .ort file', matches: (start) => start.slice(4, 8) === 'ORTM' },
  { name: 'text (HTML or JSON)', matches: (start) => /^\s*(<!doctype|<html|\{")/i.test(start) },
]

/**
 * Names the other kinds of files that people put in a model's place, by their first bytes.
 *
 * @throws ModalignError ONNX_LFS_POINTER, ONNX_FORMAT. Bytes that pass are not yet known to be a model.
 */
export function checkFormat(bytes: Uint8Array, file?: string): void {
  if (isLfsPointer(bytes)) throw lfsPointer(file)
  const start = String.fromCharCode(...bytes.subarray(0, 16))
  const found = foreignFormats.find(({ matches }) => matches(start, bytes))
  if (found !== undefined) throw new ModalignError({ code: 'ONNX_FORMAT', file, got: found.name, expected: 'an ONNX model' })
}

const lfsStart = 'version https://git-lfs.github.com/spec/'

/** Whether a file is the pointer that Git LFS leaves where the file itself was not fetched. */
export function isLfsPointer(start: Uint8Array): boolean {
  return String.fromCharCode(...start.subarray(0, lfsStart.length)) === lfsStart
}

export function lfsPointer(file: string | undefined): ModalignError {
  return new ModalignError({
    code: 'ONNX_LFS_POINTER',
    file,
    got: 'a Git LFS pointer',
    expected: 'the file itself',
    hint: 'run `git lfs pull` in its repository, or download it again',
  })
}
