import { connectWorker } from '../runtime/rpc.ts'
import type { Device, PassedOver } from '../runtime/session.ts'
import type { Trainer } from './trainer.ts'
import type { OpenRequest, TrainerHandlers } from './trainer-worker.ts'

/** A trainer with what is known of where it runs. */
export interface WorkerTrainer extends Trainer {
  readonly device: Device
  readonly passedOver: readonly PassedOver[]
}

/**
 * A trainer in a worker thread of its own: native runs block that thread, not the caller's. Parameters, gradients and optimizer state stay there; batches and
 * metrics cross.
 *
 * @throws what loading the model throws.
 */
export async function openTrainer(request: OpenRequest): Promise<WorkerTrainer> {
  const worker = connectWorker<TrainerHandlers>(
    new URL(import.meta.url.endsWith('.ts') ? './trainer-worker.ts' : './trainer-worker.js', import.meta.url),
  )
  try {
    const { device, passedOver } = await worker.call('open', request)
    return {
      device,
      passedOver,
      accumulate: (feeds, weight, signal) => worker.call('accumulate', { feeds, weight }, { ...(signal && { signal }) }),
      update: (learningRate) => worker.call('update', { learningRate }),
      loss: (feeds, signal) => worker.call('loss', { feeds }, { ...(signal && { signal }) }),
      snapshot: () => worker.call('snapshot', undefined),
      restore: (snapshot) => worker.call('restore', snapshot),
      suspend: () => worker.call('suspend', undefined),
      dispose: () => worker.dispose(),
      [Symbol.asyncDispose]: () => worker.dispose(),
    }
  } catch (error) {
    await worker.dispose()
    throw error
  }
}
