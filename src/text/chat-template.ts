/** Chat templates: how a conversation is written for one language model. */
import { Template } from '@huggingface/jinja'
import { ModalignError } from '../errors.ts'
import type { JsonObject, JsonValue } from '../io/json.ts'
import type { Role } from '../model/contracts.ts'
import { type Program, renderBounded, TemplateRefusal } from './bounded-interpreter.ts'
import { declaredTokens } from './pipeline.ts'
import { isObject, type TokenizerFiles } from './tokenizer-file.ts'

export interface Message {
  readonly role: Role
  readonly content: string
}

/** A message with whatever else templates read: `tool_calls`, `tool_call_id`, `name`, or content as a list of `{ type: 'image' }` and `{ type: 'text', text }`. */
export interface RichMessage extends JsonObject {
  readonly role: string
}

export interface RenderOptions {
  /** Ends with the header of an answer. Default: false. */
  readonly addGenerationPrompt?: boolean
  /** What the model may call, as JSON Schema: `{ type: 'function', function: { name, description, parameters } }`. */
  readonly tools?: readonly JsonObject[]
  /** For this conversation alone, over those of {@link ChatTemplateOptions}. */
  readonly variables?: JsonObject
}

export interface ChatTemplateOptions {
  /** Which of several named templates; default `default`, or the only one. */
  readonly name?: string
  /** What templates see as today (`strftime_now`). Default: the moment of loading, the same for every rendering. Fix it where runs must repeat. */
  readonly now?: Date
  /** Further variables for the template, such as `{ enable_thinking: false }`. */
  readonly variables?: JsonObject
}

/** Where a template can come from: `chat_template` of `tokenizer_config.json`, or the file `chat_template.jinja`, which wins. */
export interface ChatTemplateFiles extends Pick<TokenizerFiles, 'config' | 'specialTokensMap'> {
  readonly jinja?: string | undefined
  /** Named in errors. */
  readonly file?: string | undefined
}

const longestSource = 128 * 1024
const longestSpace = 1000

/** A chat template, parsed. Immutable; make one with `loadChatTemplate` or {@link createChatTemplate}. */
export class ChatTemplate {
  /** The template's text: two templates with one source, one set of variables and one date write the same. */
  readonly source: string
  readonly file: string | undefined
  readonly #program: Program
  readonly #variables: JsonObject
  readonly #now: Date

  constructor(source: string, files: ChatTemplateFiles, { now = new Date(), variables = {} }: ChatTemplateOptions = {}) {
    this.source = source
    this.file = files.file
    this.#now = now
    const named = [...declaredTokens(files)].filter(([name]) => name.endsWith('_token'))
    this.#variables = { ...Object.fromEntries(named), ...variables }
    this.#program = parse(source, files.file)
  }

  /**
   * The conversation as text, as Transformers' `apply_chat_template(tokenize=False)`. Control tokens in it are ambiguous: what a message says and what the
   * template says look alike. For ids use `labelSpans` or `renderPrompt`, which keep them apart.
   *
   * @throws ModalignError `DATA_ROLE_ORDER` where the template refuses the conversation, `TEMPLATE_LIMIT`, `TEMPLATE_FAILED`
   * @example
   * template.render([{ role: 'user', content: 'Hi' }], { addGenerationPrompt: true }) // '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
   */
  render(messages: readonly (Message | RichMessage)[], { addGenerationPrompt = false, tools, variables }: RenderOptions = {}): string {
    const given = { ...this.#variables, ...variables, messages, tools: tools ?? null, add_generation_prompt: addGenerationPrompt }
    try {
      return renderBounded(this.#program, given, this.#now)
    } catch (error) {
      if (error instanceof ModalignError) throw new ModalignError({ ...error.details, file: this.file, cause: error })
      if (error instanceof TemplateRefusal) {
        throw new ModalignError({
          code: 'DATA_ROLE_ORDER',
          got: `roles ${messages.map((message) => message.role).join(', ')}`,
          expected: `what the chat template accepts; it says: ${error.message}`,
          cause: error,
        })
      }
      throw new ModalignError({
        code: 'TEMPLATE_FAILED',
        file: this.file,
        got: error instanceof Error ? error.message : String(error),
        expected: 'a template that renders messages of text',
        cause: error,
      })
    }
  }
}

function parse(source: string, file: string | undefined): Program {
  const invalid = (got: string, expected: string, cause?: unknown) =>
    new ModalignError({ code: 'TEMPLATE_INVALID', file, got, expected, cause })
  if (source.length > longestSource) throw invalid(`${source.length} characters`, `at most ${longestSource}`)
  // The library's lexer takes quadratic time over white space.
  if (new RegExp(`\\s{${longestSpace + 1}}`).test(source))
    throw invalid('a very long run of white space', `at most ${longestSpace} characters of it`)
  try {
    return new Template(source).parsed
  } catch (error) {
    throw invalid(error instanceof Error ? error.message : String(error), 'a Jinja chat template', error)
  }
}

/**
 * Makes a chat template from parsed files.
 *
 * @throws ModalignError `TEMPLATE_MISSING` (none, or none of that name), `TEMPLATE_INVALID`
 * @example
 * const template = createChatTemplate({ jinja: '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}' })
 */
export function createChatTemplate(files: ChatTemplateFiles, options: ChatTemplateOptions = {}): ChatTemplate {
  const fromConfig = isObject(files.config) ? files.config.chat_template : undefined
  const templates =
    files.jinja === undefined ? namedTemplates(fromConfig) : new Map([...namedTemplates(fromConfig), ['default', files.jinja]])
  const [only] = templates.size === 1 ? templates.values() : []
  const source = options.name === undefined ? (templates.get('default') ?? only) : templates.get(options.name)
  if (source === undefined) {
    const names = [...templates.keys()].join(', ')
    throw new ModalignError({
      code: 'TEMPLATE_MISSING',
      file: files.file,
      got: names === '' ? 'no chat template' : `templates named ${names}`,
      expected: options.name === undefined ? 'a chat template' : `one named ${options.name}`,
      hint:
        names === ''
          ? 'a base model has none: choose one (template: plain, pure, vicuna, chatml or a Jinja file), use its instruction-tuned version, or put chat_template.jinja beside tokenizer.json'
          : 'name one of them',
    })
  }
  return new ChatTemplate(source, files, options)
}

/** One template, or a list of `{ name, template }`, or an object of them. */
function namedTemplates(value: JsonValue | undefined): ReadonlyMap<string, string> {
  if (typeof value === 'string') return new Map([['default', value]])
  const entries: readonly (readonly [JsonValue | undefined, JsonValue | undefined])[] = Array.isArray(value)
    ? value.map((item: JsonValue) => (isObject(item) ? [item.name, item.template] : [undefined, undefined]))
    : isObject(value)
      ? Object.entries(value)
      : []
  return new Map(
    entries.flatMap(([name, template]) => (typeof name === 'string' && typeof template === 'string' ? [[name, template]] : [])),
  )
}
