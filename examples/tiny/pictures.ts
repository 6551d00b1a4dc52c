/** The demonstration's dataset on disk: PNG files and LLaVA records, made from the drawings' packages. */
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import sharp from 'sharp'
import { writeFileAtomic } from '../../src/io/atomic.ts'
import { nodeFs } from '../../src/io/fs-ops.ts'
import { type Concept, openDrawings, type Style } from './drawings.ts'
import { datasetRecords, drawingPath, evaluationRecords, type LlavaRecord } from './drawings-records.ts'

export interface WrittenStyle {
  readonly style: Style
  /** The LLaVA file; its images lie below the same folder. */
  readonly file: string
  readonly records: readonly LlavaRecord[]
}

/**
 * Draws every concept in one style and writes the records about it: `<folder>/<style>/<id>.png` and `<folder>/<style>.json`.
 *
 * @param purpose `tune`: several questions about each picture; `evaluate`: "What is this?" alone.
 */
export async function writeStyle(
  folder: string,
  style: Style,
  concepts: readonly Concept[],
  purpose: 'tune' | 'evaluate',
  { seed, onDrawn, signal }: { readonly seed: number; readonly onDrawn?: () => void; readonly signal?: AbortSignal },
): Promise<WrittenStyle> {
  await nodeFs.mkdir(join(folder, style))
  const drawings = await openDrawings(style)
  const waiting = [...concepts]
  const draw = async (): Promise<void> => {
    for (let concept = waiting.shift(); concept !== undefined; concept = waiting.shift()) {
      signal?.throwIfAborted()
      const { width, height, data } = await drawings.render(concept)
      // Files of a demonstration that can be drawn again: no need to wait for the disk with each.
      await sharp(data, { raw: { width, height, channels: 3 } })
        .png({ compressionLevel: 1 })
        .toFile(join(folder, drawingPath(style, concept)))
      onDrawn?.()
    }
  }
  await Promise.all(Array.from({ length: 2 * availableParallelism() }, draw))
  const records = purpose === 'tune' ? tuningRecords(style, concepts, seed) : evaluationRecords(style, concepts)
  const file = join(folder, `${style}.json`)
  await writeFileAtomic(file, `${JSON.stringify(records)}\n`)
  return { style, file, records }
}

/** "What is this?" about every drawing, and a question of another kind about every fourth: the name is what is measured, and time is short. */
function tuningRecords(style: Style, concepts: readonly Concept[], seed: number): readonly LlavaRecord[] {
  const several = datasetRecords(style, concepts, { seed, followUps: 1 })
  return datasetRecords(style, concepts, { seed, followUps: 0 }).map((record, index) =>
    index % 4 === 0 ? (several[index] ?? record) : record,
  )
}
