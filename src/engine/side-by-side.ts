/**
 * Executes the steps of one worker; reads that may go at the same time are given to the kernel at once (`aio.ts`).
 *
 * A failed or short transfer is done again by its device, in this thread, which says what is wrong. Whatever happens, nothing
 * is in hand afterwards: the memory is used for the next request.
 */
import { FdDevice } from '../block/device.js';
import { AioQueue } from '../sys/aio.js';
import { assert } from '../sys/errors.js';
import { type IoStep, performIo, type ReadStep } from '../tracer/steps.js';

/** Transfers in hand at a time. */
const DEPTH = 64;

export class SideBySide {
  readonly #queue = AioQueue.open(DEPTH);

  /** Executes one I/O step. @throws {SystemError} */
  perform(step: IoStep): void {
    if (step.kind !== 'readTogether' || this.#queue === undefined) {
      performIo(step);
      return;
    }
    for (let from = 0; from < step.reads.length; from += DEPTH)
      this.#readTogether(this.#queue, step.reads.slice(from, from + DEPTH));
  }

  #readTogether(queue: AioQueue, reads: readonly ReadStep[]): void {
    reads.forEach(({ device, buffer, at, lengthBytes, offset }, slot) => {
      assert(device instanceof FdDevice, 'a worker reads from descriptors');
      device.checkRange(buffer, at, lengthBytes, offset);
      queue.prepare(slot, false, device.fd, buffer.address + at, lengthBytes, offset);
    });
    const submitted = queue.submit();
    const again: ReadStep[] = [...reads.slice(submitted)];
    let left = submitted;
    while (left > 0) {
      queue.reap(left, DEPTH, (slot, result) => {
        left--;
        const read = reads[slot];
        assert(read !== undefined, 'a completion is of a read in hand');
        if (result !== read.lengthBytes) again.push(read);
      });
    }
    for (const read of again) performIo(read);
  }
}
