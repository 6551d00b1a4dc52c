/** Names of models on the Hugging Face Hub: `ORGANISATION/MODEL[/FILE][@REVISION]`. */
import { isAbsolute } from 'node:path'
import { ModalignError } from '../../errors.ts'

export interface ModelName {
  /** `org/name`. */
  readonly repo: string
  /** One file of it, such as `onnx/model_q4.onnx`; undefined for the model folder. */
  readonly file: string | undefined
  /** A branch, a tag, or a commit's 40 hexadecimal digits. */
  readonly revision: string
}

export const commitPattern = /^[0-9a-f]{40}$/
const segment = /^(?!.*(?:--|\.\.))[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?$/
const fileSegment = /^(?!\.)(?!.*\.\.)[\w.+-]{1,128}$/
const revisionPattern = /^(?!.*\.\.)(?!.*\/\/)[A-Za-z0-9_][\w./-]{0,127}(?<![/.])$/

/**
 * A name's parts; undefined for what can only be a path (absolute, beginning with a dot or `~`, without a slash, with characters that no name has).
 *
 * @example
 * parseModelName('HuggingFaceTB/SmolLM2-135M-Instruct@main') // { repo: 'HuggingFaceTB/SmolLM2-135M-Instruct', file: undefined, revision: 'main' }
 */
export function parseModelName(text: string): ModelName | undefined {
  if (isAbsolute(text)) return undefined
  const at = text.indexOf('@')
  const [owner = '', name = '', ...inside] = (at === -1 ? text : text.slice(0, at)).split('/')
  const revision = at === -1 ? 'main' : text.slice(at + 1)
  if (!segment.test(owner) || !segment.test(name) || !inside.every((part) => fileSegment.test(part)) || inside.length > 4) return undefined
  if (!revisionPattern.test(revision)) return undefined
  const file = inside.length === 0 ? undefined : inside.join('/')
  // Another ending is a path that is not there.
  return file === undefined || /\.(?:gguf|onnx|safetensors)$/.test(file) ? { repo: `${owner}/${name}`, file, revision } : undefined
}

export function modelNameText({ repo, file, revision }: ModelName): string {
  return `${repo}${file === undefined ? '' : `/${file}`}${revision === 'main' ? '' : `@${revision}`}`
}

export interface HubSettings {
  /** The folder of `models--org--name` folders. */
  readonly cacheFolder: string
  readonly endpoint: string
  readonly token: string | undefined
  readonly offline: boolean
  /** Whether the user named the server: it may then be one of their own network. */
  readonly ownServer: boolean
}

/** @throws ModalignError `HUB_ENDPOINT` */
export function checkedEndpoint(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (url !== undefined && /^https?:$/.test(url.protocol) && url.username === '' && url.search === '') return url.href.replace(/\/+$/, '')
  throw new ModalignError({
    code: 'HUB_ENDPOINT',
    field: 'HF_ENDPOINT',
    got: text,
    expected: 'an http or https URL such as https://huggingface.co',
  })
}
