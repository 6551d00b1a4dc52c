import { z } from 'zod'
import { type DeviceDiagnosis, type Diagnosis, diagnose, type ProgramDiagnosis } from '../../runtime/doctor.ts'
import { defineCommand } from '../command.ts'
import { exitCodes } from '../exit-codes.ts'
import { type Terminal, wrapped } from '../terminal.ts'

export const doctorCommand = defineCommand({
  settings: z.strictObject({
    ffmpeg: z.string().min(1).optional(),
    timeoutSeconds: z.number().positive().max(3600).optional(),
  }),
  help: { ffmpeg: 'the ffmpeg program to look at', 'timeout-seconds': 'for one device; default 120' },
  async run({ ffmpeg, timeoutSeconds }, { terminal }) {
    const diagnosis = await diagnose({
      ...(ffmpeg !== undefined && { ffmpeg }),
      ...(timeoutSeconds !== undefined && { timeoutMs: 1000 * timeoutSeconds }),
    })
    terminal.record({ type: 'diagnosis', ...diagnosis })
    show(diagnosis, terminal)
    return diagnosis.auto === undefined || !diagnosis.node.works ? exitCodes.environment : exitCodes.ok
  },
})

const nameWidth = 12

function show(diagnosis: Diagnosis, terminal: Terminal): void {
  const { node, platform, threads, memory, onnxruntime } = diagnosis
  const row = (name: string, text: string): void =>
    terminal.line(`${terminal.paint('bold', name.padEnd(nameWidth))}${wrapped(text, terminal.columns - nameWidth, ' '.repeat(nameWidth))}`)
  const gigabytes = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`
  row('machine', `${platform.os} ${platform.arch} ${platform.release}, ${threads} threads`)
  const limit = memory.constrainedBytes === undefined ? '' : `, of which this container may use ${gigabytes(memory.constrainedBytes)}`
  row('memory', `${gigabytes(memory.freeBytes)} free of ${gigabytes(memory.totalBytes)}${limit}`)
  if (diagnosis.hugePages !== undefined) row('huge pages', hugePagesText(diagnosis.hugePages))
  row('node', node.works ? node.version : `${node.version}, too old: ${node.required} or newer is needed`)
  row('onnxruntime', `${programText(onnxruntime.node)} (native), ${programText(onnxruntime.web)} (WASM)`)
  row('sharp', programText(diagnosis.sharp))
  row('ffmpeg', programText(diagnosis.ffmpeg))
  terminal.line()
  for (const device of diagnosis.devices) {
    const mark = device.works ? terminal.paint('green', 'works') : terminal.paint('yellow', 'does not work')
    terminal.line(`${terminal.paint('bold', device.device.padEnd(nameWidth))}${mark}`)
    for (const line of detailsOf(device))
      terminal.line(`${' '.repeat(nameWidth)}${wrapped(line, terminal.columns - nameWidth, ' '.repeat(nameWidth))}`)
  }
  terminal.line()
  terminal.line(diagnosis.auto === undefined ? 'no device works' : `auto takes ${terminal.paint('bold', diagnosis.auto)}`)
}

function hugePagesText({ setting, tunables, askedByItself }: NonNullable<Diagnosis['hugePages']>): string {
  if (setting === 'always') return 'given without asking'
  if (setting === 'never')
    return 'never given: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled would make language models on the CPU faster'
  const own = `GLIBC_TUNABLES=${tunables}`
  return askedByItself
    ? `asked for by tune, chat and caption; for programs of your own, set ${own}`
    : `given to those who ask. Language models on the CPU get faster with ${own}, which Node.js 22.15 and newer spare you for tune, chat and caption`
}

function programText(program: ProgramDiagnosis): string {
  if (!program.works) return `does not work: ${program.reason}. What to do: ${program.hint}`
  return program.path === undefined ? program.version : `${program.version}, ${program.path}`
}

function detailsOf(device: DeviceDiagnosis): readonly string[] {
  const reservation = device.reservation === undefined ? [] : [`auto passes it over: ${device.reservation}`]
  if (!device.works) return [`why: ${device.reason}`, `what to do: ${device.hint}`, ...reservation]
  const nodes =
    device.nodes === undefined ? '' : `, ${device.nodes.onDevice} of ${device.nodes.onDevice + device.nodes.elsewhere} nodes on it`
  return [
    `a trial took ${Math.round(device.milliseconds)} ms, largest error ${device.largestError.toExponential(1)}${nodes}`,
    ...reservation,
  ]
}
