/** Chat messages with media beside them: the JSON array or JSON Lines files that LLaMA-Factory and its kin read. */
import { basename, dirname, extname } from 'node:path'
import type { DatasetSource } from '../src/model/contracts.ts'
import { type ConversationOptions, conversationSamples, type RecordLayout } from './conversation-records.ts'

export interface MessagesOptions extends ConversationOptions {
  /** Folder that the records' media paths are relative to; default: the folder of the file. */
  readonly root?: string
  /** Default: the file's name without its extension. */
  readonly name?: string
}

export interface MessagesSource extends DatasetSource {
  readonly path: string
  /** Folder that media sources are relative to. */
  readonly root: string
}

/**
 * A file of chat messages as a dataset. Samples come in file order, in constant memory; nothing is read before the iteration begins.
 *
 * A record is `{ id?, images?, audios?, videos?, messages: [{ role, content }, ...] }`; the media are lists of paths. The k-th `<image>`, `<audio>` or `<video>` in the user
 * messages stands for the k-th path of its kind, in whatever turn it is. Everything else is as in `llava`: order of roles, plain text, ids, and the fields that are kept.
 *
 * @throws ModalignError while iterating, as `llava` does
 * @example
 * for await (const { id, turns } of messages('mllm_demo.json').samples()) console.log(id, turns.length)
 */
export function messages(path: string, options: MessagesOptions = {}): MessagesSource {
  const name = options.name ?? basename(path, extname(path))
  return {
    name,
    path,
    root: options.root ?? dirname(path),
    samples: (sampleOptions) => conversationSamples(path, name, layout, options, sampleOptions),
  }
}

const layout: RecordLayout = {
  turns: 'messages',
  role: 'role',
  text: 'content',
  otherRole: 'from',
  media: { image: 'images', audio: 'audios', video: 'videos' },
  roles: new Map([
    ['user', 'user'],
    ['assistant', 'assistant'],
    ['system', 'system'],
  ]),
}
