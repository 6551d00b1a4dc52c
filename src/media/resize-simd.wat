;; Two passes of a resize of 8-bit RGB: see resize-loops.ts, which says the same in TypeScript.
(module
  (memory (export "memory") (import "shared" "memory") 1)
  ;; Every row of an RGB picture, made $out_width pixels wide.
  ;; starts, counts: i32 [out_width]; weights: i32 [out_width, stride].
  (func (export "rows") (param $source i32) (param $row_bytes i32) (param $rows i32) (param $target i32) (param $out_width i32)
    (param $starts i32) (param $counts i32) (param $weights i32) (param $stride_bytes i32) (param $half i32) (param $shift i32)
    (local $x i32) (local $at i32) (local $weight i32) (local $end i32) (local $sum v128) (local $base v128)
    (local $out i32)
    (local.set $base (i32x4.splat (local.get $half)))
    (local.set $out (local.get $target))
    (block $done (br_if $done (i32.eqz (local.get $rows)))
    (loop $row
      (local.set $x (i32.const 0))
      (block $row_done
      (loop $pixel
        (br_if $row_done (i32.ge_u (local.get $x) (local.get $out_width)))
        (local.set $sum (local.get $base))
        (local.set $at (i32.add (local.get $source)
          (i32.mul (i32.load (i32.add (local.get $starts) (i32.shl (local.get $x) (i32.const 2)))) (i32.const 3))))
        (local.set $weight (i32.add (local.get $weights) (i32.mul (local.get $x) (local.get $stride_bytes))))
        (local.set $end (i32.add (local.get $weight)
          (i32.shl (i32.load (i32.add (local.get $counts) (i32.shl (local.get $x) (i32.const 2)))) (i32.const 2))))
        (block $taps_done
        (loop $tap
          (br_if $taps_done (i32.ge_u (local.get $weight) (local.get $end)))
          (local.set $sum (i32x4.add (local.get $sum) (i32x4.mul
            (i32x4.extend_low_i16x8_u (i16x8.extend_low_i8x16_u (v128.load32_zero (local.get $at))))
            (v128.load32_splat (local.get $weight)))))
          (local.set $at (i32.add (local.get $at) (i32.const 3)))
          (local.set $weight (i32.add (local.get $weight) (i32.const 4)))
          (br $tap)))
        (local.set $sum (i32x4.shr_s (local.get $sum) (local.get $shift)))
        (local.set $sum (i16x8.narrow_i32x4_s (local.get $sum) (local.get $sum)))
        ;; Four bytes: the fourth is written over by the next pixel.
        (v128.store32_lane 0 (local.get $out) (i8x16.narrow_i16x8_u (local.get $sum) (local.get $sum)))
        (local.set $out (i32.add (local.get $out) (i32.const 3)))
        (local.set $x (i32.add (local.get $x) (i32.const 1)))
        (br $pixel)))
      (local.set $source (i32.add (local.get $source) (local.get $row_bytes)))
      (local.set $rows (i32.sub (local.get $rows) (i32.const 1)))
      (br_if $row (local.get $rows)))))

  ;; Every column of a picture of $row_bytes bytes a row, made $out_height rows high. Sixteen bytes at a time; rows are padded behind the last.
  (func (export "columns") (param $source i32) (param $row_bytes i32) (param $target i32) (param $out_height i32)
    (param $starts i32) (param $counts i32) (param $weights i32) (param $stride_bytes i32) (param $half i32) (param $shift i32)
    (local $y i32) (local $i i32) (local $at i32) (local $first i32) (local $weight i32) (local $first_weight i32) (local $end i32)
    (local $w v128) (local $bytes v128) (local $low v128) (local $high v128) (local $base v128)
    (local $a v128) (local $b v128) (local $c v128) (local $d v128)
    (local.set $base (i32x4.splat (local.get $half)))
    (block $done
    (loop $row
      (br_if $done (i32.ge_u (local.get $y) (local.get $out_height)))
      (local.set $first (i32.add (local.get $source)
        (i32.mul (i32.load (i32.add (local.get $starts) (i32.shl (local.get $y) (i32.const 2)))) (local.get $row_bytes))))
      (local.set $first_weight (i32.add (local.get $weights) (i32.mul (local.get $y) (local.get $stride_bytes))))
      (local.set $end (i32.add (local.get $first_weight)
        (i32.shl (i32.load (i32.add (local.get $counts) (i32.shl (local.get $y) (i32.const 2)))) (i32.const 2))))
      (local.set $i (i32.const 0))
      (block $row_done
      (loop $chunk
        (br_if $row_done (i32.ge_u (local.get $i) (local.get $row_bytes)))
        (local.set $a (local.get $base)) (local.set $b (local.get $base)) (local.set $c (local.get $base)) (local.set $d (local.get $base))
        (local.set $at (i32.add (local.get $first) (local.get $i)))
        (local.set $weight (local.get $first_weight))
        (block $taps_done
        (loop $tap
          (br_if $taps_done (i32.ge_u (local.get $weight) (local.get $end)))
          (local.set $w (v128.load32_splat (local.get $weight)))
          (local.set $bytes (v128.load (local.get $at)))
          (local.set $low (i16x8.extend_low_i8x16_u (local.get $bytes)))
          (local.set $high (i16x8.extend_high_i8x16_u (local.get $bytes)))
          (local.set $a (i32x4.add (local.get $a) (i32x4.mul (i32x4.extend_low_i16x8_u (local.get $low)) (local.get $w))))
          (local.set $b (i32x4.add (local.get $b) (i32x4.mul (i32x4.extend_high_i16x8_u (local.get $low)) (local.get $w))))
          (local.set $c (i32x4.add (local.get $c) (i32x4.mul (i32x4.extend_low_i16x8_u (local.get $high)) (local.get $w))))
          (local.set $d (i32x4.add (local.get $d) (i32x4.mul (i32x4.extend_high_i16x8_u (local.get $high)) (local.get $w))))
          (local.set $at (i32.add (local.get $at) (local.get $row_bytes)))
          (local.set $weight (i32.add (local.get $weight) (i32.const 4)))
          (br $tap)))
        ;; What goes beyond the row is written over by the next one.
        (v128.store (i32.add (local.get $target) (local.get $i)) (i8x16.narrow_i16x8_u
          (i16x8.narrow_i32x4_s (i32x4.shr_s (local.get $a) (local.get $shift)) (i32x4.shr_s (local.get $b) (local.get $shift)))
          (i16x8.narrow_i32x4_s (i32x4.shr_s (local.get $c) (local.get $shift)) (i32x4.shr_s (local.get $d) (local.get $shift)))))
        (local.set $i (i32.add (local.get $i) (i32.const 16)))
        (br $chunk)))
      (local.set $target (i32.add (local.get $target) (local.get $row_bytes)))
      (local.set $y (i32.add (local.get $y) (i32.const 1)))
      (br $row)))))
