;; Interleaved bytes to planes of floats: see preprocess.ts, which says the same in TypeScript.
(module
  (memory (export "memory") 1)
  ;; $pixels: u8 [count, 3]; $values: f32 [3, 256], what each byte of each channel becomes; $target: f32 [3, count], of $plane bytes a channel.
  (func (export "planes") (param $pixels i32) (param $values i32) (param $target i32) (param $plane i32)
    (local $end i32)
    (local.set $end (i32.add (local.get $target) (local.get $plane)))
    (loop $pixel
      (f32.store (local.get $target)
        (f32.load (i32.add (local.get $values) (i32.shl (i32.load8_u (local.get $pixels)) (i32.const 2)))))
      (f32.store (i32.add (local.get $target) (local.get $plane))
        (f32.load offset=1024 (i32.add (local.get $values) (i32.shl (i32.load8_u offset=1 (local.get $pixels)) (i32.const 2)))))
      (f32.store (i32.add (local.get $target) (i32.shl (local.get $plane) (i32.const 1)))
        (f32.load offset=2048 (i32.add (local.get $values) (i32.shl (i32.load8_u offset=2 (local.get $pixels)) (i32.const 2)))))
      (local.set $pixels (i32.add (local.get $pixels) (i32.const 3)))
      (local.set $target (i32.add (local.get $target) (i32.const 4)))
      (br_if $pixel (i32.lt_u (local.get $target) (local.get $end))))))
