// transformers.js: node transformers-js.mjs HUB DTYPE IDS TOKENS prints its first token's milliseconds and tokens a second as JSON. Runs from the folder it is installed in.
import { AutoModelForCausalLM, env, Tensor } from '@huggingface/transformers'

const [hub, dtype, json, count] = process.argv.slice(2)
env.localModelPath = hub
env.allowRemoteModels = false
const ids = JSON.parse(json)
const tokens = Number(count)
const model = await AutoModelForCausalLM.from_pretrained('smollm2', { dtype, device: 'cpu', use_external_data_format: true })

async function generate() {
  const times = []
  const started = performance.now()
  const input_ids = new Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length])
  const attention_mask = new Tensor('int64', new BigInt64Array(ids.length).fill(1n), [1, ids.length])
  const streamer = { put: () => times.push(performance.now()), end() {} }
  const output = await model.generate({
    input_ids,
    attention_mask,
    do_sample: false,
    max_new_tokens: tokens,
    min_new_tokens: tokens,
    streamer,
  })
  // The streamer is given the prompt first.
  const [, first] = times
  return [first - started, ((tokens - 1) * 1000) / (times.at(-1) - first), Array.from(output.data, Number).slice(ids.length)]
}

await generate()
const runs = [await generate(), await generate()]
console.log(
  JSON.stringify({
    firstTokenMs: Math.min(...runs.map(([first]) => first)),
    tokensPerSecond: Math.max(...runs.map(([, rate]) => rate)),
    ids: runs[0][2],
  }),
)
