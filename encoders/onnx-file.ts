/** An encoder's ONNX file: opened, checked, and named by what is in it. */
import { createHash } from 'node:crypto'
import path from 'node:path'
import { fileSource } from '../src/io/byte-source.ts'
import { fingerprint } from '../src/io/fingerprint.ts'
import { type ValueDescription, valueDescription } from '../src/onnx/build.ts'
import { readOnnxFile } from '../src/onnx/load.ts'
import type { ModelProto } from '../src/onnx/onnx_pb.ts'
import { externalReferences, precheckModel } from '../src/onnx/precheck.ts'

export interface OpenedModel {
  readonly model: ModelProto
  readonly externalFolder?: string
  /** Of the file and of its external data. */
  readonly hash: string
}

/** A path, or a file's bytes (then without external data). @throws `ONNX_...` */
export async function openModel(source: string | Uint8Array): Promise<OpenedModel> {
  if (typeof source !== 'string') {
    return { model: precheckModel(source, { externalSizes: new Map() }), hash: createHash('sha256').update(source).digest('hex') }
  }
  const { model, bytes, externalFolder } = await readOnnxFile(source)
  const locations = [...new Set(externalReferences(model, source).map(({ reference }) => reference.location))].sort()
  const whole = createHash('sha256').update(bytes)
  for (const location of locations) whole.update(await fingerprint(await fileSource(path.join(externalFolder, location))))
  return { model, externalFolder, hash: whole.digest('hex') }
}

/** SHA-256 over JSON with sorted keys: equal settings give equal fingerprints, however they were written. */
export function digest(value: unknown): string {
  const sorted = JSON.stringify(value, (_, inner: unknown) =>
    typeof inner === 'object' && inner !== null && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  )
  return createHash('sha256').update(sorted).digest('hex')
}

/** The graph's inputs; old files list their weights among them. */
export function inputsOf({ graph }: ModelProto): readonly ValueDescription[] {
  const weights = new Set((graph?.initializer ?? []).map(({ name }) => name))
  return (graph?.input ?? []).filter(({ name }) => !weights.has(name)).map(valueDescription)
}

/** For errors: `name dtype[dims]`. */
export function shown({ name, dtype, dims }: ValueDescription): string {
  return `${name} ${dtype ?? '?'}[${dims?.map((size) => (size === '' ? '?' : size)).join(', ') ?? '...'}]`
}
