/** Memory that is given back at once. */
import { MessageChannel } from 'node:worker_threads'

const { port1: nowhere, port2 } = new MessageChannel()
// In the next turn of the event loop; messages sent before go then.
port2.close()
nowhere.unref()

/**
 * Frees buffers now instead of when the garbage collector next finds them: they move into a message that nobody gets. V8 collects the whole heap whenever so many megabytes of buffers
 * might be dead, and that costs more than what makes and reads them; whoever goes through thousands of large ones says when each is. Views of them have length 0 from then on.
 *
 * @param buffers each once, of the caller's alone; memory that threads share stays as it is
 * @example
 * const bytes = new Uint8Array(2 ** 20)
 * release([bytes.buffer]) // bytes.length === 0
 */
export function release(buffers: Iterable<ArrayBufferLike>): void {
  nowhere.postMessage(
    null,
    [...buffers].filter((buffer): buffer is ArrayBuffer => buffer instanceof ArrayBuffer && buffer.byteLength > 0),
  )
}
