/** ModelProto to and from bytes. Fields that the schema does not know are kept, so newer models survive a round trip. */
import { fromBinary, type Message, toBinary } from '@bufbuild/protobuf'
import { ModalignError } from '../errors.ts'
import { type GraphProto, type ModelProto, ModelProtoSchema } from './onnx_pb.ts'

/** Protobuf's own limit on one message, and ONNX Runtime's. */
export const maxModelBytes = 2 ** 31 - 1

/**
 * Decodes a model. Byte fields (`rawData`) are views of `bytes`, not copies: do not overwrite `bytes` while the model lives.
 * Strangers' files go through {@link precheckModel} first, which says what is wrong and where.
 *
 * @throws ModalignError ONNX_MALFORMED when the bytes are not one protobuf message.
 * @example
 * decodeModel(encodeModel(model)).graph?.node.length
 */
export function decodeModel(bytes: Uint8Array, file?: string): ModelProto {
  try {
    return fromBinary(ModelProtoSchema, bytes)
  } catch (cause) {
    throw new ModalignError({
      code: 'ONNX_MALFORMED',
      file,
      got: cause instanceof Error ? cause.message : String(cause),
      expected: 'an ONNX model (a protobuf ModelProto)',
      cause,
    })
  }
}

/**
 * Encodes a model, unknown fields included.
 *
 * @throws ModalignError ONNX_TOO_LARGE above 2 GiB (keep the tensors as external data), ONNX_VALUE_RANGE when a number does not fit its field.
 * @example
 * await writeFile('model.onnx', encodeModel(model))
 */
export function encodeModel(model: ModelProto): Uint8Array {
  const tensorBytes = model.graph === undefined ? 0 : rawBytes(model.graph)
  if (tensorBytes > maxModelBytes) throw tooLarge(tensorBytes)
  let bytes: Uint8Array
  try {
    bytes = toBinary(ModelProtoSchema, model)
  } catch (cause) {
    throw new ModalignError({ code: 'ONNX_VALUE_RANGE', got: cause instanceof Error ? cause.message : String(cause), cause })
  }
  if (bytes.byteLength > maxModelBytes) throw tooLarge(bytes.byteLength)
  return bytes
}

/**
 * A shallow copy of a message with some fields replaced; the original stays as it is, unknown fields are kept. (A spread would lose the
 * prototype on which proto2 messages keep the defaults of their unset fields.)
 *
 * @example
 * const renamed = withFields(node, { name: 'other' })
 */
export function withFields<M extends Message>(message: M, changes: Partial<Omit<M, keyof Message>>): M {
  return Object.assign(Object.create(Object.getPrototypeOf(message)), message, changes)
}

function rawBytes(graph: GraphProto): number {
  return graph.initializer.reduce((sum, tensor) => sum + tensor.rawData.byteLength, 0)
}

function tooLarge(bytes: number): ModalignError {
  return new ModalignError({
    code: 'ONNX_TOO_LARGE',
    got: `${bytes} bytes`,
    expected: `at most ${maxModelBytes} bytes in one protobuf message`,
    hint: 'keep the tensors as external data',
  })
}
