/** Typed access to a GGUF file's metadata: a value of another type than its key has is an error that names the key. */
import { ModalignError } from '../../errors.ts'
import { ggufTensor } from '../../weights/gguf/dequantise.ts'
import type { GgufArray, GgufFile, GgufValue } from '../../weights/gguf/gguf.ts'

export class GgufMetadata {
  readonly #file: GgufFile

  constructor(file: GgufFile) {
    this.#file = file
  }

  get file(): string | undefined {
    return this.#file.file
  }

  /** Whether the file has this tensor. */
  hasTensor(name: string): boolean {
    return this.#file.tensors.has(name)
  }

  /** How many rows a tensor has. @throws ModalignError `TENSOR_MISSING` */
  rows(tensor: string): number {
    return ggufTensor(this.#file, tensor).shape[0] ?? 1
  }

  /** @throws ModalignError `GGUF_METADATA` */
  text(key: string): string {
    return this.optionalText(key) ?? this.#missing(key, 'a text')
  }

  optionalText(key: string): string | undefined {
    const found = this.#value(key)
    if (found === undefined || found.type === 'string') return found?.value
    throw this.#wrong(key, found, 'a text')
  }

  /** @throws ModalignError `GGUF_METADATA` */
  number(key: string): number {
    return this.optionalNumber(key) ?? this.#missing(key, 'a number')
  }

  /** Of any type of number. */
  optionalNumber(key: string): number | undefined {
    const found = this.#value(key)
    if (found === undefined) return undefined
    if (typeof found.value === 'number') return found.value
    if (typeof found.value === 'bigint' && BigInt.asIntN(53, found.value) === found.value) return Number(found.value)
    throw this.#wrong(key, found, 'a number')
  }

  /** One number for all layers; files may also say it layer by layer. */
  sameInAllLayers(key: string): number | undefined {
    const found = this.#value(key)
    if (found?.type !== 'array') return this.optionalNumber(key)
    const values = [...found.value.values]
    const [first] = values
    if (typeof first === 'number' && values.every((value) => value === first)) return first
    throw this.#wrong(key, found, 'the same number for every layer')
  }

  flag(key: string): boolean | undefined {
    const found = this.#value(key)
    if (found === undefined || found.type === 'bool') return found?.value
    throw this.#wrong(key, found, 'true or false')
  }

  texts(key: string): readonly string[] | undefined {
    const list = this.#list(key)
    if (list === undefined || list.type === 'string') return list?.values
    throw this.#wrong(key, { type: 'array', value: list }, 'a list of texts')
  }

  numbers(key: string): ArrayLike<number> | undefined {
    const list = this.#list(key)
    if (list === undefined) return undefined
    if (list.type !== 'string' && list.type !== 'uint64' && list.type !== 'int64') return list.values
    throw this.#wrong(key, { type: 'array', value: list }, 'a list of numbers')
  }

  keys(): Iterable<string> {
    return this.#file.metadata.keys()
  }

  #value(key: string): GgufValue | undefined {
    return this.#file.metadata.get(key)
  }

  #list(key: string): GgufArray | undefined {
    const found = this.#value(key)
    if (found === undefined || found.type === 'array') return found?.value
    throw this.#wrong(key, found, 'a list')
  }

  #missing(key: string, expected: string): never {
    throw new ModalignError({ code: 'GGUF_METADATA', file: this.file, field: key, got: 'nothing', expected })
  }

  #wrong(key: string, found: GgufValue, expected: string): ModalignError {
    const got = found.type === 'array' ? `a list of ${found.value.type}` : `${found.type} ${String(found.value)}`
    return new ModalignError({ code: 'GGUF_METADATA', file: this.file, field: key, got, expected })
  }
}
