/** LLaVA instruction data: the JSON array or JSON Lines files of LLaVA, LLaVA-NeXT, ShareGPT4V, ALLaVA and their kin. */
import { basename, dirname, extname } from 'node:path'
import type { DatasetSource } from '../src/model/contracts.ts'
import { type ConversationOptions, conversationSamples, type RecordLayout } from './conversation-records.ts'

export interface LlavaOptions extends ConversationOptions {
  /** Folder that the records' image paths are relative to; default: the folder of the file. */
  readonly root?: string
  /** Default: the file's name without its extension. */
  readonly name?: string
}

export interface LlavaSource extends DatasetSource {
  readonly path: string
  /** Folder that media sources are relative to. */
  readonly root: string
}

/**
 * A LLaVA file as a dataset. Samples come in file order, in constant memory; nothing is read before the iteration begins.
 *
 * A record is `{ id?, image?, audio?, video?, conversations: [{ from, value }, ...] }`. `image` is a path, a list of paths, or absent in text-only records; so are
 * `audio` and `video`. The k-th `<image>` in the user turns of a record stands for its k-th image, and so on; text around it is kept as it is, newlines included. In system
 * and assistant turns a placeholder is plain text; so are `<audio>` and `<video>` in records without such media. A video without a placeholder of its own takes
 * `<image>`, as in LLaVA-NeXT's data. Roles: human or user, gpt or assistant, and system for the first turn. User and assistant alternate, and the assistant has the last word.
 * Ids may be strings or numbers (given as strings, every digit kept); records without one are named `NAME#RECORD`. All other keys are kept in
 * `origin.fields`; keys of turns likewise under `origin.fields.conversations`. Integers there that a double cannot hold become strings of their digits.
 *
 * @throws ModalignError while iterating: `DATASET_EMPTY`, `DATASET_RECORD_TYPE`, `DATASET_ID_TYPE`, `DATASET_IMAGE_TYPE`, `DATASET_AUDIO_TYPE`, `DATASET_VIDEO_TYPE`, `DATASET_CONVERSATIONS`,
 * `DATASET_TURN_TYPE`, `DATASET_ROLE`, `DATASET_ROLE_ORDER`, `DATASET_VALUE_TYPE`, `DATASET_TURN_EMPTY`, `DATASET_PLACEHOLDER_COUNT`, `PATH_ESCAPE`,
 * `PATH_URL`, `PATH_INVALID`, and what `jsonFileRecords` throws
 * @example
 * for await (const { id, turns } of llava('llava_instruct_150k.json', { root: 'coco/train2017' }).samples()) console.log(id, turns.length)
 */
export function llava(path: string, options: LlavaOptions = {}): LlavaSource {
  const name = options.name ?? basename(path, extname(path))
  return {
    name,
    path,
    root: options.root ?? dirname(path),
    samples: (sampleOptions) => conversationSamples(path, name, layout, options, sampleOptions),
  }
}

const layout: RecordLayout = {
  turns: 'conversations',
  role: 'from',
  text: 'value',
  otherRole: 'role',
  media: { image: 'image', audio: 'audio', video: 'video' },
  roles: new Map([
    ['human', 'user'],
    ['user', 'user'],
    ['gpt', 'assistant'],
    ['assistant', 'assistant'],
    ['system', 'system'],
  ]),
}
