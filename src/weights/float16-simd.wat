;; float32 to float16, eight at a time, rounded to nearest, ties to even: see float16-simd.ts.
(module
  (memory (export "memory") 7)
  ;; $count: a multiple of 8. Magnitudes from 65520 on give what means nothing. Returns the largest magnitude, as the bits of a float32.
  (func (export "halves") (param $source i32) (param $count i32) (param $target i32) (result i32)
    (local $end i32) (local $w v128) (local $m v128) (local $low v128) (local $high v128) (local $largest v128)
    (local.set $end (i32.add (local.get $source) (i32.shl (local.get $count) (i32.const 2))))
    (block $done
    (loop $eight
      (br_if $done (i32.ge_u (local.get $source) (local.get $end)))
      (local.set $w (v128.load (local.get $source)))
      (local.set $m (v128.and (local.get $w) (v128.const i32x4 0x7fffffff 0x7fffffff 0x7fffffff 0x7fffffff)))
      (local.set $largest (i32x4.max_s (local.get $largest) (local.get $m)))
      (local.set $low (call $half (local.get $w) (local.get $m)))
      (local.set $w (v128.load offset=16 (local.get $source)))
      (local.set $m (v128.and (local.get $w) (v128.const i32x4 0x7fffffff 0x7fffffff 0x7fffffff 0x7fffffff)))
      (local.set $largest (i32x4.max_s (local.get $largest) (local.get $m)))
      (local.set $high (call $half (local.get $w) (local.get $m)))
      (v128.store (local.get $target) (i16x8.narrow_i32x4_u (local.get $low) (local.get $high)))
      (local.set $source (i32.add (local.get $source) (i32.const 32)))
      (local.set $target (i32.add (local.get $target) (i32.const 16)))
      (br $eight)))
    (local.set $largest (i32x4.max_s (local.get $largest)
      (i8x16.shuffle 8 9 10 11 12 13 14 15 0 1 2 3 4 5 6 7 (local.get $largest) (local.get $largest))))
    (local.set $largest (i32x4.max_s (local.get $largest)
      (i8x16.shuffle 4 5 6 7 0 1 2 3 12 13 14 15 8 9 10 11 (local.get $largest) (local.get $largest))))
    (i32x4.extract_lane 0 (local.get $largest)))

  ;; Words and their magnitudes to halves in 32 bits.
  (func $half (param $w v128) (param $m v128) (result v128)
    (v128.or
      (v128.and (i32x4.shr_u (local.get $w) (i32.const 16)) (v128.const i32x4 0x8000 0x8000 0x8000 0x8000))
      (v128.bitselect
        ;; Below 2^-14: adding 0.5 shifts the fraction into place and rounds it as every addition does.
        (i32x4.sub (f32x4.add (local.get $m) (v128.const f32x4 0.5 0.5 0.5 0.5))
          (v128.const i32x4 0x3f000000 0x3f000000 0x3f000000 0x3f000000))
        ;; Else: another exponent's bias, and the last 13 bits rounded away.
        (i32x4.shr_u
          (i32x4.add
            (i32x4.sub (local.get $m) (v128.const i32x4 0x37fff001 0x37fff001 0x37fff001 0x37fff001))
            (v128.and (i32x4.shr_u (local.get $m) (i32.const 13)) (v128.const i32x4 1 1 1 1)))
          (i32.const 13))
        (i32x4.lt_s (local.get $m) (v128.const i32x4 0x38800000 0x38800000 0x38800000 0x38800000))))))
