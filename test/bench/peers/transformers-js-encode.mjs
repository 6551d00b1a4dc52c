// transformers.js: node transformers-js-encode.mjs HUB BATCH FILE... prints pictures a second as JSON: files decoded, prepared and encoded. Runs from the folder it is installed in.
import { AutoImageProcessor, AutoModel, env, RawImage } from '@huggingface/transformers'

const [hub, size, ...files] = process.argv.slice(2)
env.localModelPath = hub
env.allowRemoteModels = false
const batch = Number(size)
const processor = await AutoImageProcessor.from_pretrained('encoder')
const model = await AutoModel.from_pretrained('encoder', { dtype: 'fp32', device: 'cpu' })

async function encode(paths) {
  for (let start = 0; start < paths.length; start += batch) {
    const images = await Promise.all(paths.slice(start, start + batch).map((file) => RawImage.read(file)))
    const { last_hidden_state: features } = await model(await processor(images))
    if (features.dims[0] !== images.length) throw new Error('features of other pictures')
  }
}

await encode(files.slice(0, 16))
const started = performance.now()
await encode(files)
console.log(JSON.stringify({ imagesPerSecond: (files.length * 1000) / (performance.now() - started) }))
