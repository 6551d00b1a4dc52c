/** What `load.ts` asks of a process of its own, and what that answers. */
import { z } from 'zod'

export const jobSchema = z.discriminatedUnion('mode', [
  z.object({ mode: z.literal('ort'), graph: z.string(), externalRoot: z.string() }),
  z.object({ mode: z.literal('model'), folder: z.string(), preload: z.boolean(), prepacking: z.boolean() }),
])
export type LoadJob = z.infer<typeof jobSchema>

/** Of ONNX Runtime alone: until the session is there. */
export const ortSchema = z.object({ seconds: z.number() })
export const modelSchema = z.object({
  /** From the call of `loadLanguageModel` until it gives the model. */
  loadSeconds: z.number(),
  /** From the first call that generates until the first run can start. */
  openSeconds: z.number(),
  /** From the call of `loadLanguageModel` until the first run can start: the session is open, and the prompt's tokens are there. */
  startSeconds: z.number(),
  /** ... until the first token has come. */
  tokenSeconds: z.number(),
  /** The most that buffers of JavaScript's main thread have taken in all that time. */
  bufferBytes: z.number(),
  /** The most that the process came to hold of its own, without mapped files: all threads, native memory included. Absent where there is no /proc. */
  anonymousBytes: z.number().optional(),
})
