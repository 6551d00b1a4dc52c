/** AbortSignal semantics that every call of the runtime shares. */

/** The error with which an aborted call rejects: always named `AbortError`, whatever the reason given to `abort()` was. */
export function abortError(signal: AbortSignal): Error {
  const reason: unknown = signal.reason
  if (reason instanceof Error && reason.name === 'AbortError') return reason
  const error = new Error(reason instanceof Error ? reason.message : reason === undefined ? 'the call was aborted' : String(reason), {
    cause: reason,
  })
  error.name = 'AbortError'
  return error
}

/**
 * The promise, or a rejection as soon as one of the signals is aborted. What the promise stands for is not stopped; its late result is
 * dropped and its late rejection does not go unhandled.
 */
export function unlessAborted<T>(promise: Promise<T>, signals: readonly { signal: AbortSignal; error: () => Error }[]): Promise<T> {
  return new Promise((resolve, reject) => {
    const listeners = signals.map(({ signal, error }) => ({ signal, listener: () => settle(() => reject(error())) }))
    const settle = (act: () => void) => {
      for (const { signal, listener } of listeners) signal.removeEventListener('abort', listener)
      act()
    }
    for (const { signal, listener } of listeners) {
      if (signal.aborted) queueMicrotask(listener)
      else signal.addEventListener('abort', listener)
    }
    promise.then(
      (value) => settle(() => resolve(value)),
      (error: unknown) => settle(() => reject(error)),
    )
  })
}
