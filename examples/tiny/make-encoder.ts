/**
 * Writes `encoder.onnx`: MobileNetV2 up to the feature map before its global pool (`t168`, float32 `[N, 1280, 7, 7]`), weights stored as float16.
 *
 *     npx tsx examples/tiny/make-encoder.ts MODEL.onnx [OUTPUT.onnx]
 *
 * ENCODER.md says where MODEL.onnx comes from.
 */
import { fileURLToPath } from 'node:url'
import { writeFileAtomic } from '../../src/io/atomic.ts'
import { makeValueInfo } from '../../src/onnx/build.ts'
import { encodeModel, withFields } from '../../src/onnx/codec.ts'
import { convertInitializersToFloat16 } from '../../src/onnx/half.ts'
import { readOnnxFile } from '../../src/onnx/load.ts'
import { exposeTensors, mainGraph } from '../../src/onnx/surgery.ts'

/** The last activation before the global pool: 49 tokens of width 1280. */
const featureMap = 't168'

const [source, output = fileURLToPath(new URL('encoder.onnx', import.meta.url))] = process.argv.slice(2)
if (source === undefined) {
  process.stderr.write('usage: npx tsx examples/tiny/make-encoder.ts MODEL.onnx [OUTPUT.onnx]\n')
  process.exitCode = 2
} else {
  const { model } = await readOnnxFile(source)
  const half = convertInitializersToFloat16(exposeTensors(model, [featureMap]))
  // The original states no shape for this value; stating it lets callers know the width without a run.
  const graph = withFields(mainGraph(half), { output: [makeValueInfo(featureMap, 'float32', ['N', 1280, 7, 7])] })
  const bytes = encodeModel(withFields(half, { graph, producerName: 'modalign' }))
  await writeFileAtomic(output, bytes)
  process.stdout.write(`${output}: ${bytes.byteLength} bytes, ${graph.node.length} nodes\n`)
}
