/** A trainable tensor: fp32 master values, row-major. */
export interface TrainableValue {
  readonly dims: readonly number[]
  readonly data: Float32Array
}
/** By parameter name. */
export type Trainables = Readonly<Record<string, TrainableValue>>
