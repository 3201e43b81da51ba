/**
 * The write path of one volume: passthrough, incremental tracking, and copy-on-write.
 *
 * Order of effects of a write in snapshot mode, for the blocks that are not saved yet (numbers are the design's invariants):
 *
 *   1. enter: say that this worker is inside, then look at the gate. Only in this order: whoever closes the gate looks at
 *      the workers afterwards, so one of the two sees the other.
 *   2. a header on disk that says CLEAN is made dirty and flushed                      (I3: no trusted map with a hole)
 *   3. claim the blocks in ascending order; what was not saved may be saved by now: look again
 *      (blocks that were free at T0 are passed over: the snapshot has zeros there. They are marked all the same)
 *   4. read the old contents, append them to the store, write the index entries, set the map's bits, release the claims
 *   5. write the origin, reply                                        (I2: who finds a bit clear may read the origin,
 *                                                                      provided that it looks again afterwards)
 *
 * A crash before 5 leaves the origin old, and whatever was saved says so truthfully. Any failure of 2 to 4 fails the
 * snapshot, never the write (I1): the word FAILED is set before the origin changes, the blocks are marked all the same (I3),
 * and readers look at FAILED after they have read.
 *
 * Waiting while holding: a request inside (1) waits only for claims, and holds claims only while it does I/O; claims are
 * taken in ascending order of their words. The gate is never waited for from inside. So nothing waits in a circle, as long as
 * a worker with several requests in hand never waits for one of them without letting the others get on.
 */
import type { BlockDevice, IoBuffer } from '../block/device.js';
import { errnoOfError, messageOf } from '../sys/errors.js';
import { BLOCK_BYTES, Gate, HeaderState, Mode, type VolumeMemory, Word } from './layout.js';
import { type BlockRun, claimRun, oneRun, saveBlocks } from './saving.js';
import { SmallWrite } from './small-write.js';
import type { Stepper, Steps } from './steps.js';
import { writePlaces } from './store-io.js';
import { type StoreConfig, StoreMap } from './store-map.js';
import { nonZeroRuns } from './zeros.js';

/** Somebody wrote into the store's blocks: EUCLEAN. */
export const STORE_OVERWRITTEN = 117;

/** What a worker brings to a request: who it is, and locked memory for copying. */
export interface RequestContext {
  /** 0 to MAX_WORKERS - 1. It may have several requests in hand, each with a context of its own. */
  readonly worker: number;
  /** Page-aligned; its length is a multiple of the block and is the longest run that one copy takes. */
  readonly scratch: IoBuffer;
}

/** The store in use, with the header page that says "unclean" for it. */
export interface StoreInUse {
  config: StoreConfig;
  dirtyHeader: Uint8Array;
}

export interface TracerHooks {
  /** Wakes sleepers on a word of the shared memory. */
  wake(word: number): void;
  /** Something for the control thread: the snapshot failed, with its cause in words, or the store's fill passed a mark. */
  attention(cause?: string): void;
  /**
   * Takes over a configuration that was announced by `Word.GENERATION`, if there is one. Called after entering, and before
   * a place of the store is looked up: a new configuration is announced before the gate opens on it.
   */
  refresh(): void;
}

export class Tracer {
  readonly memory: VolumeMemory;
  readonly origin: BlockDevice;
  readonly hooks: TracerHooks;
  #store: { map: StoreMap; device: BlockDevice; dirtyHeader: Uint8Array } | undefined;
  #lowWaterSlot = Number.POSITIVE_INFINITY;

  constructor(memory: VolumeMemory, origin: BlockDevice, hooks: TracerHooks) {
    this.memory = memory;
    this.origin = origin;
    this.hooks = hooks;
  }

  /** Takes a new configuration. Only while the gate is closed or the volume is not written. */
  setStore(store: StoreInUse | undefined, device: BlockDevice): void {
    if (store === undefined) {
      this.#store = undefined;
      return;
    }
    const map = new StoreMap(store.config);
    this.#store = { map, device, dirtyHeader: store.dirtyHeader };
    this.#lowWaterSlot = Math.floor(map.slotCount * 0.8);
  }

  get storeMap(): StoreMap | undefined {
    return this.#store?.map;
  }

  get storeDevice(): BlockDevice | undefined {
    return this.#store?.device;
  }

  /** Serves one write. */
  write(context: RequestContext, buffer: IoBuffer, at: number, lengthBytes: number, offset: number): Stepper {
    return new SmallWrite(this, context, buffer, at, lengthBytes, offset);
  }

  /** Serves one write, whatever has to be done or waited for. */
  *writeByParts(context: RequestContext, buffer: IoBuffer, at: number, lengthBytes: number, offset: number): Steps {
    yield* this.#enter(context);
    try {
      yield* this.#beforeWrite(context, offset, lengthBytes);
      yield { kind: 'write', device: this.origin, buffer, at, lengthBytes, offset };
    } finally {
      this.end(context);
    }
  }

  /**
   * Begins a write for which nothing has to be saved or waited for: most of them. True: it is inside, the origin may be
   * written, and {@link end} has to follow. False: nothing was done; {@link write} does what is missing.
   */
  begin(context: RequestContext, lengthBytes: number, offset: number): boolean {
    const { memory } = this;
    Atomics.add(memory.words, Word.BUSY + context.worker, 1);
    if (memory.get(Word.GATE) === Gate.OPEN) {
      this.hooks.refresh();
      if (this.#isReady(Math.floor(offset / BLOCK_BYTES), Math.floor((offset + lengthBytes - 1) / BLOCK_BYTES)))
        return true;
    }
    this.end(context);
    return false;
  }

  /**
   * Begins a write of which one run of blocks has to be saved, and nothing else done or waited for. The run is claimed, and the
   * write is inside: {@link end} has to follow. Undefined: nothing was done; {@link writeByParts} does what is missing.
   */
  beginSaving(context: RequestContext, lengthBytes: number, offset: number): BlockRun | undefined {
    const { memory } = this;
    Atomics.add(memory.words, Word.BUSY + context.worker, 1);
    if (memory.get(Word.GATE) === Gate.OPEN) {
      this.hooks.refresh();
      const first = Math.floor(offset / BLOCK_BYTES);
      const last = Math.floor((offset + lengthBytes - 1) / BLOCK_BYTES);
      const run = oneRun(memory, first, last);
      const fits = run !== undefined && (run.end - run.first) * BLOCK_BYTES <= context.scratch.bytes.byteLength;
      if (fits && this.#savesPlainly(first, last) && claimRun(this, context.worker, run)) return run;
    }
    this.end(context);
    return undefined;
  }

  /** Whether saving is all that has to be done before these blocks are written. */
  #savesPlainly(first: number, last: number): boolean {
    const { memory } = this;
    return (
      memory.get(Word.MODE) === Mode.SNAPSHOT &&
      memory.get(Word.NOTING) === 0 &&
      memory.get(Word.FAILED) === 0 &&
      memory.get(Word.HEADER_STATE) === HeaderState.DIRTY &&
      (this.#store?.map.firstOwnBlock(first, last) ?? 0) < 0
    );
  }

  /** Whether these blocks may be written as it is; then they are marked, where they have to be. */
  #isReady(first: number, last: number): boolean {
    const { memory } = this;
    if (memory.get(Word.NOTING) !== 0) return false;
    const mode = memory.get(Word.MODE);
    if (mode === Mode.PASSTHROUGH) {
      this.#noteUntracked();
      return true;
    }
    if (memory.get(Word.HEADER_STATE) !== HeaderState.DIRTY) return false;
    const map = this.#store?.map;
    if (map !== undefined && map.firstOwnBlock(first, last) >= 0) return false;
    if (mode === Mode.SNAPSHOT) return memory.nextUnmarked(first, last + 1) > last;
    memory.mark(first, last);
    return true;
  }

  /**
   * Serves a discard (`unmap`) or a write-zeroes: a write of zeros, in pieces so that memory and the time that a closing
   * gate waits stay bounded. What reads as zeros already is neither saved nor marked.
   */
  *zero(context: RequestContext, offset: number, lengthBytes: number, unmap: boolean): Steps {
    const end = offset + lengthBytes;
    let position = offset;
    while (position < end) {
      yield* this.#enter(context);
      try {
        if (this.memory.get(Word.MODE) === Mode.PASSTHROUGH) {
          const piece = Math.min(end - position, PASSTHROUGH_ZERO_BYTES);
          this.#noteUntracked();
          yield { kind: 'zero', device: this.origin, lengthBytes: piece, offset: position, unmap };
          position += piece;
        } else {
          yield* this.#guardStore(context, position, end - position);
          const data = unmap ? this.origin.nextData(position, end) : position;
          // The end of the hole may stand inside a sector's block; data before it is in this piece's range anyway.
          position = Math.min(end, Math.max(position, data - (data % BLOCK_BYTES)));
          if (position < end) position = yield* this.#zeroPiece(context, position, end, unmap);
        }
      } finally {
        this.end(context);
      }
    }
  }

  *#zeroPiece(context: RequestContext, position: number, end: number, unmap: boolean): Steps<number> {
    const { scratch } = context;
    const span = scratch.bytes.byteLength - (position % BLOCK_BYTES);
    const lengthBytes = Math.min(end - position, span);
    const first = Math.floor(position / BLOCK_BYTES);
    const last = Math.floor((position + lengthBytes - 1) / BLOCK_BYTES);
    if (
      this.memory.nextUnmarked(first, last + 1) > last ||
      !(yield* this.#readToScratch(context, position, lengthBytes))
    ) {
      yield* this.#beforeWrite(context, position, lengthBytes);
    } else {
      // Saving uses the same scratch memory, so the runs are found before the first of them is saved.
      for (const run of nonZeroRuns(scratch.bytes.subarray(0, lengthBytes), position)) {
        yield* this.#beforeWrite(context, run.offset, run.lengthBytes);
      }
    }
    yield { kind: 'zero', device: this.origin, lengthBytes, offset: position, unmap };
    return position + lengthBytes;
  }

  /** False where it cannot be read: that is no reason to refuse what is written over it. */
  *#readToScratch({ scratch }: RequestContext, offset: number, lengthBytes: number): Steps<boolean> {
    try {
      yield { kind: 'read', device: this.origin, buffer: scratch, at: 0, lengthBytes, offset };
      return true;
    } catch {
      return false;
    }
  }

  /** Passes a flush on. Nothing of ours is waited for: a snapshot's durability is not the user's flush. */
  *flush(): Steps {
    yield { kind: 'flush', device: this.origin };
  }

  /** Everything that must be true before the origin's bytes in this range change. Never throws for the store's sake. */
  *#beforeWrite(context: RequestContext, offset: number, lengthBytes: number): Steps {
    const { memory } = this;
    const mode = memory.get(Word.MODE);
    const first = Math.floor(offset / BLOCK_BYTES);
    const last = Math.floor((offset + lengthBytes - 1) / BLOCK_BYTES);
    if (memory.get(Word.NOTING) !== 0) memory.note(first, last);
    if (mode === Mode.PASSTHROUGH) {
      this.#noteUntracked();
      return;
    }
    if (memory.get(Word.HEADER_STATE) !== HeaderState.DIRTY) yield* this.makeDirty(context);
    yield* this.#guardStore(context, offset, lengthBytes);
    if (mode === Mode.SNAPSHOT && memory.get(Word.FAILED) === 0) {
      try {
        yield* saveBlocks(this, context, first, last);
      } catch (error) {
        this.fail(errnoOfError(error), `saving old contents: ${messageOf(error)}`);
      }
    }
    memory.mark(first, last);
  }

  /** A write that nobody tracks: a COW file from before it can no longer be gone on with. */
  #noteUntracked(): void {
    if (this.memory.get(Word.WRITTEN) === 0) this.memory.set(Word.WRITTEN, 1);
  }

  /** Takes `count` slots, or -1 when the store has not so many left. */
  allocate(count: number): number {
    const { memory } = this;
    for (;;) {
      const next = memory.get(Word.NEXT_SLOT);
      // Unsigned: a store may have more than 2^31 blocks.
      if ((next >>> 0) + count > memory.get(Word.SLOT_COUNT) >>> 0) return -1;
      const after = (next >>> 0) + count;
      if (Atomics.compareExchange(memory.words, Word.NEXT_SLOT, next, after | 0) !== next) continue;
      if (after >= this.#lowWaterSlot && next >>> 0 < this.#lowWaterSlot) this.hooks.attention();
      return next >>> 0;
    }
  }

  /** Fails the snapshot with a positive errno; the first failure stays. The volume goes on. */
  fail(errno: number, cause?: string): void {
    if (Atomics.compareExchange(this.memory.words, Word.FAILED, 0, errno) === 0) this.hooks.attention(cause);
  }

  /**
   * A write into the store's own blocks that is not ours: the store's contents can no longer be trusted. One of zeros onto
   * zeros too: those blocks are somebody else's from now on, and the store would be written over them.
   */
  *#guardStore(context: RequestContext, offset: number, lengthBytes: number): Steps {
    const map = this.#store?.map;
    const last = Math.floor((offset + lengthBytes - 1) / BLOCK_BYTES);
    if (map === undefined || map.firstOwnBlock(Math.floor(offset / BLOCK_BYTES), last) < 0) return;
    // Afterwards nothing of ours goes to the store, its header neither.
    if (this.memory.get(Word.HEADER_STATE) !== HeaderState.DIRTY) yield* this.makeDirty(context);
    this.fail(STORE_OVERWRITTEN);
    for (;;) {
      const inFlight = this.memory.get(Word.STORE_WRITES);
      if (inFlight === 0) return;
      yield { kind: 'wait', word: Word.STORE_WRITES, value: inFlight };
    }
  }

  /** Writes to the store, each counted, so that a foreign write can wait for it. None after a failure: false then. */
  *whileTrusted(steps: Steps): Steps<boolean> {
    for (let next = steps.next(); next.done !== true; next = steps.next()) {
      if (!this.beginStoreWrite()) return false;
      try {
        yield next.value;
      } finally {
        this.endStoreWrite();
      }
    }
    return true;
  }

  /** Counts a write to the store that is about to be made; false, and nothing counted, when it must not be made any more. */
  beginStoreWrite(): boolean {
    const { memory } = this;
    Atomics.add(memory.words, Word.STORE_WRITES, 1);
    if (memory.get(Word.FAILED) === 0) return true;
    this.endStoreWrite();
    return false;
  }

  endStoreWrite(): void {
    // Who waits for this has failed the snapshot before he looked at the count: one of the two sees the other.
    if (Atomics.sub(this.memory.words, Word.STORE_WRITES, 1) === 1 && this.memory.get(Word.FAILED) !== 0)
      this.hooks.wake(Word.STORE_WRITES);
  }

  /** Makes the header on disk say "unclean", durably, before the first write since it was made clean. */
  *makeDirty(context: RequestContext): Steps {
    const { memory } = this;
    yield* this.lockHeader();
    try {
      const store = this.#store;
      // Of a failed snapshot too, lest the map be trusted; but into blocks that are somebody else's nothing is written.
      const isOurs = store !== undefined && memory.get(Word.FAILED) !== STORE_OVERWRITTEN;
      if (memory.get(Word.HEADER_STATE) === HeaderState.CLEAN && isOurs) {
        context.scratch.bytes.set(store.dirtyHeader, 0);
        yield* writePlaces(store, context.scratch, [{ place: 0, count: 1 }]);
        yield { kind: 'flush', device: store.device };
      }
    } catch (error) {
      this.fail(errnoOfError(error), `making the header dirty: ${messageOf(error)}`);
    } finally {
      memory.set(Word.HEADER_STATE, HeaderState.DIRTY);
      this.unlockHeader();
    }
  }

  *lockHeader(): Steps {
    while (Atomics.compareExchange(this.memory.words, Word.HEADER_LOCK, 0, 1) !== 0) {
      yield { kind: 'wait', word: Word.HEADER_LOCK, value: 1 };
    }
  }

  unlockHeader(): void {
    this.memory.set(Word.HEADER_LOCK, 0);
    this.hooks.wake(Word.HEADER_LOCK);
  }

  *#enter(context: RequestContext): Steps {
    const { memory } = this;
    const busy = Word.BUSY + context.worker;
    for (;;) {
      Atomics.add(memory.words, busy, 1);
      const gate = memory.get(Word.GATE);
      if (gate === Gate.OPEN) {
        this.hooks.refresh();
        return;
      }
      this.end(context);
      yield { kind: 'wait', word: Word.GATE, value: gate };
    }
  }

  /** Ends what was begun: a write is no longer inside. */
  end(context: RequestContext): void {
    const busy = Word.BUSY + context.worker;
    Atomics.sub(this.memory.words, busy, 1);
    if (this.memory.get(Word.GATE) !== Gate.OPEN) this.hooks.wake(busy);
  }
}

/** Longest hole punched in one piece in passthrough: a bound on how long a closing gate waits. */
const PASSTHROUGH_ZERO_BYTES = 268_435_456;
