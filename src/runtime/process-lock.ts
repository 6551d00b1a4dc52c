/**
 * One native call at a time in the whole process, across its threads. ONNX Runtime's WebGPU provider keeps one device for all sessions of a
 * process and does not guard it: two sessions that are made or run at the same time in two threads crash the process (onnxruntime-node
 * 1.30). DirectML is held to the same rule, for the crashes reported of it. The GPU would take turns anyway.
 *
 * The lock is a word of shared memory that reaches every thread as environment data. Threads that were started before this module was loaded
 * in the thread that started them have a lock of their own: start workers with `connectWorker`.
 */
import { getEnvironmentData, setEnvironmentData, threadId } from 'node:worker_threads'
import type { Device } from './session.ts'

const key = 'modalign:accelerator-lock'
const free = 0

/** The holder is the thread's id plus one: the main thread's id is 0. */
const holder = (id: number) => id + 1

function sharedWord(): Int32Array {
  const known = getEnvironmentData(key)
  if (known instanceof SharedArrayBuffer) return new Int32Array(known)
  const created = new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT)
  setEnvironmentData(key, created)
  return new Int32Array(created)
}

const word = sharedWord()

let tail: Promise<unknown> = Promise.resolve()

/** Whether calls on a device must not overlap with calls of other threads. */
export function needsProcessLock(device: Device): boolean {
  return device === 'webgpu' || device === 'directml'
}

/** Runs the work while no other thread, and no other work of this thread, holds the lock. Waiting for another thread blocks this one. */
export function whileLocked<T>(work: () => Promise<T>): Promise<T> {
  const result = tail.then(async () => {
    for (;;) {
      const before = Atomics.compareExchange(word, 0, free, holder(threadId))
      if (before === free) break
      Atomics.wait(word, 0, before)
    }
    try {
      return await work()
    } finally {
      unlock(threadId)
    }
  })
  tail = result.catch(() => undefined)
  return result
}

/** Frees the lock if that thread held it: to be called when a thread has ended. */
export function unlock(id: number): void {
  if (Atomics.compareExchange(word, 0, holder(id), free) === holder(id)) Atomics.notify(word, 0)
}
