#!/usr/bin/env node
/** The program `modalign`. Nothing is imported before the Node version is known to run it. */
const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)

function fail(text: string, exitCode: number): void {
  process.stderr.write(`${text}\n`)
  process.exitCode = exitCode
}

if (major < 20 || (major === 20 && minor < 19)) {
  fail(`modalign needs Node.js 20.19 or newer; this is ${process.versions.node}`, 4)
} else {
  // What escapes everything else is a defect: say where, and end; a half-alive process would only wait.
  const crash = (error: unknown): void => {
    process.stderr.write(
      `${error instanceof Error ? error.stack : String(error)}\nthis is a defect of modalign: please report it with the lines above\n`,
    )
    process.exit(70)
  }
  process.on('uncaughtException', crash)
  process.on('unhandledRejection', crash)
  const argv = process.argv.slice(2)
  const { commandOf } = await import('./registry.ts')
  if (commandOf(argv)?.readsWeights) (await import('../runtime/huge-pages.ts')).restartWithHugePages()
  const { run } = await import('./run.ts')
  // Idle workers and processes do not hold the event loop, also while one waits for their end: the command does.
  const running = setInterval(() => undefined, 2 ** 30)
  process.exitCode = await run(argv, process)
  clearInterval(running)
}

export {}
