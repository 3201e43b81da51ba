/** One attached volume in the control thread: its record, its shared memory, its gate and its store. */
import { type BlockDevice, FdDevice } from '../block/device.js';
import { CowbirdError } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { whileGatesClosed } from '../tracer/gate.js';
import { BLOCK_BYTES, VolumeMemory, Word } from '../tracer/layout.js';
import { type StoreInUse, Tracer } from '../tracer/tracer.js';
import { runStepsAsync } from './async-steps.js';
import type { Pool } from './pool.js';
import type { VolumeRecord } from './records.js';
import type { MappedPart } from './worker-messages.js';

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
  readonly #mappings: MappedPart[] = [];
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
      {
        map: (offset, lengthBytes) => {
          const mapping = libc.mapShared(fds.memory, offset, lengthBytes);
          this.#mappings.push({ offset, lengthBytes, address: mapping.address });
          return mapping;
        },
      },
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
      memory: this.#mappings,
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
  whilePaused<T>(change: () => T): Promise<T> {
    return whileAllPaused([this], change);
  }
}

/** Closes the gates of several volumes, runs `change` (memory only), opens them. Returns what it returned. */
export async function whileAllPaused<T>(volumes: readonly Volume[], change: () => T): Promise<T> {
  const gated = volumes.map((volume) => ({ memory: volume.memory, wake: (word: number) => volume.wake(word) }));
  try {
    return await runStepsAsync(whileGatesClosed(gated, change));
  } catch (error) {
    if (!(error instanceof CowbirdError) || error.code !== 'ETIMEDOUT') throw error;
    const names = volumes.map(({ record }) => record.name).join(', ');
    throw new CowbirdError('ETIMEDOUT', `${names}: ${error.message}`, { outcome: 'failed' });
  }
}

/** What of a volume tells how far its pending operation came. */
export type Resumable = Pick<Volume, 'memory' | 'record'>;
