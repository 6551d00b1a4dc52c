/** Templates for models that have none: base models are written to as the field's multimodal systems write to them. */
import { ModalignError } from '../errors.ts'
import { fileSource } from '../io/byte-source.ts'
import type { ChatTemplateFiles } from './chat-template.ts'

const roles =
  "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
const onlyTwo =
  "{% if message.role != 'user' and message.role != 'assistant' %}{{ raise_exception('Only user and assistant turns are written by this template') }}{% endif %}"

/**
 * `plain`: what is said and nothing else, a line for each turn of the user, as LLaVA's pre-training has captions (Liu et al. 2023, conversation `plain`; here every answer ends with the
 * end-of-text token, so that a tuned model stops). `pure`: `In: ...` and `Out: ...`, as Prismatic writes to base models (Karamcheti et al. 2024, `PurePromptBuilder`).
 * `vicuna`: `USER: ...`, `ASSISTANT: ...`, as LLaVA 1.5 (conversation `v1`). `chatml`: `<|im_start|>role`, for vocabularies that have its tokens.
 */
export const namedTemplates = {
  plain: `{{ bos_token }}${roles}{{ system }}{% if system %}{{ '\\n' }}{% endif %}{% for message in turns %}${onlyTwo}{{ message.content }}{{ '\\n' if message.role == 'user' else eos_token }}{% endfor %}`,
  pure: `{{ bos_token }}${roles}{{ system }}{% if system %}{{ '\\n' }}{% endif %}{% for message in turns %}${onlyTwo}{% if message.role == 'user' %}{{ 'In: ' + message.content + '\\nOut: ' }}{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}`,
  vicuna: `{{ bos_token }}${roles}{{ system if system else "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions." }}{{ ' ' }}{% for message in turns %}${onlyTwo}{% if message.role == 'user' %}{{ 'USER: ' + message.content + ' ' }}{% else %}{{ 'ASSISTANT: ' + message.content + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}`,
  chatml:
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
} as const

export type TemplateName = keyof typeof namedTemplates

export const isTemplateName = (name: string): name is TemplateName => Object.hasOwn(namedTemplates, name)

/** A name of {@link namedTemplates}, the path of a file of Jinja, or the template itself. */
export type TemplateChoice = string | { readonly jinja: string }

const largestTemplate = 2 ** 20

/**
 * The text of a chosen template, in place of whatever a model folder has.
 *
 * @throws ModalignError `TEMPLATE_CHOICE` for what is neither a name nor a file
 * @example
 * const template = createChatTemplate({ ...await readTemplateFiles(folder), ...await chosenTemplate('vicuna') })
 */
export async function chosenTemplate(choice: TemplateChoice | undefined): Promise<Pick<ChatTemplateFiles, 'jinja' | 'file'>> {
  if (choice === undefined) return {}
  if (typeof choice !== 'string') return choice
  if (isTemplateName(choice)) return { jinja: namedTemplates[choice], file: `the template ${choice}` }
  try {
    const source = await fileSource(choice)
    const bytes = await source.read(0, Math.min(source.size, largestTemplate))
    return { jinja: new TextDecoder().decode(bytes), file: choice }
  } catch (error) {
    if (!(error instanceof ModalignError && error.details.code === 'FILE_MISSING')) throw error
    throw new ModalignError({
      code: 'TEMPLATE_CHOICE',
      got: choice,
      expected: `one of ${Object.keys(namedTemplates).join(', ')}, or the path of a Jinja file`,
      cause: error,
    })
  }
}
