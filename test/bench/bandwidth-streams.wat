;; Reads memory as four streams at once, a cache line of each a turn: see bandwidth-worker.ts.
(module
  (memory (import "bandwidth" "memory") 1 65536 shared)
  ;; $length: a multiple of 256. The result hangs on every byte, so that nothing can be left out.
  (func (export "read") (param $first i32) (param $length i32) (result i32)
    (local $second i32) (local $third i32) (local $fourth i32) (local $end i32) (local $quarter i32)
    (local $a v128) (local $b v128) (local $c v128) (local $d v128)
    (local.set $quarter (i32.shr_u (local.get $length) (i32.const 2)))
    (local.set $second (i32.add (local.get $first) (local.get $quarter)))
    (local.set $third (i32.add (local.get $second) (local.get $quarter)))
    (local.set $fourth (i32.add (local.get $third) (local.get $quarter)))
    (local.set $end (local.get $second))
    (loop $line
      (local.set $a (v128.or (local.get $a) (v128.or
        (v128.or (v128.load (local.get $first)) (v128.load offset=16 (local.get $first)))
        (v128.or (v128.load offset=32 (local.get $first)) (v128.load offset=48 (local.get $first))))))
      (local.set $b (v128.or (local.get $b) (v128.or
        (v128.or (v128.load (local.get $second)) (v128.load offset=16 (local.get $second)))
        (v128.or (v128.load offset=32 (local.get $second)) (v128.load offset=48 (local.get $second))))))
      (local.set $c (v128.or (local.get $c) (v128.or
        (v128.or (v128.load (local.get $third)) (v128.load offset=16 (local.get $third)))
        (v128.or (v128.load offset=32 (local.get $third)) (v128.load offset=48 (local.get $third))))))
      (local.set $d (v128.or (local.get $d) (v128.or
        (v128.or (v128.load (local.get $fourth)) (v128.load offset=16 (local.get $fourth)))
        (v128.or (v128.load offset=32 (local.get $fourth)) (v128.load offset=48 (local.get $fourth))))))
      (local.set $first (i32.add (local.get $first) (i32.const 64)))
      (local.set $second (i32.add (local.get $second) (i32.const 64)))
      (local.set $third (i32.add (local.get $third) (i32.const 64)))
      (local.set $fourth (i32.add (local.get $fourth) (i32.const 64)))
      (br_if $line (i32.lt_u (local.get $first) (local.get $end))))
    (v128.any_true (v128.or (v128.or (local.get $a) (local.get $b)) (v128.or (local.get $c) (local.get $d))))))
