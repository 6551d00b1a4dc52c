/** The worker thread that trains: a `LocalTrainer` behind calls. */
import { unreachable } from '../errors.ts'
import type { Trainables } from '../graph/parameters.ts'
import { createLocalSession } from '../runtime/local.ts'
import { type CallContext, serve, transferring } from '../runtime/rpc.ts'
import type { ModelSource, SessionOptions } from '../runtime/session.ts'
import type { NamedTensors } from '../tensors.ts'
import { type OptimizerSpec, optimizerOf } from './optimizers/index.ts'
import { LocalTrainer, type TrainerSnapshot } from './trainer.ts'

export interface OpenRequest {
  readonly model: ModelSource
  readonly session: SessionOptions
  readonly trainables: Trainables
  readonly optimizer: OptimizerSpec
  readonly maxGradientNorm: number | undefined
}

let trainer: LocalTrainer | undefined
const opened = (): LocalTrainer => trainer ?? unreachable('the trainer was called before it was opened')

const handlers = {
  async open({ model, session, trainables, optimizer, maxGradientNorm }: OpenRequest) {
    const local = await createLocalSession(model, session)
    trainer = new LocalTrainer({
      session: local,
      // On the device that was found: what was taken once is not negotiated again.
      reopen: () => createLocalSession(model, { ...session, device: local.device }),
      trainables,
      optimizer: optimizerOf(optimizer),
      ...(maxGradientNorm !== undefined && { maxGradientNorm }),
    })
    return { device: local.device, passedOver: local.passedOver }
  },
  accumulate: ({ feeds, weight }: { readonly feeds: NamedTensors; readonly weight: number }, { signal }: CallContext) =>
    opened().accumulate(feeds, weight, signal),
  update: ({ learningRate }: { readonly learningRate: number }) => opened().update(learningRate),
  loss: ({ feeds }: { readonly feeds: NamedTensors }, { signal }: CallContext) => opened().loss(feeds, signal),
  async snapshot(_: undefined) {
    const snapshot = await opened().snapshot()
    const arrays = [
      ...Object.values(snapshot.parameters).map(({ data }) => data),
      ...Object.values(snapshot.optimizer.slots).flatMap((slot) => Object.values(slot)),
    ]
    return transferring(
      snapshot,
      arrays.map(({ buffer }) => buffer as ArrayBuffer),
    )
  },
  restore: (snapshot: TrainerSnapshot) => opened().restore(snapshot),
  suspend: (_: undefined) => opened().suspend(),
}
export type TrainerHandlers = typeof handlers

serve(handlers, { dispose: () => trainer?.dispose() })
