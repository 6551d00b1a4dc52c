import { z } from 'zod'
import { type ErrorData, renderError } from '../../errors.ts'
import { freeBytes } from '../../io/free-space.ts'
import { type EncodeSummary, encodeJob, encoderThreads } from '../../jobs/encode.ts'
import { type Inputs, inputItems } from '../../jobs/inputs.ts'
import { createImageDecoder } from '../../media/child-decoder.ts'
import { gridVaries } from '../../model/branches.ts'
import type { Encoder } from '../../model/contracts.ts'
import { decodingReader } from '../../model/media-reader.ts'
import { gridTokens } from '../../model/token-grid.ts'
import { devices, withoutUndefined } from '../../runtime/session.ts'
import { type FeatureStore, featureDtypes, openFeatureStore, payloadBytes } from '../../training/feature-store.ts'
import { type Progress, showProgress } from '../../training/progress-writer.ts'
import { encoderEntrySchema, makeEncoder } from '../catalogue-entries.ts'
import { pathSchema } from '../catalogues.ts'
import { defineCommand } from '../command.ts'
import { commandText } from '../command-text.ts'
import { downloading } from '../downloading.ts'
import { exitCodes } from '../exit-codes.ts'
import { listenForInterrupts } from '../interrupts.ts'
import { extensionsOf, units } from '../media-kinds.ts'
import { bytesText, countText } from '../table.ts'
import type { Terminal } from '../terminal.ts'

const settings = z.strictObject({
  input: pathSchema,
  cache: pathSchema,
  encoder: encoderEntrySchema,
  cacheDtype: z.enum(featureDtypes).default('float16'),
  batchSize: z.int().min(1).max(4096).default(16),
  onBad: z.enum(['fail', 'skip']).default('skip'),
  root: pathSchema.optional(),
  download: z.boolean().optional(),
  device: z.enum(['auto', ...devices]).optional(),
  threads: z.int().min(1).max(1024).optional(),
})

export const encodeCommand = defineCommand({
  settings,
  help: {
    cache: 'the folder of the feature store; `modalign tune --cache` reads it',
    encoder: 'mobilenetV2, {family: siglip, model: FOLDER}, ..., or ./FILE.js#EXPORT: as tune names it',
    'cache-dtype': 'how features are kept: float32, float16 (default) or int8, one scale a channel',
    'batch-size': 'media in one run of the encoder; default 16',
    'on-bad': 'a medium that cannot be used ends the job, or is counted and told (default skip)',
    root: 'the folder that no medium may lie outside of; default: where the input begins',
    download: 'fetch an encoder that is named, and not in the Hugging Face cache, from the Hub',
    device: 'where to compute; default auto',
    threads: 'threads on the CPU; default: the cores',
  },
  positionals: [
    { name: 'INPUT', setting: 'input', help: 'a folder, a pattern such as photos/**/*.jpg, a JSONL file with "source", or one medium' },
  ],
  async run(given, { io, terminal, argv }) {
    const shared = encoderThreads(given.threads)
    const encoder = await makeEncoder(given.encoder, {
      ...withoutUndefined({ device: given.device, ...shared }),
      ...downloading(given.download, terminal),
    })
    let progress: Progress | undefined
    using interrupts = listenForInterrupts(io, () => progress?.message('stopping after this batch; press Ctrl-C again to stop at once'))
    try {
      await using decoder = createImageDecoder()
      await using store = await openFeatureStore(given.cache, { dtype: given.cacheDtype })
      const inputs = await inputItems(given.input, { root: given.root, extensions: extensionsOf[encoder.modality] })
      const total = await announce(inputs, encoder, store, terminal)
      progress = showProgress({ label: 'encode', total, unit: units[encoder.modality], stream: io.stderr, env: io.env })
      const summary = await encodeJob({
        items: inputs.items,
        encoder,
        reader: decodingReader(decoder),
        store,
        batchSize: given.batchSize,
        batchesAtOnce: shared.sessions + 2,
        onBad: given.onBad,
        onBadItem: ({ id, source }, error) => tellBad(id, source, error, terminal, progress),
        signal: interrupts.signal,
        onProgress: ({ encoded, known, bad }) => progress?.update(encoded + known + bad, bad > 0 ? [['bad', String(bad)]] : []),
      })
      progress.finish()
      conclude(summary, store, terminal)
      if (summary.status === 'finished') return summary.bad > 0 ? exitCodes.skipped : exitCodes.ok
      terminal.note(`Go on with: ${commandText(argv)}`)
      return interrupts.exitCode ?? exitCodes.interrupted
    } finally {
      progress?.finish()
      await encoder.dispose()
    }
  },
})

/** Says how much there is to do and how much disk it takes, before any work. */
async function announce({ items }: Inputs, encoder: Encoder, store: FeatureStore, terminal: Terminal): Promise<number> {
  let total = 0
  for await (const _ of items) total++
  const free = await freeBytes(store.folder)
  const each = gridVaries(encoder) ? undefined : payloadBytes(gridTokens(encoder.grid({})), encoder.width, store.dtype)
  terminal.record({ type: 'start', total, bytesEach: each ?? null, bytesFree: free })
  const size =
    each === undefined ? 'their size hangs on their length' : `${bytesText(each)} each as ${store.dtype}, ${bytesText(each * total)} in all`
  terminal.note(`${countText(total)} ${units[encoder.modality]}: ${size}; ${bytesText(free)} free in ${store.folder}`)
  if (each !== undefined && each * total > free) terminal.note('This will not fit, unless the store has much of it already.')
  if (store.readOnly) terminal.note('The store can only be read here: nothing will be kept.')
  return total
}

function tellBad(id: string, source: string, error: ErrorData, terminal: Terminal, progress: Progress | undefined): void {
  terminal.record({ type: 'bad', id, source, ...error })
  progress?.message(renderError({ file: source, ...error }))
}

function conclude(summary: EncodeSummary, { counts, folder }: FeatureStore, terminal: Terminal): void {
  const { encoded, known, bad, byCode } = summary
  terminal.record({ type: 'summary', output: folder, ...summary, ...counts })
  terminal.note(`${encoded} encoded, ${known} stored before, ${bad} bad: ${folder}`)
  for (const [code, count] of Object.entries(byCode)) terminal.note(`  ${count} x ${code}`)
  if (counts.damaged > 0) terminal.note(`${counts.damaged} damaged records were computed again (${counts.firstDamage})`)
  if (counts.widened > 0) terminal.note(`${counts.widened} were kept as float32: a value is too large for float16`)
}
