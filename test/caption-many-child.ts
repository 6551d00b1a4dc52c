/** `caption-many-child.mjs ITEMS OUTPUT`: captions so many made-up items, and then again with a new one in front, and prints both summaries. */
import { type CaptionItem, captionJob } from '../src/jobs/caption.ts'

const [count = '', path = ''] = process.argv.slice(2)

async function* items(first: number): AsyncGenerator<CaptionItem, void, undefined> {
  for (let index = first; index < Number(count); index++) {
    const id = `folder-${Math.floor(index / 1000)}/a-picture-with-a-name-${index}.jpg`
    yield { id, source: id }
  }
}

for (const first of [0, -1]) {
  const summary = await captionJob({
    items: items(first),
    caption: async (batch) => batch.map(({ id }) => ({ caption: `what is to be seen on ${id}` })),
    output: { path, format: 'jsonl' },
    spec: {},
    batchSize: 64,
    onBad: 'skip',
  })
  console.log(JSON.stringify(summary))
}
