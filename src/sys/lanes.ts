/**
 * Large transfers of one thread that the kernel does side by side: each lane has a buffer, and one transfer in hand at most.
 *
 * For copying, where a device that is asked for one thing at a time stands still in between. Where the kernel has no
 * asynchronous I/O for us (`aio.ts`) a transfer is done when it is begun: slower, and nothing else differs.
 */
import { constants, openSync } from 'node:fs';
import { AioQueue } from './aio.js';
import { assert, errnoOfError } from './errors.js';
import * as libc from './libc.js';

export interface LaneTransfer {
  isWrite: boolean;
  /** Opened with O_DIRECT, or it is no use: transfers through the page cache are done before their submission returns. */
  fd: number;
  /** Both in whole sectors. */
  lengthBytes: number;
  offset: number;
}

const PAGE_BYTES = 4096;
const EINVAL = 22;

export class Lanes {
  readonly count: number;
  readonly #queue: AioQueue | undefined;
  readonly #buffers: Array<{ bytes: Buffer; address: number }> = [];
  /** What came of each lane's transfer; `pending` while it is in hand, undefined where there is none. */
  readonly #results: Array<number | 'pending' | undefined>;

  constructor(count: number, laneBytes: number) {
    assert(laneBytes % PAGE_BYTES === 0, `a lane of ${laneBytes} bytes is in whole pages`);
    this.count = count;
    this.#queue = AioQueue.open(count);
    this.#results = new Array<undefined>(count).fill(undefined);
    const memory = libc.mapPages(count * laneBytes);
    for (let lane = 0; lane < count; lane++) {
      const bytes = Buffer.from(memory.bytes, lane * laneBytes, laneBytes);
      this.#buffers.push({ bytes, address: memory.address + lane * laneBytes });
    }
  }

  buffer(lane: number): Buffer {
    return this.#lane(lane).bytes;
  }

  /** Begins a transfer from or to the start of a lane's buffer, which is the kernel's until {@link end}. */
  begin(lane: number, { isWrite, fd, lengthBytes, offset }: LaneTransfer): void {
    const { address, bytes } = this.#lane(lane);
    assert(this.#results[lane] === undefined, () => `lane ${lane} has no transfer in hand`);
    assert(lengthBytes <= bytes.byteLength, () => `${lengthBytes} bytes fit in a lane`);
    this.#queue?.prepare(lane, isWrite, fd, address, lengthBytes, offset);
    if (this.#queue?.submit() === 1) {
      this.#results[lane] = 'pending';
      return;
    }
    const count = (isWrite ? libc.fast.pwrite : libc.fast.pread)(fd, address, lengthBytes, offset);
    this.#results[lane] = count < 0 ? -libc.lastErrno() : count;
  }

  /** Waits for a lane's transfer: bytes that were transferred, or a negative errno. */
  end(lane: number): number {
    while (this.#results[lane] === 'pending') {
      this.#queue?.reap(1, this.count, (slot, result) => {
        this.#results[slot] = result;
      });
    }
    const result = this.#results[lane];
    assert(typeof result === 'number', () => `lane ${lane} has a transfer`);
    this.#results[lane] = undefined;
    return result;
  }

  /** Waits for everything in hand, and forgets it. */
  drain(): void {
    for (let lane = 0; lane < this.count; lane++) if (this.#results[lane] !== undefined) this.end(lane);
  }

  #lane(lane: number): { bytes: Buffer; address: number } {
    const found = this.#buffers[lane];
    assert(found !== undefined, () => `there is a lane ${lane}`);
    return found;
  }
}

/** The same file opened again, past the page cache, for the caller to close; undefined where its file system has no such way. */
export function openDirect(fd: number): number | undefined {
  try {
    return openSync(`/proc/self/fd/${fd}`, constants.O_RDWR | constants.O_DIRECT);
  } catch (error) {
    if (errnoOfError(error) === EINVAL) return undefined;
    throw error;
  }
}
