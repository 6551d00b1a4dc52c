/** What a language model is made of, in whatever form it was published. */
import type { JsonValue } from '../../io/json.ts'
import type { ChatTemplate } from '../../text/chat-template.ts'
import type { TemplateChoice } from '../../text/template-choice.ts'
import type { Tokenizer } from '../../text/tokenizer.ts'
import type { DownloadOptions } from '../../weights/hub/resolve-model.ts'
import type { WeightLookup } from '../decoder.ts'

export interface ModelSource {
  /** A short name for people. */
  readonly label: string
  /** Absolute: the folder or file that was named. */
  readonly path: string
  /** As Transformers has it, and where it stands (named in errors). */
  readonly config: JsonValue
  readonly configFile: string
  readonly weights: WeightLookup
  /** Of every file of weights. Reads some megabytes. */
  readonly fingerprints: () => Promise<readonly string[]>
  /** Root mean square of a weight, of a sample of its rows. */
  rms(name: string): Promise<number>
  /** Reads and builds it, which keeps this thread busy for a fifth of a second: to be called once, when what other threads do has begun. */
  readonly tokenizer: () => Promise<Tokenizer>
  /** @throws ModalignError `TEMPLATE_MISSING` for a base model */
  readonly template: () => ChatTemplate
  /** generation_config.json. */
  readonly generationConfig: JsonValue | undefined
}

/** How sessions hold weights that were published in blocks: as such (`quantised`), or as the float32 values that they stand for. */
export type WeightForm = 'quantised' | 'float32'

export interface SourceOptions extends DownloadOptions {
  /**
   * For GGUF files. `float32` (default): exactly the values that the blocks stand for. `quantised`: blocks of 4 or 8 bits stay such, which takes a fraction of the memory;
   * activations are rounded to 8 bits where they meet such weights, gradients are not.
   * Not to be relied on yet: SmolLM2-135M (Q4_1) has a loss 0.07 % higher over 2,891 tokens of answers and the same likeliest token at 97.2 %, but answers some short
   * questions wrongly (asked for the capital of France it begins "L'Étoile"), and whether that is rounding alone has not been settled.
   * Weights that were not published in blocks are not changed.
   */
  readonly weights?: WeightForm
  /**
   * How conversations are written, in place of what the model has: `plain`, `pure`, `vicuna`, `chatml` (see `namedTemplates`), the path of a Jinja file, or `{ jinja }`. Base models have none
   * of their own.
   */
  readonly template?: TemplateChoice
  /** Where files made of weights are kept: see `MODALIGN_CACHE`. Default: the system's folder for such files. */
  readonly cacheFolder?: string
  /** Told before weights are brought into the form that sessions map: once for each model, some seconds a gigabyte. */
  readonly onUnpack?: (file: string, bytes: number) => void
}
