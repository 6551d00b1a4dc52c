/** How fast this machine reads memory that is in no cache: the bound of decoding, which reads every weight for every token. */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { workerModule } from '../../src/runtime/typescript-worker.ts'

const bytes = 2 ** 28

export interface Bandwidth extends AsyncDisposable {
  /** Reads everything a few times. @returns the best bytes per second so far. */
  measure(): Promise<number>
}

/** @param threads that read at a time, as many as the model's. */
export async function openBandwidth(threads: number): Promise<Bandwidth> {
  const memory = new SharedArrayBuffer(bytes)
  // Written once, so that every page is there.
  Buffer.from(memory).fill(2)
  const length = Math.floor(bytes / threads)
  const entry = new URL(import.meta.url.endsWith('.ts') ? './bandwidth-worker.ts' : './bandwidth-worker.js', import.meta.url)
  const workers = Array.from(
    { length: threads },
    (_, thread) => new Worker(workerModule(entry), { workerData: { memory, start: thread * length, length } }),
  )
  const read = (): Promise<unknown> =>
    Promise.all(
      workers.map((worker) => {
        worker.postMessage('read')
        return once(worker, 'message')
      }),
    )
  await read()
  let best = 0
  return {
    async measure() {
      for (let run = 0; run < 8; run++) {
        const started = performance.now()
        await read()
        best = Math.max(best, (threads * length) / ((performance.now() - started) / 1000))
      }
      return best
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(workers.map((worker) => worker.terminate()))
    },
  }
}
