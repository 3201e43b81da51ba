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
    // All are looked at before the first is prepared: what is prepared is submitted, whatever comes next.
    const fds = reads.map(({ device, buffer, at, lengthBytes, offset }) => {
      assert(device instanceof FdDevice, 'a worker reads from descriptors');
      device.checkRange(buffer, at, lengthBytes, offset);
      return device.fd;
    });
    reads.forEach(({ buffer, at, lengthBytes, offset }, slot) => {
      queue.prepare(slot, false, fds[slot] ?? -1, buffer.address + at, lengthBytes, offset);
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
