/** Types without blocks: F32, F16, BF16, and integers and doubles rounded to float32. */

import type { DataType } from '../../../tensors.ts'
import { toFloat32 } from '../../float16.ts'
import { tensorFromBytes } from '../../safetensors-source.ts'
import type { Dequantise } from './block-format.ts'

function plain(dtype: Exclude<DataType, 'bool'>, elementBytes: number): Dequantise {
  return (bytes, out) => {
    out.set(toFloat32(tensorFromBytes(bytes.slice(), { dtype, shape: [bytes.length / elementBytes] }, { name: '' })))
  }
}

export const float32 = plain('float32', 4)
export const float16 = plain('float16', 2)
export const bfloat16 = plain('bfloat16', 2)
export const float64 = plain('float64', 8)
export const integer8 = plain('int8', 1)
export const integer16 = plain('int16', 2)
export const integer32 = plain('int32', 4)
