/** The encoders that come with the package. Your own needs no entry here: pass it where an encoder is taken. */
import { mobilenetV2 } from './mobilenet-v2.ts'
import { onnxImage } from './onnx-image.ts'

export type { FeatureLayout } from './feature-layout.ts'
export { type MobilenetV2Options, mobilenetV2, mobilenetV2Preprocessing } from './mobilenet-v2.ts'
export { type OnnxImageEncoder, type OnnxImageOptions, onnxImage } from './onnx-image.ts'

/** By the name under which a saved model remembers its encoder. */
export const encoders = { onnxImage, mobilenetV2 } as const
