import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { setTimeout as pause } from 'node:timers/promises'
import { z } from 'zod'
import { type CaptionSummary, captionJob } from '../src/jobs/caption.ts'
import { type InputItem, inputItems } from '../src/jobs/inputs.ts'

/** The captioning job that the kill tests kill: real files, real disk; the caption is computed from the file's bytes. */
export const killJobSchema = z.strictObject({
  input: z.string(),
  output: z.string(),
  format: z.enum(['jsonl', 'csv', 'txt']),
  /** How long a batch takes, so that there is something to be killed in. */
  batchMs: z.number(),
})
export type KillJob = z.infer<typeof killJobSchema>

export async function runKillJob({ input, output, format, batchMs }: KillJob): Promise<CaptionSummary> {
  const { items } = await inputItems(input)
  return captionJob({
    items,
    caption: async (batch) => {
      if (batchMs > 0) await pause(batchMs)
      return Promise.all(batch.map(caption))
    },
    output: { path: output, format },
    spec: { prompt: 'Describe the picture.', model: 'sha256' },
    batchSize: 4,
    onBad: 'skip',
    syncIntervalMs: 0,
  })
}

async function caption({ id, path }: InputItem) {
  const bytes = await readFile(path)
  if (bytes.length === 0) return { error: { code: 'IMAGE_EMPTY', file: id, got: '0 bytes', expected: 'an image' } }
  return { caption: `${id},\n"${createHash('sha256').update(bytes).digest('base64')}" é` }
}
