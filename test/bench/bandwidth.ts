/**
 * How fast this machine reads memory that is in no cache: the bound of decoding, which reads every weight for every token. The best of three ways, because none is the
 * fastest one at all times.
 */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { workerModule } from '../../src/runtime/typescript-worker.ts'
import type { ReadingWay } from './bandwidth-worker.ts'

/** Many times the last cache of a large server. */
const bytes = 2 ** 29
const pageBytes = 2 ** 16
/** Four streams of whole cache lines. */
const granuleBytes = 256
const ways: readonly ReadingWay[] = ['memchr', 'streams', 'own']

export interface Bandwidth extends AsyncDisposable {
  /** Reads everything a few times. @returns the best bytes per second so far, over `passes` in a row. */
  measure(): Promise<number>
}

/**
 * @param threads that read at a time, as many as the model's
 * @param passes over half a gigabyte that one figure is of: what others do on the machine shows in a short time's best less than in a long one's, so both sides
 * of a ratio must be of times alike
 */
export async function openBandwidth(threads: number, passes: number): Promise<Bandwidth> {
  const memory = new WebAssembly.Memory({ initial: bytes / pageBytes, maximum: bytes / pageBytes, shared: true })
  // Written once, so that every page is there.
  Buffer.from(memory.buffer).fill(2)
  const length = Math.floor(bytes / threads / granuleBytes) * granuleBytes
  const entry = new URL(import.meta.url.endsWith('.ts') ? './bandwidth-worker.ts' : './bandwidth-worker.js', import.meta.url)
  const workers = Array.from(
    { length: threads },
    (_, thread) => new Worker(workerModule(entry), { workerData: { memory, start: thread * length, length } }),
  )
  const read = (way: ReadingWay): Promise<unknown> =>
    Promise.all(
      workers.map((worker) => {
        worker.postMessage(way)
        return once(worker, 'message')
      }),
    )
  for (const way of ways) await read(way)
  let best = 0
  return {
    async measure() {
      for (let run = 0; run < 4; run++) {
        for (const way of ways) {
          const started = performance.now()
          for (let pass = 0; pass < passes; pass++) await read(way)
          best = Math.max(best, (passes * threads * length) / ((performance.now() - started) / 1000))
        }
      }
      return best
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(workers.map((worker) => worker.terminate()))
    },
  }
}
