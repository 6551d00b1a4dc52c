/** The dataset formats that this package reads. One file a format, one line here. */
import { llava } from './llava.ts'
import { messages } from './messages.ts'

export { type BoxNotation, type BoxNotationName, boxNotations, type GroundingOptions, grounded } from './grounding.ts'
export { type LlavaOptions, type LlavaSource, llava } from './llava.ts'
export { type MessagesOptions, type MessagesSource, messages } from './messages.ts'
export { type DatasetReport, type ValidateOptions, validateDataset } from './validate.ts'

/** Format name, as a run file writes it -> reader. */
export const datasets = { llava, messages } as const
