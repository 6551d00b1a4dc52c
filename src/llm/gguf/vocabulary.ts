import type { GgmlVocabulary } from '../../text/ggml-vocabulary.ts'
import type { GgufMetadata } from './metadata.ts'

/** The tokenizer's metadata. @throws ModalignError `GGUF_METADATA` */
export function ggufVocabulary(metadata: GgufMetadata): GgmlVocabulary {
  const key = (name: string): string => `tokenizer.ggml.${name}`
  const templateKey = 'tokenizer.chat_template'
  const templates = [...metadata.keys()].flatMap((name): (readonly [string, string])[] => {
    if (name !== templateKey && !name.startsWith(`${templateKey}.`)) return []
    return [[name === templateKey ? 'default' : name.slice(templateKey.length + 1), metadata.text(name)]]
  })
  return {
    model: metadata.text(key('model')),
    pre: metadata.optionalText(key('pre')),
    tokens: metadata.texts(key('tokens')) ?? [],
    tokenTypes: metadata.numbers(key('token_type')),
    scores: metadata.numbers(key('scores')),
    merges: metadata.texts(key('merges')),
    bosId: metadata.optionalNumber(key('bos_token_id')),
    eosId: metadata.optionalNumber(key('eos_token_id')),
    eotId: metadata.optionalNumber(key('eot_token_id')),
    unknownId: metadata.optionalNumber(key('unknown_token_id')),
    padId: metadata.optionalNumber(key('padding_token_id')),
    addBos: metadata.flag(key('add_bos_token')),
    addEos: metadata.flag(key('add_eos_token')),
    addSpacePrefix: metadata.flag(key('add_space_prefix')),
    removeExtraWhitespaces: metadata.flag(key('remove_extra_whitespaces')),
    stripAfterControl: metadata.optionalText('general.architecture') === 'phi3',
    chatTemplates: new Map(templates),
    file: metadata.file,
  }
}
