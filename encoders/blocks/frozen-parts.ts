import { ModalignError } from '../../src/errors.ts'
import type { Encoder } from '../../src/model/contracts.ts'

/** Encoders that are made of others ask them for features, through which nothing is trained. @throws {ModalignError} `ENCODER_NOT_TRAINABLE` */
export function requireFrozen(part: Encoder): void {
  if (part.trained === undefined) return
  throw new ModalignError({
    code: 'ENCODER_NOT_TRAINABLE',
    field: part.label,
    got: 'an encoder of which something is trained, as a part of another',
    expected: 'frozen parts',
  })
}
