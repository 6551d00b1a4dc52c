/** Reads its share of a shared buffer when told to. */
import { parentPort, workerData } from 'node:worker_threads'
import { z } from 'zod'

const { memory, start, length } = z.object({ memory: z.instanceof(SharedArrayBuffer), start: z.int(), length: z.int() }).parse(workerData)
const share = Buffer.from(memory, start, length)
// memchr of a byte that is not there: the C library reads everything, as fast as it can.
parentPort?.on('message', () => parentPort?.postMessage(share.indexOf(1)))
