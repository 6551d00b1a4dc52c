/** Model files on disk: read, checked, and with their external data found where they may be. */
import { realpath } from 'node:fs/promises'
import path from 'node:path'
import { ModalignError, unreachable } from '../errors.ts'
import { type FileSource, fileSource } from '../io/byte-source.ts'
import { bytesPerElement, elementCount, type TensorValue } from '../tensors.ts'
import { tensorType, tensorValue } from './build.ts'
import { encodeModel, maxModelBytes } from './codec.ts'
import { tensorFromBytes } from './dtypes.ts'
import { externalReference } from './external.ts'
import { isLfsPointer, lfsPointer } from './format.ts'
import { type ModelProto, type TensorProto, TensorProto_DataLocation } from './onnx_pb.ts'
import { checkModel, externalReferences, precheckModel } from './precheck.ts'

export interface ReadOnnxOptions {
  /** Bytes of the .onnx file itself, external data not counted. Default and most: 2 GiB - 1, protobuf's limit. */
  readonly maxBytes?: number
  /** See `precheckModel`. */
  readonly allowDomains?: readonly string[]
}

export interface OnnxFile {
  readonly model: ModelProto
  /** What to give to ONNX Runtime. Equal to the file, unless external data lie behind a symbolic link: then the locations in it lead to the target. */
  readonly bytes: Uint8Array
  /** The folder, free of symbolic links, to which the `location`s in `model` and `bytes` are relative. */
  readonly externalFolder: string
}

/**
 * Reads a model file that may come from a stranger.
 *
 * External data must be regular files whose real path lies in the model's folder or, in a Hugging Face cache (where `snapshots/<revision>/` holds links to
 * `blobs/`), in the `blobs` of the same repository. Nothing keeps another process from changing the files after the check.
 *
 * @throws ModalignError FILE_MISSING, FILE_NOT_REGULAR, FILE_PERMISSION, ONNX_TOO_LARGE, ONNX_EXTERNAL_MISSING, ONNX_EXTERNAL_PATH, and whatever `precheckModel` finds.
 * @example
 * const { model, bytes, externalFolder } = await readOnnxFile('models/siglip/model.onnx')
 */
export async function readOnnxFile(file: string, options: ReadOnnxOptions = {}): Promise<OnnxFile> {
  const { allowDomains = [] } = options
  const bytes = await readWhole(file, Math.min(options.maxBytes ?? maxModelBytes, maxModelBytes))
  const model = precheckModel(bytes, { file, allowDomains })
  const folder = await realpath(path.dirname(file))
  const references = externalReferences(model, file)
  if (references.length === 0) return { model, bytes, externalFolder: folder }

  const targets = new Map<string, string>()
  const sizes = new Map<string, number>()
  for (const { tensor, reference } of references) {
    if (sizes.has(reference.location)) continue
    const source = await findExternal(file, folder, tensor.name, reference.location)
    targets.set(reference.location, source.path)
    sizes.set(reference.location, source.size)
  }
  checkModel(model, { file, allowDomains, externalSizes: sizes })

  const direct = [...targets].every(([location, target]) => path.join(folder, location) === target)
  if (direct) return { model, bytes, externalFolder: folder }
  // ONNX Runtime refuses locations that leave the model's folder through a link, so name the targets themselves, from a folder above all of them.
  const inside = [...targets.values()].every((target) => isInside(folder, target))
  const root = inside
    ? folder
    : (huggingFaceRepository(folder) ?? unreachable('a target was allowed outside the folder and outside a cache'))
  for (const { tensor, reference } of references) {
    const target = targets.get(reference.location)
    if (target === undefined) continue
    for (const entry of tensor.externalData) {
      if (entry.key === 'location') entry.value = path.relative(root, target).split(path.sep).join('/')
    }
  }
  return { model, bytes: encodeModel(model), externalFolder: root }
}

/**
 * The elements of a tensor, read from its external file where it has one.
 *
 * @param externalFolder as {@link readOnnxFile} returns it
 * @throws ModalignError as `tensorValue`, ONNX_EXTERNAL_MISSING, ONNX_EXTERNAL_PATH, ONNX_EXTERNAL_DATA when the file ends before the tensor does.
 * @example
 * const { model, externalFolder } = await readOnnxFile('model.onnx')
 * for (const tensor of model.graph?.initializer ?? []) await readTensor(tensor, externalFolder)
 */
export async function readTensor(tensor: TensorProto, externalFolder: string): Promise<TensorValue> {
  if (tensor.dataLocation !== TensorProto_DataLocation.EXTERNAL) return tensorValue(tensor)
  const { dtype, dims } = tensorType(tensor)
  const { location, offset } = externalReference(tensor)
  const length = elementCount(dims) * bytesPerElement[dtype]
  const source = await findExternal(undefined, await realpath(externalFolder), tensor.name, location)
  if (offset + length > source.size) {
    throw new ModalignError({
      code: 'ONNX_EXTERNAL_DATA',
      file: source.path,
      field: tensor.name,
      got: `bytes ${offset} to ${offset + length}`,
      expected: `a range inside its ${source.size} bytes`,
    })
  }
  return tensorFromBytes(dtype, dims, await source.read(offset, length), tensor.name)
}

async function readWhole(file: string, maxBytes: number): Promise<Uint8Array> {
  const source = await fileSource(file)
  if (source.size > maxBytes) {
    throw new ModalignError({
      code: 'ONNX_TOO_LARGE',
      file,
      got: `${source.size} bytes`,
      expected: `at most ${maxBytes} bytes`,
      hint: 'store the weights as external data',
    })
  }
  return source.read(0, source.size)
}

/** Where a tensor's file really is. A link is followed, but nothing of its target is read before the target is known to be allowed. */
async function findExternal(file: string | undefined, folder: string, tensor: string, location: string): Promise<FileSource> {
  const wanted = path.join(folder, location)
  const source = await fileSource(wanted).catch((error: unknown) => {
    if (!(error instanceof ModalignError) || error.code !== 'FILE_MISSING') throw error
    throw new ModalignError({
      code: 'ONNX_EXTERNAL_MISSING',
      file,
      field: tensor,
      got: `no file ${location}`,
      expected: 'the external data file beside the model',
      cause: error,
    })
  })
  const repository = huggingFaceRepository(folder)
  if (!isInside(folder, source.path) && !(repository !== undefined && isInside(path.join(repository, 'blobs'), source.path))) {
    throw new ModalignError({
      code: 'ONNX_EXTERNAL_PATH',
      file,
      field: tensor,
      got: `${location}, a link to ${source.path}`,
      expected: "a file in the model's folder",
    })
  }
  if (isLfsPointer(await source.read(0, Math.min(64, source.size)))) throw lfsPointer(wanted)
  return source
}

function isInside(folder: string, target: string): boolean {
  const relative = path.relative(folder, target)
  return relative !== '' && relative !== '..' && !relative.startsWith(`..${path.sep}`) && !path.isAbsolute(relative)
}

/** `<cache>/models--<owner>--<name>` for a folder at or below its `snapshots/<revision>`; undefined elsewhere. */
function huggingFaceRepository(folder: string): string | undefined {
  const segments = folder.split(path.sep)
  const at = segments.lastIndexOf('snapshots')
  return at > 0 && at + 1 < segments.length && segments[at - 1]?.startsWith('models--') ? segments.slice(0, at).join(path.sep) : undefined
}
