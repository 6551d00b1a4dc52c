import { link, mkdir, mkdtemp, realpath, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { InferenceSession, Tensor } from 'onnxruntime-node'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { float32Tensor } from '../tensors.ts'
import { makeExternalTensor, makeGraph, makeModel, makeNode, makeTensor, makeValueInfo } from './build.ts'
import { encodeModel } from './codec.ts'
import { type OnnxFile, readOnnxFile, readTensor } from './load.ts'
import type { TensorProto } from './onnx_pb.ts'

let folder = ''
beforeEach(async () => {
  folder = await realpath(await mkdtemp(path.join(tmpdir(), 'modalign-onnx-')))
})
afterEach(() => rm(folder, { recursive: true, force: true }))

const weights = Float32Array.of(1, 2, 3, 4)
// 8 bytes of something else lie before the weights.
const weightFile = new Uint8Array([...new Uint8Array(8), ...new Uint8Array(weights.buffer)])

function modelBytes(weight: TensorProto): Uint8Array {
  const graph = makeGraph({
    nodes: [makeNode({ opType: 'Add', inputs: ['x', 'w'], outputs: ['y'] })],
    inputs: [makeValueInfo('x', 'float32', [4])],
    outputs: [makeValueInfo('y', 'float32', [4])],
    initializers: [weight],
  })
  return encodeModel(makeModel({ graph }))
}
const external = (location: string, offset = 8) => modelBytes(makeExternalTensor('w', 'float32', [4], { location, offset, length: 16 }))

async function put(relative: string, bytes: Uint8Array | string): Promise<string> {
  const file = path.join(folder, relative)
  await mkdir(path.dirname(file), { recursive: true })
  await writeFile(file, bytes)
  return file
}

/** What ONNX Runtime computes from what we would hand it. */
async function addTen({ bytes, externalFolder }: OnnxFile): Promise<number[]> {
  const session = await InferenceSession.create(bytes, {
    extra: { session: { model_external_initializers_file_folder_path: externalFolder } },
  })
  const { y } = await session.run({ x: new Tensor('float32', [10, 10, 10, 10], [4]) })
  await session.release()
  return Array.from(y?.data ?? [], Number)
}

async function weightOf({ model, externalFolder }: OnnxFile): Promise<number[]> {
  const [tensor] = model.graph?.initializer ?? []
  if (tensor === undefined) throw new Error('no initializer')
  return Array.from((await readTensor(tensor, externalFolder)).data, Number)
}

describe('readOnnxFile', () => {
  test('a file without external data comes back byte for byte', async () => {
    const bytes = modelBytes(makeTensor('w', float32Tensor(weights, [4])))
    const loaded = await readOnnxFile(await put('m.onnx', bytes))
    expect(Buffer.from(loaded.bytes).equals(bytes)).toBe(true)
    expect(loaded.externalFolder).toBe(folder)
    expect(await weightOf(loaded)).toEqual([1, 2, 3, 4])
    expect(await addTen(loaded)).toEqual([11, 12, 13, 14])
  })

  test('external data beside the model, in a subfolder, and behind a hard link', async () => {
    await put('sub/w.bin', weightFile)
    await link(path.join(folder, 'sub/w.bin'), path.join(folder, 'w.bin'))
    for (const location of ['w.bin', 'sub/w.bin', './w.bin']) {
      const bytes = external(location)
      const loaded = await readOnnxFile(await put('m.onnx', bytes))
      expect(Buffer.from(loaded.bytes).equals(bytes)).toBe(true)
      expect(await weightOf(loaded)).toEqual([1, 2, 3, 4])
      expect(await addTen(loaded)).toEqual([11, 12, 13, 14])
    }
  })

  test('a Hugging Face cache, where snapshots link to blobs', async () => {
    const repository = 'cache/models--owner--name'
    await put(`${repository}/blobs/aaaa`, external('m.onnx_data'))
    await put(`${repository}/blobs/bbbb`, weightFile)
    const snapshot = path.join(folder, repository, 'snapshots/0123/onnx')
    await mkdir(snapshot, { recursive: true })
    await symlink('../../../blobs/aaaa', path.join(snapshot, 'm.onnx'))
    await symlink('../../../blobs/bbbb', path.join(snapshot, 'm.onnx_data'))
    const loaded = await readOnnxFile(path.join(snapshot, 'm.onnx'))
    expect(loaded.externalFolder).toBe(path.join(folder, repository))
    expect(await weightOf(loaded)).toEqual([1, 2, 3, 4])
    expect(await addTen(loaded)).toEqual([11, 12, 13, 14])
  })

  test("a link inside the model's folder", async () => {
    await put('sub/w.bin', weightFile)
    await symlink('sub/w.bin', path.join(folder, 'w.bin'))
    const loaded = await readOnnxFile(await put('m.onnx', external('w.bin')))
    expect(loaded.externalFolder).toBe(folder)
    expect(await weightOf(loaded)).toEqual([1, 2, 3, 4])
    expect(await addTen(loaded)).toEqual([11, 12, 13, 14])
  })

  test.each<[string, string, string]>([
    ['a link out of the folder', 'model/w.bin', '../secret/w.bin'],
    ['a linked parent folder', 'model/sub', '../secret'],
    ["another repository's blobs", 'cache/models--a--b/snapshots/0/w.bin', '../../../models--c--d/blobs/w.bin'],
    ['the same repository, but not its blobs', 'cache/models--a--b/snapshots/0/w.bin', '../../refs/w.bin'],
    ['a folder that only looks like a cache', 'snapshots/0/w.bin', '../../blobs/w.bin'],
  ])('%s is refused', async (_, at, target) => {
    const parent = path.dirname(path.join(folder, at))
    await mkdir(parent, { recursive: true })
    const name = path.basename(at)
    const secret = path.join(parent, target, ...(name === 'sub' ? ['w.bin'] : []))
    await mkdir(path.dirname(secret), { recursive: true })
    await writeFile(secret, weightFile)
    await symlink(target, path.join(folder, at))
    const file = path.join(parent, 'm.onnx')
    await writeFile(file, external(name === 'sub' ? 'sub/w.bin' : name))
    await expect(readOnnxFile(file)).rejects.toMatchObject({ code: 'ONNX_EXTERNAL_PATH', details: { field: 'w', file } })
  })

  test('missing, short and unfetched external files', async () => {
    const file = await put('m.onnx', external('w.bin'))
    await expect(readOnnxFile(file)).rejects.toMatchObject({ code: 'ONNX_EXTERNAL_MISSING' })
    await put('w.bin', weightFile.subarray(0, 23))
    await expect(readOnnxFile(file)).rejects.toMatchObject({ code: 'ONNX_EXTERNAL_DATA' })
    await put('w.bin', 'version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 24\n')
    await expect(readOnnxFile(file)).rejects.toMatchObject({ code: 'ONNX_LFS_POINTER', details: { file: path.join(folder, 'w.bin') } })
    await rm(path.join(folder, 'w.bin'))
    await mkdir(path.join(folder, 'w.bin'))
    await expect(readOnnxFile(file)).rejects.toMatchObject({ code: 'FILE_NOT_REGULAR' })
  })

  test('files that are no model, or too large for one', async () => {
    await expect(readOnnxFile(path.join(folder, 'absent.onnx'))).rejects.toMatchObject({ code: 'FILE_MISSING' })
    await expect(readOnnxFile(folder)).rejects.toMatchObject({ code: 'FILE_NOT_REGULAR' })
    await expect(readOnnxFile(await put('p.onnx', Uint8Array.of(0x80, 4, 0x95)))).rejects.toMatchObject({ code: 'ONNX_FORMAT' })
    await expect(readOnnxFile(await put('m.onnx', external('w.bin')), { maxBytes: 10 })).rejects.toMatchObject({ code: 'ONNX_TOO_LARGE' })
    // A hole in the file takes no space on the disk.
    const huge = await put('huge.onnx', '')
    await truncate(huge, 2 ** 31)
    await expect(readOnnxFile(huge)).rejects.toMatchObject({ code: 'ONNX_TOO_LARGE' })
  })
})

test('readTensor refuses a range beyond the file', async () => {
  await put('w.bin', weightFile)
  const tensor = makeExternalTensor('w', 'float32', [4], { location: 'w.bin', offset: 12, length: 16 })
  await expect(readTensor(tensor, folder)).rejects.toMatchObject({ code: 'ONNX_EXTERNAL_DATA' })
})
