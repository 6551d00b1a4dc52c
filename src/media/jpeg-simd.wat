;; Sequential Huffman-coded JPEG: see jpeg.ts, which lays out the memory and reads the headers. The arithmetic is libjpeg's: its integer DCT ("islow"), its triangle
;; filter for halved colours, its 16-bit colour conversion; every byte is the same.
(module
  (memory (export "memory") (import "shared" "memory") 1)

  ;; One scan of interleaved components into planes. Returns where the marker behind it stands, or 0 for data that is not as it should be.
  ;; $parts: 64 bytes a component, as i32: blocks across, blocks down an MCU; plane; bytes a row; divisors; DC table; AC table; prediction.
  ;; Tables: i32 [1024] by the next ten bits, symbol << 8 | length or 0; i32 [17] first code beyond each length, of 16 bits; i32 [17] symbol less code; u8 [256] symbols.
  ;; $order: u8 [64], twice the place of each coefficient. $block: i16 [64], zeros. $restart: MCUs between markers, or 0.
  (func (export "scan") (param $at i32) (param $parts i32) (param $parts_end i32) (param $order i32) (param $block i32)
    (param $across i32) (param $down i32) (param $restart i32) (result i32)
    (local $bits i64) (local $count i32) (local $padding i32) (local $word i32) (local $part i32) (local $column i32) (local $row i32)
    (local $x i32) (local $y i32) (local $k i32) (local $table i32) (local $entry i32) (local $size i32) (local $length i32) (local $value i32)
    (local $left i32) (local $marker i32) (local $is_first i32)
    (local.set $left (local.get $restart))
    (block $fail
    (block $done
    (loop $mcu
      (br_if $done (i32.ge_u (local.get $row) (local.get $down)))
      (local.set $part (local.get $parts))
      (loop $component
        (local.set $y (i32.const 0))
        (loop $block_row
          (local.set $x (i32.const 0))
          (loop $block_column
            ;; 0: the DC coefficient; then the others.
            (local.set $k (i32.const 0))
            (local.set $table (i32.load offset=20 (local.get $part)))
            (block $block_done
            (loop $coefficient
              ;; A code and its bits are 31 at most.
              (block $filled
                (br_if $filled (i32.ge_s (local.get $count) (i32.const 32)))
                (block $slow
                  (local.set $word (i32.load (local.get $at)))
                  ;; A byte of ones begins a marker, or stands before a zero that does not count.
                  (br_if $slow (i32.and (i32.and (i32.sub (i32.xor (local.get $word) (i32.const -1)) (i32.const 0x01010101)) (local.get $word))
                    (i32.const 0x80808080)))
                  (local.set $word (i32.or
                    (i32.and (i32.rotl (local.get $word) (i32.const 8)) (i32.const 0x00ff00ff))
                    (i32.and (i32.rotl (local.get $word) (i32.const 24)) (i32.const 0xff00ff00))))
                  (local.set $bits (i64.or (local.get $bits)
                    (i64.shl (i64.extend_i32_u (local.get $word)) (i64.extend_i32_u (i32.sub (i32.const 32) (local.get $count))))))
                  (local.set $count (i32.add (local.get $count) (i32.const 32)))
                  (local.set $at (i32.add (local.get $at) (i32.const 4)))
                  (br $filled))
                (loop $byte
                  (local.set $word (i32.load8_u (local.get $at)))
                  (block $taken
                    (block $plain
                      (br_if $plain (i32.ne (local.get $word) (i32.const 0xff)))
                      (br_if $plain (i32.eqz (i32.load8_u offset=1 (local.get $at))))
                      ;; Zeros in place of bits that are not there; whether one was used is asked at the end of the MCU.
                      (local.set $padding (i32.add (local.get $padding) (i32.const 8)))
                      (br $taken))
                    (local.set $bits (i64.or (local.get $bits)
                      (i64.shl (i64.extend_i32_u (local.get $word)) (i64.extend_i32_u (i32.sub (i32.const 56) (local.get $count))))))
                    (local.set $at (i32.add (local.get $at) (i32.add (i32.const 1) (i32.eq (local.get $word) (i32.const 0xff))))))
                  (local.set $count (i32.add (local.get $count) (i32.const 8)))
                  (br_if $byte (i32.lt_s (local.get $count) (i32.const 32)))))
              (local.set $entry (i32.load (i32.add (local.get $table)
                (i32.shl (i32.wrap_i64 (i64.shr_u (local.get $bits) (i64.const 54))) (i32.const 2)))))
              (block $found
                (br_if $found (local.get $entry))
                (local.set $word (i32.wrap_i64 (i64.shr_u (local.get $bits) (i64.const 48))))
                (local.set $length (i32.const 11))
                (block $fits
                (loop $longer
                  (local.set $entry (i32.add (local.get $table) (i32.shl (local.get $length) (i32.const 2))))
                  (br_if $fits (i32.lt_u (local.get $word) (i32.load offset=4096 (local.get $entry))))
                  (local.set $length (i32.add (local.get $length) (i32.const 1)))
                  (br_if $longer (i32.le_u (local.get $length) (i32.const 16)))
                  (br $fail)))
                (local.set $entry (i32.add (i32.load offset=4164 (local.get $entry))
                  (i32.shr_u (local.get $word) (i32.sub (i32.const 16) (local.get $length)))))
                (local.set $entry (i32.or (local.get $length)
                  (i32.shl (i32.load8_u offset=4232 (i32.add (local.get $table) (local.get $entry))) (i32.const 8)))))
              (local.set $length (i32.and (local.get $entry) (i32.const 0xff)))
              (local.set $size (i32.and (i32.shr_u (local.get $entry) (i32.const 8)) (i32.const 15)))
              (local.set $bits (i64.shl (local.get $bits) (i64.extend_i32_u (local.get $length))))
              (local.set $count (i32.sub (local.get $count) (i32.add (local.get $length) (local.get $size))))
              (local.set $is_first (i32.eqz (local.get $k)))
              (block $valued
                (block $empty
                  (br_if $empty (i32.eqz (local.get $size)))
                  ;; Of a first bit that is 0, all bits say how far below -(2^size - 1) is left behind.
                  (local.set $value (i32.add
                    (i32.wrap_i64 (i64.shr_u (local.get $bits) (i64.extend_i32_u (i32.sub (i32.const 64) (local.get $size)))))
                    (i32.and (i32.xor (i32.wrap_i64 (i64.shr_s (local.get $bits) (i64.const 63))) (i32.const -1))
                      (i32.add (i32.shl (i32.const -1) (local.get $size)) (i32.const 1)))))
                  (local.set $bits (i64.shl (local.get $bits) (i64.extend_i32_u (local.get $size))))
                  (br_if $valued (local.get $is_first))
                  (local.set $k (i32.add (local.get $k) (i32.shr_u (local.get $entry) (i32.const 12))))
                  (br_if $fail (i32.gt_u (local.get $k) (i32.const 63)))
                  (i32.store16 (i32.add (local.get $block) (i32.load8_u (i32.add (local.get $order) (local.get $k)))) (local.get $value))
                  (local.set $k (i32.add (local.get $k) (i32.const 1)))
                  (br_if $coefficient (i32.lt_u (local.get $k) (i32.const 64)))
                  (br $block_done))
                (local.set $value (i32.const 0))
                (br_if $valued (local.get $is_first))
                ;; No more, or sixteen zeros.
                (br_if $block_done (i32.ne (i32.shr_u (local.get $entry) (i32.const 12)) (i32.const 15)))
                (local.set $k (i32.add (local.get $k) (i32.const 16)))
                (br_if $coefficient (i32.lt_u (local.get $k) (i32.const 64)))
                (br_if $fail (i32.gt_u (local.get $k) (i32.const 64)))
                (br $block_done))
              (local.set $value (i32.add (local.get $value) (i32.load offset=28 (local.get $part))))
              (i32.store offset=28 (local.get $part) (local.get $value))
              (i32.store16 (local.get $block) (local.get $value))
              (local.set $k (i32.const 1))
              (local.set $table (i32.load offset=24 (local.get $part)))
              (br $coefficient)))
            (local.set $word (i32.load offset=12 (local.get $part)))
            (call $idct (local.get $block) (i32.load offset=16 (local.get $part)) (i32.eq (local.get $k) (i32.const 1))
              (i32.add (i32.load offset=8 (local.get $part)) (i32.shl (i32.add
                (i32.mul (i32.add (local.get $y) (i32.mul (local.get $row) (i32.load offset=4 (local.get $part)))) (local.get $word))
                (i32.add (local.get $x) (i32.mul (local.get $column) (i32.load (local.get $part))))) (i32.const 3)))
              (local.get $word))
            (local.set $x (i32.add (local.get $x) (i32.const 1)))
            (br_if $block_column (i32.lt_u (local.get $x) (i32.load (local.get $part)))))
          (local.set $y (i32.add (local.get $y) (i32.const 1)))
          (br_if $block_row (i32.lt_u (local.get $y) (i32.load offset=4 (local.get $part)))))
        (local.set $part (i32.add (local.get $part) (i32.const 64)))
        (br_if $component (i32.lt_u (local.get $part) (local.get $parts_end))))
      (br_if $fail (i32.lt_s (local.get $count) (local.get $padding)))
      (local.set $column (i32.add (local.get $column) (i32.const 1)))
      (block $same_row
        (br_if $same_row (i32.lt_u (local.get $column) (local.get $across)))
        (local.set $column (i32.const 0))
        (local.set $row (i32.add (local.get $row) (i32.const 1))))
      (br_if $mcu (i32.eqz (local.get $restart)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $mcu (local.get $left))
      (br_if $done (i32.ge_u (local.get $row) (local.get $down)))
      ;; Nothing but the last byte's filling may be left, and then a marker, numbered in turn.
      (br_if $fail (i32.ge_s (i32.sub (local.get $count) (local.get $padding)) (i32.const 8)))
      (br_if $fail (i32.ne (i32.load8_u (local.get $at)) (i32.const 0xff)))
      (br_if $fail (i32.ne (i32.load8_u offset=1 (local.get $at)) (i32.add (i32.const 0xd0) (local.get $marker))))
      (local.set $at (i32.add (local.get $at) (i32.const 2)))
      (local.set $marker (i32.and (i32.add (local.get $marker) (i32.const 1)) (i32.const 7)))
      (local.set $left (local.get $restart))
      (local.set $bits (i64.const 0))
      (local.set $count (i32.const 0))
      (local.set $padding (i32.const 0))
      (local.set $part (local.get $parts))
      (loop $forget
        (i32.store offset=28 (local.get $part) (i32.const 0))
        (local.set $part (i32.add (local.get $part) (i32.const 64)))
        (br_if $forget (i32.lt_u (local.get $part) (local.get $parts_end))))
      (br $mcu)))
    (br_if $fail (i32.ge_s (i32.sub (local.get $count) (local.get $padding)) (i32.const 8)))
    (return (local.get $at)))
    (i32.const 0))

  ;; A block's samples from its coefficients, which become zeros. $work behind $block.
  (func $idct (param $block i32) (param $divisors i32) (param $is_flat i32) (param $out i32) (param $row_bytes i32)
    (local $work i32) (local $k i32) (local $rows v128)
    (block $flat
      (br_if $flat (local.get $is_flat))
      (local.set $work (i32.add (local.get $block) (i32.const 128)))
      (loop $row
        (v128.store (i32.add (local.get $block) (local.get $k)) (i16x8.mul (v128.load (i32.add (local.get $block) (local.get $k)))
          (v128.load (i32.add (local.get $divisors) (local.get $k)))))
        (local.set $k (i32.add (local.get $k) (i32.const 16)))
        (br_if $row (i32.lt_u (local.get $k) (i32.const 128))))
      (call $columns (local.get $block) (local.get $work) (i32.const 11))
      (call $columns (i32.add (local.get $block) (i32.const 8)) (i32.add (local.get $work) (i32.const 8)) (i32.const 11))
      (call $transpose (local.get $work) (local.get $block))
      (call $columns (local.get $block) (local.get $work) (i32.const 18))
      (call $columns (i32.add (local.get $block) (i32.const 8)) (i32.add (local.get $work) (i32.const 8)) (i32.const 18))
      (call $transpose (local.get $work) (local.get $block))
      (local.set $k (i32.const 0))
      (loop $pair
        (local.set $rows (v128.xor (i8x16.splat (i32.const 0x80)) (i8x16.narrow_i16x8_s (v128.load (local.get $block)) (v128.load offset=16 (local.get $block)))))
        (v128.store64_lane 0 (local.get $out) (local.get $rows))
        (v128.store64_lane 1 (i32.add (local.get $out) (local.get $row_bytes)) (local.get $rows))
        (local.set $out (i32.add (local.get $out) (i32.shl (local.get $row_bytes) (i32.const 1))))
        (v128.store (local.get $block) (i8x16.splat (i32.const 0)))
        (v128.store offset=16 (local.get $block) (i8x16.splat (i32.const 0)))
        (local.set $block (i32.add (local.get $block) (i32.const 32)))
        (local.set $k (i32.add (local.get $k) (i32.const 1)))
        (br_if $pair (i32.lt_u (local.get $k) (i32.const 4))))
      (return))
    ;; The DC coefficient alone: an eighth of it everywhere.
    (local.set $rows (i32x4.extend_low_i16x8_s (i16x8.shl
      (i16x8.mul (v128.load16_splat (local.get $block)) (v128.load16_splat (local.get $divisors))) (i32.const 2))))
    (local.set $rows (i32x4.shr_s (i32x4.add (local.get $rows) (i32x4.splat (i32.const 16))) (i32.const 5)))
    (local.set $rows (i16x8.narrow_i32x4_s (local.get $rows) (local.get $rows)))
    (local.set $rows (v128.xor (i8x16.splat (i32.const 0x80)) (i8x16.narrow_i16x8_s (local.get $rows) (local.get $rows))))
    (i32.store16 (local.get $block) (i32.const 0))
    (loop $line
      (v128.store64_lane 0 (local.get $out) (local.get $rows))
      (local.set $out (i32.add (local.get $out) (local.get $row_bytes)))
      (local.set $k (i32.add (local.get $k) (i32.const 1)))
      (br_if $line (i32.lt_u (local.get $k) (i32.const 8)))))

  ;; Four columns of a block through the one-dimensional transform of Loeffler, Ligtenberg and Moschytz (ICASSP 1989), in 13 fractional bits; $shift of them go.
  (func $columns (param $from i32) (param $to i32) (param $shift i32)
    (local $pair v128) (local $half v128) (local $1 v128) (local $3 v128) (local $5 v128) (local $7 v128)
    (local $even0 v128) (local $even1 v128) (local $even2 v128) (local $even3 v128)
    (local $odd0 v128) (local $odd1 v128) (local $odd2 v128) (local $odd3 v128)
    (local.set $half (i32x4.splat (i32.shl (i32.const 1) (i32.sub (local.get $shift) (i32.const 1)))))
    ;; Coefficients 0 and 4: their sum and their difference, of 16 bits.
    (local.set $even0 (v128.load64_zero (local.get $from)))
    (local.set $even1 (v128.load64_zero offset=64 (local.get $from)))
    (local.set $odd0 (i32x4.add (local.get $half)
      (i32x4.shl (i32x4.extend_low_i16x8_s (i16x8.add (local.get $even0) (local.get $even1))) (i32.const 13))))
    (local.set $odd1 (i32x4.add (local.get $half)
      (i32x4.shl (i32x4.extend_low_i16x8_s (i16x8.sub (local.get $even0) (local.get $even1))) (i32.const 13))))
    ;; 2 and 6.
    (local.set $pair (i8x16.shuffle 0 1 16 17 2 3 18 19 4 5 20 21 6 7 22 23 (v128.load64_zero offset=32 (local.get $from)) (v128.load64_zero offset=96 (local.get $from))))
    (local.set $odd2 (i32x4.dot_i16x8_s (local.get $pair) (v128.const i16x8 4433 -10704 4433 -10704 4433 -10704 4433 -10704)))
    (local.set $odd3 (i32x4.dot_i16x8_s (local.get $pair) (v128.const i16x8 10703 4433 10703 4433 10703 4433 10703 4433)))
    (local.set $even0 (i32x4.add (local.get $odd0) (local.get $odd3)))
    (local.set $even3 (i32x4.sub (local.get $odd0) (local.get $odd3)))
    (local.set $even1 (i32x4.add (local.get $odd1) (local.get $odd2)))
    (local.set $even2 (i32x4.sub (local.get $odd1) (local.get $odd2)))
    ;; The odd ones.
    (local.set $1 (v128.load64_zero offset=16 (local.get $from)))
    (local.set $3 (v128.load64_zero offset=48 (local.get $from)))
    (local.set $5 (v128.load64_zero offset=80 (local.get $from)))
    (local.set $7 (v128.load64_zero offset=112 (local.get $from)))
    (local.set $pair (i8x16.shuffle 0 1 16 17 2 3 18 19 4 5 20 21 6 7 22 23
      (i16x8.add (local.get $3) (local.get $7)) (i16x8.add (local.get $1) (local.get $5))))
    (local.set $odd0 (i32x4.dot_i16x8_s (local.get $pair) (v128.const i16x8 -6436 9633 -6436 9633 -6436 9633 -6436 9633)))
    (local.set $odd1 (i32x4.dot_i16x8_s (local.get $pair) (v128.const i16x8 9633 6437 9633 6437 9633 6437 9633 6437)))
    (local.set $odd2 (local.get $odd0))
    (local.set $odd3 (local.get $odd1))
    (local.set $pair (i8x16.shuffle 0 1 16 17 2 3 18 19 4 5 20 21 6 7 22 23 (local.get $7) (local.get $1)))
    (local.set $odd0 (i32x4.add (local.get $odd0) (i32x4.dot_i16x8_s (local.get $pair) (v128.const i16x8 -4927 -7373 -4927 -7373 -4927 -7373 -4927 -7373))))
    (local.set $odd3 (i32x4.add (local.get $odd3) (i32x4.dot_i16x8_s (local.get $pair) (v128.const i16x8 -7373 4926 -7373 4926 -7373 4926 -7373 4926))))
    (local.set $pair (i8x16.shuffle 0 1 16 17 2 3 18 19 4 5 20 21 6 7 22 23 (local.get $5) (local.get $3)))
    (local.set $odd1 (i32x4.add (local.get $odd1) (i32x4.dot_i16x8_s (local.get $pair) (v128.const i16x8 -4176 -20995 -4176 -20995 -4176 -20995 -4176 -20995))))
    (local.set $odd2 (i32x4.add (local.get $odd2) (i32x4.dot_i16x8_s (local.get $pair) (v128.const i16x8 -20995 4177 -20995 4177 -20995 4177 -20995 4177))))
    ;; The upper half is the sums, the lower half the differences, backwards.
    (local.set $pair (i16x8.narrow_i32x4_s
      (i32x4.shr_s (i32x4.add (local.get $even0) (local.get $odd3)) (local.get $shift))
      (i32x4.shr_s (i32x4.sub (local.get $even0) (local.get $odd3)) (local.get $shift))))
    (v128.store64_lane 0 (local.get $to) (local.get $pair))
    (v128.store64_lane offset=112 1 (local.get $to) (local.get $pair))
    (local.set $pair (i16x8.narrow_i32x4_s
      (i32x4.shr_s (i32x4.add (local.get $even1) (local.get $odd2)) (local.get $shift))
      (i32x4.shr_s (i32x4.sub (local.get $even1) (local.get $odd2)) (local.get $shift))))
    (v128.store64_lane offset=16 0 (local.get $to) (local.get $pair))
    (v128.store64_lane offset=96 1 (local.get $to) (local.get $pair))
    (local.set $pair (i16x8.narrow_i32x4_s
      (i32x4.shr_s (i32x4.add (local.get $even2) (local.get $odd1)) (local.get $shift))
      (i32x4.shr_s (i32x4.sub (local.get $even2) (local.get $odd1)) (local.get $shift))))
    (v128.store64_lane offset=32 0 (local.get $to) (local.get $pair))
    (v128.store64_lane offset=80 1 (local.get $to) (local.get $pair))
    (local.set $pair (i16x8.narrow_i32x4_s
      (i32x4.shr_s (i32x4.add (local.get $even3) (local.get $odd0)) (local.get $shift))
      (i32x4.shr_s (i32x4.sub (local.get $even3) (local.get $odd0)) (local.get $shift))))
    (v128.store64_lane offset=48 0 (local.get $to) (local.get $pair))
    (v128.store64_lane offset=64 1 (local.get $to) (local.get $pair)))

  ;; i16 [8, 8].
  (func $transpose (param $from i32) (param $to i32)
    (local $a v128) (local $b v128) (local $c v128) (local $d v128) (local $e v128) (local $f v128) (local $g v128) (local $h v128)
    (local $i v128) (local $j v128) (local $k v128) (local $l v128)
    (local.set $i (v128.load (local.get $from)))
    (local.set $j (v128.load offset=16 (local.get $from)))
    (local.set $k (v128.load offset=32 (local.get $from)))
    (local.set $l (v128.load offset=48 (local.get $from)))
    (local.set $a (i8x16.shuffle 0 1 16 17 2 3 18 19 4 5 20 21 6 7 22 23 (local.get $i) (local.get $j)))
    (local.set $b (i8x16.shuffle 8 9 24 25 10 11 26 27 12 13 28 29 14 15 30 31 (local.get $i) (local.get $j)))
    (local.set $c (i8x16.shuffle 0 1 16 17 2 3 18 19 4 5 20 21 6 7 22 23 (local.get $k) (local.get $l)))
    (local.set $d (i8x16.shuffle 8 9 24 25 10 11 26 27 12 13 28 29 14 15 30 31 (local.get $k) (local.get $l)))
    ;; Of the upper four rows: columns 0 and 1, 2 and 3, 4 and 5, 6 and 7.
    (local.set $i (i8x16.shuffle 0 1 2 3 16 17 18 19 4 5 6 7 20 21 22 23 (local.get $a) (local.get $c)))
    (local.set $j (i8x16.shuffle 8 9 10 11 24 25 26 27 12 13 14 15 28 29 30 31 (local.get $a) (local.get $c)))
    (local.set $k (i8x16.shuffle 0 1 2 3 16 17 18 19 4 5 6 7 20 21 22 23 (local.get $b) (local.get $d)))
    (local.set $l (i8x16.shuffle 8 9 10 11 24 25 26 27 12 13 14 15 28 29 30 31 (local.get $b) (local.get $d)))
    (local.set $e (v128.load offset=64 (local.get $from)))
    (local.set $f (v128.load offset=80 (local.get $from)))
    (local.set $g (v128.load offset=96 (local.get $from)))
    (local.set $h (v128.load offset=112 (local.get $from)))
    (local.set $a (i8x16.shuffle 0 1 16 17 2 3 18 19 4 5 20 21 6 7 22 23 (local.get $e) (local.get $f)))
    (local.set $b (i8x16.shuffle 8 9 24 25 10 11 26 27 12 13 28 29 14 15 30 31 (local.get $e) (local.get $f)))
    (local.set $c (i8x16.shuffle 0 1 16 17 2 3 18 19 4 5 20 21 6 7 22 23 (local.get $g) (local.get $h)))
    (local.set $d (i8x16.shuffle 8 9 24 25 10 11 26 27 12 13 28 29 14 15 30 31 (local.get $g) (local.get $h)))
    (local.set $e (i8x16.shuffle 0 1 2 3 16 17 18 19 4 5 6 7 20 21 22 23 (local.get $a) (local.get $c)))
    (local.set $f (i8x16.shuffle 8 9 10 11 24 25 26 27 12 13 14 15 28 29 30 31 (local.get $a) (local.get $c)))
    (local.set $g (i8x16.shuffle 0 1 2 3 16 17 18 19 4 5 6 7 20 21 22 23 (local.get $b) (local.get $d)))
    (local.set $h (i8x16.shuffle 8 9 10 11 24 25 26 27 12 13 14 15 28 29 30 31 (local.get $b) (local.get $d)))
    (v128.store (local.get $to) (i8x16.shuffle 0 1 2 3 4 5 6 7 16 17 18 19 20 21 22 23 (local.get $i) (local.get $e)))
    (v128.store offset=16 (local.get $to) (i8x16.shuffle 8 9 10 11 12 13 14 15 24 25 26 27 28 29 30 31 (local.get $i) (local.get $e)))
    (v128.store offset=32 (local.get $to) (i8x16.shuffle 0 1 2 3 4 5 6 7 16 17 18 19 20 21 22 23 (local.get $j) (local.get $f)))
    (v128.store offset=48 (local.get $to) (i8x16.shuffle 8 9 10 11 12 13 14 15 24 25 26 27 28 29 30 31 (local.get $j) (local.get $f)))
    (v128.store offset=64 (local.get $to) (i8x16.shuffle 0 1 2 3 4 5 6 7 16 17 18 19 20 21 22 23 (local.get $k) (local.get $g)))
    (v128.store offset=80 (local.get $to) (i8x16.shuffle 8 9 10 11 12 13 14 15 24 25 26 27 28 29 30 31 (local.get $k) (local.get $g)))
    (v128.store offset=96 (local.get $to) (i8x16.shuffle 0 1 2 3 4 5 6 7 16 17 18 19 20 21 22 23 (local.get $l) (local.get $h)))
    (v128.store offset=112 (local.get $to) (i8x16.shuffle 8 9 10 11 12 13 14 15 24 25 26 27 28 29 30 31 (local.get $l) (local.get $h))))

  ;; A row of twice as many samples: three quarters of $near and one of $far, in both directions. The first and the last sample go on beyond the edges.
  (func $enlarge (param $near i32) (param $far i32) (param $out i32) (param $count i32)
    (local $at i32) (local $before v128) (local $here v128) (local $after v128) (local $even v128) (local $odd v128)
    (call $edges (local.get $near) (local.get $count))
    (call $edges (local.get $far) (local.get $count))
    (loop $chunk
      (local.set $before (i16x8.add (v128.load8x8_u (i32.sub (i32.add (local.get $far) (local.get $at)) (i32.const 1)))
        (i16x8.mul (v128.load8x8_u (i32.sub (i32.add (local.get $near) (local.get $at)) (i32.const 1))) (i16x8.splat (i32.const 3)))))
      (local.set $here (i16x8.add (v128.load8x8_u (i32.add (local.get $far) (local.get $at)))
        (i16x8.mul (v128.load8x8_u (i32.add (local.get $near) (local.get $at))) (i16x8.splat (i32.const 3)))))
      (local.set $after (i16x8.add (v128.load8x8_u offset=1 (i32.add (local.get $far) (local.get $at)))
        (i16x8.mul (v128.load8x8_u offset=1 (i32.add (local.get $near) (local.get $at))) (i16x8.splat (i32.const 3)))))
      (local.set $here (i16x8.mul (local.get $here) (i16x8.splat (i32.const 3))))
      (local.set $even (i16x8.shr_u (i16x8.add (i16x8.add (local.get $here) (local.get $before)) (i16x8.splat (i32.const 8))) (i32.const 4)))
      (local.set $odd (i16x8.shr_u (i16x8.add (i16x8.add (local.get $here) (local.get $after)) (i16x8.splat (i32.const 7))) (i32.const 4)))
      (v128.store (i32.add (local.get $out) (i32.shl (local.get $at) (i32.const 1)))
        (v128.or (local.get $even) (i16x8.shl (local.get $odd) (i32.const 8))))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $chunk (i32.lt_u (local.get $at) (local.get $count)))))

  ;; The same along the row alone.
  (func $widen (param $row i32) (param $out i32) (param $count i32)
    (local $at i32) (local $here v128) (local $even v128) (local $odd v128)
    (call $edges (local.get $row) (local.get $count))
    (loop $chunk
      (local.set $here (i16x8.mul (v128.load8x8_u (i32.add (local.get $row) (local.get $at))) (i16x8.splat (i32.const 3))))
      (local.set $even (i16x8.shr_u (i16x8.add (i16x8.add (local.get $here)
        (v128.load8x8_u (i32.sub (i32.add (local.get $row) (local.get $at)) (i32.const 1)))) (i16x8.splat (i32.const 1))) (i32.const 2)))
      (local.set $odd (i16x8.shr_u (i16x8.add (i16x8.add (local.get $here)
        (v128.load8x8_u offset=1 (i32.add (local.get $row) (local.get $at)))) (i16x8.splat (i32.const 2))) (i32.const 2)))
      (v128.store (i32.add (local.get $out) (i32.shl (local.get $at) (i32.const 1)))
        (v128.or (local.get $even) (i16x8.shl (local.get $odd) (i32.const 8))))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $chunk (i32.lt_u (local.get $at) (local.get $count)))))

  ;; The first sample once more before the row, the last one behind it.
  (func $edges (param $row i32) (param $count i32)
    (i32.store8 (i32.sub (local.get $row) (i32.const 1)) (i32.load8_u (local.get $row)))
    (i32.store8 (i32.add (local.get $row) (local.get $count)) (i32.load8_u (i32.sub (i32.add (local.get $row) (local.get $count)) (i32.const 1)))))

  ;; A row of RGB. Sixteen pixels at a time; what goes beyond the row is written over by the next one.
  (func $colours (param $light i32) (param $blue i32) (param $red i32) (param $out i32) (param $count i32)
    (local $at i32) (local $y v128) (local $b v128) (local $r v128) (local $low v128) (local $high v128)
    (local $reds v128) (local $greens v128) (local $blues v128)
    (loop $chunk
      (local.set $y (v128.load8x8_u (i32.add (local.get $light) (local.get $at))))
      (local.set $b (i16x8.sub (v128.load8x8_u (i32.add (local.get $blue) (local.get $at))) (i16x8.splat (i32.const 128))))
      (local.set $r (i16x8.sub (v128.load8x8_u (i32.add (local.get $red) (local.get $at))) (i16x8.splat (i32.const 128))))
      (local.set $reds (call $reddened (local.get $y) (local.get $r)))
      (local.set $greens (call $greened (local.get $y) (local.get $b) (local.get $r)))
      (local.set $blues (call $blued (local.get $y) (local.get $b)))
      (local.set $y (v128.load8x8_u offset=8 (i32.add (local.get $light) (local.get $at))))
      (local.set $b (i16x8.sub (v128.load8x8_u offset=8 (i32.add (local.get $blue) (local.get $at))) (i16x8.splat (i32.const 128))))
      (local.set $r (i16x8.sub (v128.load8x8_u offset=8 (i32.add (local.get $red) (local.get $at))) (i16x8.splat (i32.const 128))))
      (local.set $reds (i8x16.narrow_i16x8_u (local.get $reds) (call $reddened (local.get $y) (local.get $r))))
      (local.set $greens (i8x16.narrow_i16x8_u (local.get $greens) (call $greened (local.get $y) (local.get $b) (local.get $r))))
      (local.set $blues (i8x16.narrow_i16x8_u (local.get $blues) (call $blued (local.get $y) (local.get $b))))
      (local.set $low (i8x16.shuffle 0 16 1 17 2 18 3 19 4 20 5 21 6 22 7 23 (local.get $reds) (local.get $greens)))
      (local.set $high (i8x16.shuffle 8 24 9 25 10 26 11 27 12 28 13 29 14 30 15 31 (local.get $reds) (local.get $greens)))
      (v128.store (local.get $out) (i8x16.shuffle 0 1 16 2 3 17 4 5 18 6 7 19 8 9 20 10 (local.get $low) (local.get $blues)))
      (local.set $y (i8x16.shuffle 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 (local.get $low) (local.get $high)))
      (v128.store offset=16 (local.get $out) (i8x16.shuffle 0 21 1 2 22 3 4 23 5 6 24 7 8 25 9 10 (local.get $y) (local.get $blues)))
      (v128.store offset=32 (local.get $out) (i8x16.shuffle 26 6 7 27 8 9 28 10 11 29 12 13 30 14 15 31 (local.get $high) (local.get $blues)))
      (local.set $out (i32.add (local.get $out) (i32.const 48)))
      (local.set $at (i32.add (local.get $at) (i32.const 16)))
      (br_if $chunk (i32.lt_u (local.get $at) (local.get $count)))))

  ;; y + 1.402 r. The product's rounding is that of 26345 in 16 bits for each of r's 256 values.
  (func $reddened (param $y v128) (param $r v128) (result v128)
    (i16x8.add (local.get $y) (i16x8.add (local.get $r) (i16x8.q15mulr_sat_s (local.get $r) (i16x8.splat (i32.const 13172))))))

  ;; y - 0.34414 b - 0.71414 r.
  (func $greened (param $y v128) (param $b v128) (param $r v128) (result v128)
    (i16x8.add (i16x8.sub (local.get $y) (local.get $r)) (i16x8.narrow_i32x4_s
      (i32x4.shr_s (i32x4.add (i32x4.splat (i32.const 16384)) (i32x4.dot_i16x8_s
        (i8x16.shuffle 0 1 16 17 2 3 18 19 4 5 20 21 6 7 22 23 (local.get $b) (local.get $r))
        (v128.const i16x8 -11277 9367 -11277 9367 -11277 9367 -11277 9367))) (i32.const 15))
      (i32x4.shr_s (i32x4.add (i32x4.splat (i32.const 16384)) (i32x4.dot_i16x8_s
        (i8x16.shuffle 8 9 24 25 10 11 26 27 12 13 28 29 14 15 30 31 (local.get $b) (local.get $r))
        (v128.const i16x8 -11277 9367 -11277 9367 -11277 9367 -11277 9367))) (i32.const 15)))))

  ;; y + 1.772 b.
  (func $blued (param $y v128) (param $b v128) (result v128)
    (i16x8.add (i16x8.add (local.get $y) (i16x8.add (local.get $b) (local.get $b)))
      (i16x8.q15mulr_sat_s (local.get $b) (i16x8.splat (i32.const -7471)))))

  ;; RGB from the planes of "scan". $halved: the colours are so in one direction (1), in both (2), or in none (0). $light, $blue, $red: as $parts of "scan".
  ;; $blue_row, $red_row: room for enlarged rows of colour. $colour_width, $colour_height: what the picture has of them.
  (func (export "paint") (param $light i32) (param $blue i32) (param $red i32) (param $halved i32) (param $blue_row i32) (param $red_row i32)
    (param $colour_width i32) (param $colour_height i32) (param $out i32) (param $width i32) (param $height i32)
    (local $row i32) (local $near i32) (local $far i32) (local $light_at i32) (local $blue_at i32) (local $red_at i32) (local $row_bytes i32)
    (local.set $light_at (i32.load offset=8 (local.get $light)))
    (local.set $blue_at (i32.load offset=8 (local.get $blue)))
    (local.set $red_at (i32.load offset=8 (local.get $red)))
    (local.set $row_bytes (i32.load offset=12 (local.get $blue)))
    (loop $next
      (block $painted
        (block $widened
          (block $whole
            (br_if $whole (i32.eqz (local.get $halved)))
            (block $both
              (br_if $both (i32.eq (local.get $halved) (i32.const 2)))
              (call $widen (i32.add (local.get $blue_at) (i32.mul (local.get $row) (local.get $row_bytes))) (local.get $blue_row) (local.get $colour_width))
              (call $widen (i32.add (local.get $red_at) (i32.mul (local.get $row) (local.get $row_bytes))) (local.get $red_row) (local.get $colour_width))
              (br $widened))
            ;; Between its own row of colours and the one above or below; at the edges its own twice.
            (local.set $near (i32.shr_u (local.get $row) (i32.const 1)))
            (local.set $far (i32.sub (i32.add (local.get $near) (i32.shl (i32.and (local.get $row) (i32.const 1)) (i32.const 1))) (i32.const 1)))
            (block $inside
              (br_if $inside (i32.lt_u (local.get $far) (local.get $colour_height)))
              (local.set $far (local.get $near)))
            (local.set $near (i32.mul (local.get $near) (local.get $row_bytes)))
            (local.set $far (i32.mul (local.get $far) (local.get $row_bytes)))
            (call $enlarge (i32.add (local.get $blue_at) (local.get $near)) (i32.add (local.get $blue_at) (local.get $far))
              (local.get $blue_row) (local.get $colour_width))
            (call $enlarge (i32.add (local.get $red_at) (local.get $near)) (i32.add (local.get $red_at) (local.get $far))
              (local.get $red_row) (local.get $colour_width))
            (br $widened))
          (local.set $near (i32.mul (local.get $row) (local.get $row_bytes)))
          (call $colours (local.get $light_at) (i32.add (local.get $blue_at) (local.get $near)) (i32.add (local.get $red_at) (local.get $near))
            (local.get $out) (local.get $width))
          (br $painted))
        (call $colours (local.get $light_at) (local.get $blue_row) (local.get $red_row) (local.get $out) (local.get $width)))
      (local.set $light_at (i32.add (local.get $light_at) (i32.load offset=12 (local.get $light))))
      (local.set $out (i32.add (local.get $out) (i32.mul (local.get $width) (i32.const 3))))
      (local.set $row (i32.add (local.get $row) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $row) (local.get $height))))))
