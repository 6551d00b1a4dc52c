import { z } from 'zod'
import { type DatasetReport, validateDataset } from '../../../datasets/index.ts'
import { excerpt, renderError } from '../../errors.ts'
import { fileSource } from '../../io/byte-source.ts'
import { defineCommand } from '../command.ts'
import { datasetHelp, datasetSettings, openDataset } from '../dataset-settings.ts'
import { exitCodes } from '../exit-codes.ts'
import { countText, table } from '../table.ts'
import type { Terminal } from '../terminal.ts'

export const dataValidateCommand = defineCommand({
  settings: z.strictObject({
    ...datasetSettings,
    limit: z.int().min(0).default(100),
    checkFiles: z.boolean().default(true),
  }),
  help: {
    ...datasetHelp,
    limit: 'how many problems to tell in full (all are counted); default 100',
    'check-files': 'look at every media file; --no-check-files leaves that out',
  },
  positionals: [{ name: 'PATH', setting: 'path', help: 'a JSON or JSONL file of records' }],
  async run({ limit, checkFiles, ...dataset }, { terminal }) {
    // A path that is wrong is a mistake on the command line, not a problem of the data.
    await fileSource(dataset.path)
    const report = await validateDataset(openDataset(dataset), { limit, checkFiles })
    for (const problem of report.problems) {
      terminal.record({ type: 'problem', ...problem })
      terminal.line(renderError(problem))
    }
    const { problems: _, ...counts } = report
    terminal.record({ type: 'report', ...counts })
    show(report, terminal)
    return report.problemCount === 0 ? exitCodes.ok : exitCodes.data
  },
})

function show(report: DatasetReport, terminal: Terminal): void {
  const { records, good, textOnly, turns, media, files, problemCount, problems, byCode, byDirectory, warnings, complete } = report
  if (problemCount > problems.length) terminal.line(`... and ${countText(problemCount - problems.length)} more`)
  if (problems.length > 0) terminal.line()
  const kinds = Object.entries(media).flatMap(([kind, count]) => (count > 0 ? [`${countText(count)} ${kind} references`] : []))
  terminal.line(
    `${countText(records)} records (${countText(good)} good, ${countText(textOnly)} without media), ${[`${countText(turns)} turns`, ...kinds, `${countText(files)} files looked at`].join(', ')}`,
  )
  if (!complete) terminal.line(terminal.paint('yellow', 'the file could not be read to its end: what follows the last problem is unknown'))
  const group = (rows: readonly (readonly string[])[]): void => {
    for (const line of table(rows)) terminal.line(`  ${line}`)
  }
  if (problemCount === 0) terminal.line(terminal.paint('green', 'no problems'))
  else {
    terminal.line(terminal.paint('red', problemCount === 1 ? '1 problem' : `${countText(problemCount)} problems`))
    group(byCode.map(({ code, count }) => [countText(count), code]))
    if (byDirectory.length > 0) terminal.line('by folder')
    group(byDirectory.slice(0, 20).map(({ directory, code, count }) => [countText(count), code, excerpt(directory)]))
  }
  if (warnings.length > 0) terminal.line('worth knowing')
  group(warnings.map(({ count, first }) => [countText(count), renderError(first)]))
}
