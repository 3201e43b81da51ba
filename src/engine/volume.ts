/**
 * One attached volume in the control thread: its record, its shared memory, and the gate.
 *
 * The gate holds writes back for the instant of a switch. Closing it: set the word, then wait until no worker is inside a
 * write of this volume, for a bounded time; if that runs out the gate opens again and the operation fails. While it is
 * closed only memory is changed: an I/O could wait, through another volume, for a worker that waits at this gate.
 */
import { type BlockDevice, FdDevice } from '../block/device.js';
import { CowbirdError } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { BLOCK_BYTES, MAX_WORKERS, VolumeMemory, Word } from '../tracer/layout.js';
import { type StoreInUse, Tracer } from '../tracer/tracer.js';
import type { Pool } from './pool.js';
import type { VolumeRecord } from './records.js';

const GATE_TIMEOUT_MS = 5_000;

/** This process's duplicates of the keeper's descriptors. */
export interface VolumeFds {
  origin: number;
  fuse: number;
  memory: number;
}

export class Volume {
  record: VolumeRecord;
  readonly fds: VolumeFds;
  readonly memory: VolumeMemory;
  readonly origin: BlockDevice;
  readonly tracer: Tracer;
  readonly #pool: Pool;
  /** Duplicates for the snapshot: its FUSE descriptor and a store of its own. */
  snapshotFuseFd: number | undefined;
  storeFd: number | undefined;
  #storeDevice: BlockDevice;

  constructor(record: VolumeRecord, fds: VolumeFds, pool: Pool, onAttention: () => void) {
    this.record = record;
    this.fds = fds;
    this.#pool = pool;
    const { sizeBytes, isFile } = record.opened;
    this.memory = new VolumeMemory(
      { map: (offset, lengthBytes) => libc.mapShared(fds.memory, offset, lengthBytes) },
      this.blockCount,
    );
    this.origin = new FdDevice(fds.origin, sizeBytes, isFile);
    this.#storeDevice = this.origin;
    this.tracer = new Tracer(this.memory, this.origin, {
      wake: (word) => this.wake(word),
      attention: onAttention,
      refresh: () => undefined,
    });
  }

  get blockCount(): number {
    return Math.ceil(this.record.opened.sizeBytes / BLOCK_BYTES);
  }

  get storeDevice(): BlockDevice {
    return this.#storeDevice;
  }

  /** Makes the volume known to the workers, which then can be given its store. */
  announce(): void {
    const { id, opened } = this.record;
    this.#pool.addVolume({
      id,
      sizeBytes: opened.sizeBytes,
      blockCount: this.blockCount,
      originFd: this.fds.origin,
      originIsFile: opened.isFile,
      readOnly: opened.readOnly,
      memoryFd: this.fds.memory,
    });
  }

  /** Begins to serve requests. From here on a worker may need the store. */
  serve(): void {
    const { id, workers, device } = this.record;
    this.#pool.addSession({ id: device.id, volumeId: id, kind: 'volume', fd: this.fds.fuse, concurrency: workers });
  }

  /** Gives everybody a store configuration. Only with the gate closed, or while nothing is tracked. */
  setStore(store: StoreInUse | undefined, device?: { fd: number; sizeBytes: number }): void {
    this.#storeDevice = device === undefined ? this.origin : new FdDevice(device.fd, device.sizeBytes, false);
    this.tracer.setStore(store, this.#storeDevice);
    const generation = this.memory.get(Word.GENERATION) + 1;
    this.#pool.setStore(
      this.record.id,
      generation,
      store === undefined ? undefined : { ...store, ...(device === undefined ? {} : { device }) },
    );
    this.memory.set(Word.GENERATION, generation);
  }

  wake(word: number): void {
    libc.futexWake(this.memory.wordsAddress + word * 4, 0x7fff_ffff);
  }

  /** Closes the gate, runs `change` (memory only), opens the gate. Returns what it returned. */
  async whilePaused<T>(change: () => T): Promise<T> {
    this.memory.set(Word.GATE, 1);
    try {
      const deadline = Date.now() + GATE_TIMEOUT_MS;
      while (this.#isBusy()) {
        if (Date.now() > deadline) {
          throw new CowbirdError(
            'ETIMEDOUT',
            `Writes to ${this.record.name} did not end within ${GATE_TIMEOUT_MS} ms: its origin may hang`,
            { outcome: 'failed' },
          );
        }
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      return change();
    } finally {
      this.memory.set(Word.GATE, 0);
      this.wake(Word.GATE);
    }
  }

  #isBusy(): boolean {
    for (let worker = 0; worker < MAX_WORKERS; worker++) {
      if (this.memory.get(Word.BUSY + worker) !== 0) return true;
    }
    return false;
  }

  /** Forgets what the dead engine's workers had in hand: their requests come again, so nothing is lost. */
  clearInFlight(): void {
    const { memory } = this;
    for (let worker = 0; worker < MAX_WORKERS; worker++) memory.set(Word.BUSY + worker, 0);
    memory.set(Word.STORE_WRITES, 0);
    memory.set(Word.HEADER_LOCK, 0);
    memory.set(Word.GATE, 0);
    for (let block = 0; block < 65_536; block++) memory.set(memory.claimWord(block), 0);
  }
}
