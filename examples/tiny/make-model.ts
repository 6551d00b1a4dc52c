/**
 * Puts a projector that the demo has tuned into the package, beside the pair that it belongs to:
 *
 *     npm run demo -- --output runs/demo && npx tsx examples/tiny/make-model.ts runs/demo/run/model
 */
import { fileURLToPath } from 'node:url'
import { readParameters, saveModel } from '../../src/model/saved-model.ts'
import { composePair } from './pair.ts'

const [tuned] = process.argv.slice(2)
if (tuned === undefined) {
  console.error('usage: npx tsx examples/tiny/make-model.ts FOLDER')
  process.exitCode = 2
} else {
  const model = await composePair()
  model.setParameters(await readParameters(`${tuned}/projector.safetensors`))
  await saveModel(model, fileURLToPath(new URL('./model', import.meta.url)))
  await model.dispose()
  await model.llm.dispose()
}
