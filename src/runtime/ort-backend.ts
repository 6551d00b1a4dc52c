/** A back end over one InferenceSession of onnxruntime-node or onnxruntime-web: both packages share their types. No imports from Node here. */
import type { InferenceSession, Tensor, TensorConstructor } from 'onnxruntime-web'
import { ModalignError, unreachable } from '../errors.ts'
import { type DataType, elementCount, type NamedTensors, type TensorValue } from '../tensors.ts'
import { runFailure } from './devices.ts'
import { dataArrays } from './feeds.ts'
import type { Backend } from './host.ts'
import type { TensorDescription } from './session.ts'

/** What both packages export under the same names. */
export interface OrtModule {
  readonly InferenceSession: { create(bytes: Uint8Array, options?: InferenceSession.SessionOptions): Promise<InferenceSession> }
  readonly Tensor: TensorConstructor
}

/** Takes the session over: releasing the back end releases it. @throws {ModalignError} `RUNTIME_MODEL_TYPE` for inputs or outputs of types that are not ours */
export async function ortBackend(session: InferenceSession, TensorClass: TensorConstructor): Promise<Backend> {
  try {
    const inputs = session.inputMetadata.map((metadata) => describe(metadata, 'input'))
    const outputs = session.outputMetadata.map((metadata) => describe(metadata, 'output'))
    return {
      inputs,
      outputs,
      async run(feeds, fetch) {
        const tensors = Object.fromEntries(Object.entries(feeds).map(([name, value]) => [name, toOrt(value, TensorClass)]))
        try {
          return fromOrtOutputs(await session.run(tensors, fetch))
        } catch (error) {
          throw runFailure(error)
        }
      },
      async release() {
        // With profiling on, the file is complete only after this; without, it does nothing.
        session.endProfiling()
        await session.release()
      },
    }
  } catch (error) {
    await session.release()
    throw error
  }
}

/** A view for ONNX Runtime. Only memory shared between threads is copied: it does not take that. */
function toOrt({ dtype, dims, data }: TensorValue, TensorClass: TensorConstructor): Tensor {
  if (dtype === 'bfloat16') return unreachable('ONNX Runtime describes no input as bfloat16')
  const own = data.buffer instanceof ArrayBuffer ? data : data.slice()
  if (dtype !== 'float16') return new TensorClass(dtype, own, dims)
  // Where the engine has Float16Array (Node.js 24), the constructor would make one of our bits, and onnxruntime-node 1.30 takes those for 0 bytes
  // (ONNX Runtime's pull request 32323). Of a Uint16Array both packages read the bits.
  return Object.defineProperty(new TensorClass('uint16', own, dims), 'type', { value: dtype, enumerable: true })
}

function fromOrtOutputs(values: InferenceSession.ReturnType): NamedTensors {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, fromOrt(name, value)]))
}

function fromOrt(name: string, { type, dims, data: raw }: InferenceSession.ReturnType[string]): TensorValue {
  // Where the engine has Float16Array, ONNX Runtime gives one: its bits are what we carry.
  const data =
    type === 'float16' && ArrayBuffer.isView(raw) && !(raw instanceof Uint16Array)
      ? new Uint16Array(raw.buffer, raw.byteOffset, elementCount(dims))
      : raw
  if (!isDataType(type) || !(data instanceof dataArrays[type])) throw runFailure(new Error(`output '${name}' came back as ${type}`))
  // The pairing of dtype and array was checked in the line above.
  return { dtype: type, dims: [...dims], data } as TensorValue
}

function isDataType(type: string): type is DataType {
  return Object.hasOwn(dataArrays, type)
}

function describe(metadata: InferenceSession.ValueMetadata, role: 'input' | 'output'): TensorDescription {
  const type = metadata.isTensor ? metadata.type : 'not a tensor'
  if (!metadata.isTensor || !isDataType(type))
    throw new ModalignError({
      code: 'RUNTIME_MODEL_TYPE',
      field: `/${role}s/${metadata.name}`,
      got: `${role} '${metadata.name}' of type ${type}`,
      expected: `tensors of ${Object.keys(dataArrays).join(', ')}`,
    })
  return { name: metadata.name, dtype: type, dims: metadata.shape.map((size) => size ?? '') }
}
