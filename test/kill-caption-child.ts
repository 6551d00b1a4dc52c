/** Runs one captioning job, given as JSON in the first argument: the process that the kill tests kill. */
import { killJobSchema, runKillJob } from './kill-caption-job.ts'

const summary = await runKillJob(killJobSchema.parse(JSON.parse(process.argv[2] ?? '')))
process.stdout.write(`${JSON.stringify(summary)}\n`)
