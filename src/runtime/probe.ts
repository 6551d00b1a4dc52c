/**
 * The model by which a device is tried: y = Softmax(x W + b), x float32 [batch, 3], y float32 [batch, 4]. Encoded by the reference ONNX
 * library (test/fixtures/runtime/make.py, which also gives the expected values in float64).
 */
import { float32Tensor, type NamedTensors } from '../tensors.ts'

const encoded =
  'CAoSCG1vZGFsaWduOoECChsKAXgKAXcSAnh3Ggdwcm9kdWN0IgZNYXRNdWwKGgoCeHcKAWISBmxvZ2l0cxoEYmlhcyIDQWRkCjMKBmxvZ2l0cxIBeRoHc29mdG1heCIHU29mdG1heCoUCgRheGlzGP///////////wGgAQISBXByb2JlKjsIAwgEEAFCAXdKMAAAwL8AAKC/AACAvwAAQL8AAAC/AACAvgAAAAAAAIA+AAAAPwAAQD8AAIA/AACgPyoZCAQQAUIBYkoQAAAAPwAAgL4AAAAAAACAP1oYCgF4EhMKEQgBEg0KBxIFYmF0Y2gKAggDYhgKAXkSEwoRCAESDQoHEgViYXRjaAoCCARCBAoAEBU='

/** The encoded ModelProto. */
export function probeModel(): Uint8Array {
  return Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0))
}

/** x [2, 3]. */
export const probeFeeds: NamedTensors = { x: float32Tensor(Float32Array.of(1, 0.5, -2, 0, 3, 0.25), [2, 3]) }

/** y [2, 4], row-major. */
export const probeExpected: readonly number[] = [
  0.3308654054631334, 0.1379252211631104, 0.15628975099987844, 0.3749196223738779, 0.041643542238261534, 0.04432931996234124,
  0.1282711404509229, 0.7857559973484743,
]

/** Largest absolute difference from the known result; `Infinity` where the shape is wrong. */
export function probeError(outputs: NamedTensors): number {
  const y = outputs.y
  if (y?.dtype !== 'float32' || y.data.length !== probeExpected.length) return Number.POSITIVE_INFINITY
  const data = y.data
  return probeExpected.reduce((largest, value, i) => Math.max(largest, Math.abs(value - (data[i] ?? Number.POSITIVE_INFINITY))), 0)
}
