/** `npm run bench -- NAME [--json]`: one bench, its figures and the limit beside them. */
import { parseArgs } from 'node:util'
import { benchEncode } from './encode.ts'
import { benchGenerate } from './generate.ts'
import { benchLoad } from './load.ts'
import { benchPages } from './pages.ts'
import { benchStep } from './step.ts'

const benches = { encode: benchEncode, generate: benchGenerate, load: benchLoad, pages: benchPages, step: benchStep } as const

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { json: { type: 'boolean', default: false } } })
  const [name = ''] = positionals
  if (!isBench(name)) {
    console.error(`usage: npm run bench -- ${Object.keys(benches).join('|')} [--json]`)
    return 2
  }
  const figures = await benches[name]()
  if (values.json) console.log(JSON.stringify(figures))
  else
    for (const [figure, value] of Object.entries(figures))
      console.log(`${figure.padEnd(20)} ${typeof value === 'number' ? Number(value.toPrecision(4)) : value}`)
  return 0
}

function isBench(name: string): name is keyof typeof benches {
  return Object.hasOwn(benches, name)
}

process.exitCode = await main()
