/** A model of a gigabyte: its weights stay in their file, and the first forward starts soon after ONNX Runtime could. */
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect } from 'vitest'
import { z } from 'zod'
import { repository, stage } from './packaging.ts'
import { longOnly, skipWithout } from './skip.ts'

const run = promisify(execFile)
const figures = z.record(z.string(), z.number())

skipWithout(process.env.MODALIGN_LONG === '1' ? undefined : longOnly).test(
  'a model of a gigabyte is loaded without a copy of it',
  async () => {
    const folder = await mkdtemp(join(tmpdir(), 'modalign-load-'))
    try {
      // Compiled, as it is published: loading TypeScript would take longer than what is measured.
      stage(folder)
      await symlink(join(repository, 'node_modules'), join(folder, 'node_modules'))
      const { stdout } = await run(process.execPath, [join(folder, 'dist/test/bench/main.js'), 'load', '--json'], {
        env: { ...process.env, NODE_OPTIONS: '' },
      })
      const found = figures.parse(JSON.parse(stdout))
      console.log(stdout)
      expect(found.checkpointBytes).toBeGreaterThan(1e9)
      expect(found.bufferBytes).toBeLessThan(64e6)
      // Repacked, the weights are there once more, in ONNX Runtime. Mapped, as here, nothing but the program itself has memory.
      if (existsSync('/proc/self/smaps_rollup')) {
        expect(found.anonymousBytes).toBeGreaterThan(0)
        expect(found.anonymousBytes).toBeLessThan(0.35 * (found.checkpointBytes ?? 0))
      }
      // The bench's limit is 1.3, on a machine that does nothing else: here others may compute on the second core.
      expect(found.ratioToOrt).toBeLessThan(2)
    } finally {
      await rm(folder, { recursive: true, force: true })
    }
  },
)
