import type { LoweredModel } from '../../src/onnx/lower.ts'
import type { ModelSource } from '../../src/runtime/session.ts'

/** A lowered graph as a session takes it. */
export function sourceOf({ bytes, externalRoot, externalData }: LoweredModel): ModelSource {
  return { bytes, ...(externalRoot !== undefined && { externalRoot }), ...(externalData && { externalData }) }
}
