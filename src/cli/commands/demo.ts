import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { runDemo } from '../../../examples/tiny/demo.ts'
import { pathSchema } from '../catalogues.ts'
import { defineCommand } from '../command.ts'
import { exitCodes } from '../exit-codes.ts'
import { listenForInterrupts } from '../interrupts.ts'

export const demoCommand = defineCommand({
  settings: z.strictObject({ output: pathSchema.optional(), seed: z.int().min(0).default(0) }),
  help: { output: 'a new folder for the pictures, the run and the loss curve; default: one in the temporary folder', seed: 'default 0' },
  async run({ output, seed }, { io, terminal }) {
    using interrupts = listenForInterrupts(io, () => terminal.note('stopping; press Ctrl-C again to stop at once'))
    const report = await runDemo(
      { output: output ?? (await mkdtemp(join(tmpdir(), 'modalign-demo-'))), seed, signal: interrupts.signal },
      { say: (text) => (terminal.json ? terminal.note(text) : terminal.line(text)), progress: io.stderr },
    )
    terminal.record({ type: 'demo', ...report })
    return interrupts.exitCode ?? exitCodes.ok
  },
})
