/** Reads its share of the memory when told to, in one of three ways. */
import { parentPort, workerData } from 'node:worker_threads'
import { z } from 'zod'

/** `bandwidth-streams.wat`, assembled (`wat2wasm --enable-threads`, wabt 1.0). */
const program =
  'AGFzbQEAAAABBwFgAn9/AX8CGAEJYmFuZHdpZHRoBm1lbW9yeQIDAYCABAMCAQAHCAEEcmVhZAAACvMBAfABAgV/BHsgAUECdiEGIAAgBmohAiACIAZqIQMgAyAGaiEEIAIhBQNAIA' +
  'cgAP0ABAAgAP0ABBD9UCAA/QAEICAA/QAEMP1Q/VD9UCEHIAggAv0ABAAgAv0ABBD9UCAC/QAEICAC/QAEMP1Q/VD9UCEIIAkgA/0ABAAgA/0ABBD9UCAD/QAEICAD/QAEMP1Q/VD9' +
  'UCEJIAogBP0ABAAgBP0ABBD9UCAE/QAEICAE/QAEMP1Q/VD9UCEKIABBwABqIQAgAkHAAGohAiADQcAAaiEDIARBwABqIQQgACAFSQ0ACyAHIAj9UCAJIAr9UP1Q/VML'

const { memory, start, length } = z.object({ memory: z.instanceof(WebAssembly.Memory), start: z.int(), length: z.int() }).parse(workerData)
const share = Buffer.from(memory.buffer, start, length)
const own = Buffer.alloc(length, 2)
const { exports } = new WebAssembly.Instance(new WebAssembly.Module(Buffer.from(program, 'base64')), { bandwidth: { memory } })
const { read } = z
  .object({ read: z.custom<(start: number, length: number) => number>((value) => typeof value === 'function') })
  .parse(exports)

const ways = {
  /** memchr of a byte that is not there: the C library reads everything, one stream, as fast as it can. */
  memchr: () => share.indexOf(1),
  streams: () => read(start, length),
  /** memchr over memory as the C library gives it, on huge pages where it asks for them (WebAssembly's never lies on such). */
  own: () => own.indexOf(1),
} as const
export type ReadingWay = keyof typeof ways

parentPort?.on('message', (way: ReadingWay) => parentPort?.postMessage(ways[way]()))
