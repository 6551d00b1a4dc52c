/** MobileNetV2 (Sandler et al. 2018): small, quick, and the encoder of the embedded pair. */
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { ModalignError } from '../src/errors.ts'
import type { ImagePreprocessing } from '../src/media/preprocess.ts'
import type { ModelProto } from '../src/onnx/onnx_pb.ts'
import { type OnnxImageEncoder, type OnnxImageOptions, onnxImage } from './onnx-image.ts'

/**
 * Pixels to [-1, 1] (`x / 127.5 - 1`) at 224 x 224. The whole picture is squeezed into the square, as in the published evaluation, which
 * also gave up the proportions; cutting a square out of the middle would lose what lies beside it.
 */
export const mobilenetV2Preprocessing: ImagePreprocessing = {
  resize: { size: { height: 224, width: 224 }, filter: 'bilinear' },
  rescaleFactor: 1 / 255,
  normalize: { mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] },
}

export type MobilenetV2Options = Partial<
  Pick<
    OnnxImageOptions,
    'model' | 'download' | 'onDownload' | 'output' | 'preprocessing' | 'device' | 'threads' | 'sessions' | 'batch' | 'label'
  >
>

/**
 * MobileNetV2 up to its last map, before the global pool: 7 x 7 = 49 tokens of width 1280 at width multiplier 1.0.
 *
 * @param options a path to an ONNX file, or options; without a model the one that comes with the package
 * @throws {ModalignError} `ENCODER_MISSING` (a package without the embedded pair), `ENCODER_CONTRACT` (no single global pool), and as {@link onnxImage}.
 *
 * @example
 * const encoder = await mobilenetV2()
 * encoder.grid({}).segments // [{ frames: 1, rows: 7, columns: 7 }]
 */
export async function mobilenetV2(options: string | MobilenetV2Options = {}): Promise<OnnxImageEncoder> {
  const given = typeof options === 'string' ? { model: options } : options
  const encoder = await onnxImage({
    output: beforeGlobalPool,
    preprocessing: mobilenetV2Preprocessing,
    label: 'MobileNetV2',
    ...given,
    model: given.model ?? embeddedModel(),
  })
  // A recipe with the family's own defaults left out names the family; anything else is the general encoder's.
  const usual = given.output === undefined && given.preprocessing === undefined && given.label === undefined
  return usual && encoder.recipe !== undefined ? { ...encoder, recipe: { ...encoder.recipe, family: 'mobilenetV2', options: {} } } : encoder
}

function embeddedModel(): string {
  // Compiled, this file lies one folder deeper: dist/encoders.
  const up = import.meta.url.endsWith('.ts') ? '../' : '../../'
  const file = fileURLToPath(new URL(`${up}examples/tiny/encoder.onnx`, import.meta.url))
  if (existsSync(file)) return file
  throw new ModalignError({
    code: 'ENCODER_MISSING',
    file,
    got: 'no such file',
    expected: 'the encoder that comes with the package',
    hint: 'name an ONNX file of MobileNetV2',
  })
}

/** What the global pool pools; in a file that was cut there already, its only output. */
function beforeGlobalPool(model: ModelProto): string {
  const pools = (model.graph?.node ?? []).filter(({ opType }) => opType === 'GlobalAveragePool' || opType === 'ReduceMean')
  const [pool] = pools
  const found =
    pools.length === 1 ? pool?.input[0] : pools.length === 0 && model.graph?.output.length === 1 ? model.graph.output[0]?.name : undefined
  if (found !== undefined) return found
  throw new ModalignError({
    code: 'ENCODER_CONTRACT',
    got: `${pools.length} global pools`,
    expected: 'one, as MobileNetV2 has',
    hint: 'name the tensor: { output: ... }',
  })
}
