/**
 * Native calls of worker threads, counted, so that the process does not end under them. When Node stops a thread that is inside
 * onnxruntime-node, the binding's next call into the engine fails, which it answers by aborting the whole process (1.30): exit code 134 instead of
 * the one that was asked for. So on its way out the main thread lets calls under way end (Node would wait for their threads anyway) and no new ones begin.
 */
import { getEnvironmentData, isMainThread, setEnvironmentData } from 'node:worker_threads'

const key = 'modalign:native-calls'
/** The two words: how many calls are under way, and whether the process is ending. */
const running = 0
const ending = 1

function sharedWords(): Int32Array {
  const known = getEnvironmentData(key)
  if (known instanceof SharedArrayBuffer) return new Int32Array(known)
  const created = new SharedArrayBuffer(2 * Int32Array.BYTES_PER_ELEMENT)
  setEnvironmentData(key, created)
  return new Int32Array(created)
}

const words = sharedWords()

if (isMainThread) {
  process.on('exit', () => {
    Atomics.store(words, ending, 1)
    for (let count = Atomics.load(words, running); count > 0; count = Atomics.load(words, running)) Atomics.wait(words, running, count)
  })
}

/** Makes a call into onnxruntime-node. Never settles when the process is ending. */
export async function nativeCall<T>(call: () => Promise<T>): Promise<T> {
  // The main thread is the one that ends: nothing of its own can be under way then.
  if (isMainThread) return call()
  Atomics.add(words, running, 1)
  const mayBegin = Atomics.load(words, ending) === 0
  try {
    if (mayBegin) return await call()
  } finally {
    Atomics.sub(words, running, 1)
    Atomics.notify(words, running)
  }
  return new Promise<never>(() => {})
}
