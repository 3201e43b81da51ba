/**
 * A write as a machine of its own: what most writes are, without a generator for each thing that might have to be done.
 *
 *     reading  one run of blocks, claimed, is read from the origin
 *     saving   it is written to the store, in as many pieces as it lies in there
 *     writing  nothing has to be saved (any more): the origin is written
 *
 * Everything else (somebody else's claim, a closed gate, blocks of the store, several runs) is done by
 * {@link Tracer.writeByParts}. The order of effects is that of `tracer.ts`, and so are the rules of failure: whatever goes
 * wrong before `writing` fails the snapshot, never the write. The simulator runs this very class.
 */
import type { IoBuffer } from '../block/device.js';
import { assert, errnoOfError, messageOf } from '../sys/errors.js';
import { releaseClaims } from './claims.js';
import { BLOCK_BYTES } from './layout.js';
import { publish, STORE_FULL } from './saving.js';
import type { Step, Stepper, Steps } from './steps.js';
import { type StorePiece, storePieces } from './store-io.js';
import type { SlotRun } from './store-map.js';
import type { RequestContext, Tracer } from './tracer.js';

type Result = IteratorResult<Step, void>;

const ENDED: Result = { done: true, value: undefined };

export class SmallWrite implements Stepper {
  readonly #tracer: Tracer;
  readonly #context: RequestContext;
  readonly #buffer: IoBuffer;
  readonly #at: number;
  readonly #lengthBytes: number;
  readonly #offset: number;
  #state: 'begun' | 'reading' | 'saving' | 'writing' | 'ended' = 'begun';
  /** Claimed blocks `[first, end)`, which are to be saved. */
  #first = 0;
  #end = 0;
  #places: readonly SlotRun[] = [];
  /** Where they go that are not in the store yet, the last first. */
  #pieces: StorePiece[] = [];
  /** Blocks that are in the store. */
  #savedCount = 0;
  #isStoreWriting = false;
  /** Everything else. */
  #parts: Steps | undefined;

  constructor(
    tracer: Tracer,
    context: RequestContext,
    buffer: IoBuffer,
    at: number,
    lengthBytes: number,
    offset: number,
  ) {
    this.#tracer = tracer;
    this.#context = context;
    this.#buffer = buffer;
    this.#at = at;
    this.#lengthBytes = lengthBytes;
    this.#offset = offset;
  }

  next(): Result {
    if (this.#parts !== undefined) return this.#parts.next();
    try {
      return this.#goOn();
    } catch (error) {
      return this.#fail(error);
    }
  }

  throw(error: unknown): Result {
    return this.#parts === undefined ? this.#fail(error) : this.#parts.throw(error);
  }

  #goOn(): Result {
    switch (this.#state) {
      case 'begun':
        return this.#begin();
      case 'reading':
        return this.#haveRead();
      case 'saving':
        return this.#haveSaved();
      case 'writing':
        this.#leave();
        return ENDED;
      case 'ended':
        return ENDED;
    }
  }

  #fail(error: unknown): Result {
    if (this.#isStoreWriting) this.#endStoreWrite();
    if (this.#state === 'reading' || this.#state === 'saving') {
      this.#tracer.fail(errnoOfError(error), `saving old contents: ${messageOf(error)}`);
      return this.#saved();
    }
    if (this.#state === 'writing') this.#leave();
    throw error;
  }

  #begin(): Result {
    const tracer = this.#tracer;
    if (tracer.begin(this.#context, this.#lengthBytes, this.#offset)) return this.#write();
    const run = tracer.beginSaving(this.#context, this.#lengthBytes, this.#offset);
    if (run === undefined) {
      this.#parts = tracer.writeByParts(this.#context, this.#buffer, this.#at, this.#lengthBytes, this.#offset);
      return this.#parts.next();
    }
    this.#first = run.first;
    this.#end = run.end;
    this.#state = 'reading';
    const { origin } = tracer;
    const offset = run.first * BLOCK_BYTES;
    const lengthBytes = Math.min(run.end * BLOCK_BYTES, origin.sizeBytes) - offset;
    return yielded({ kind: 'read', device: origin, buffer: this.#context.scratch, at: 0, lengthBytes, offset });
  }

  #haveRead(): Result {
    const tracer = this.#tracer;
    const count = this.#end - this.#first;
    const readBytes = Math.min(this.#end * BLOCK_BYTES, tracer.origin.sizeBytes) - this.#first * BLOCK_BYTES;
    if (readBytes < count * BLOCK_BYTES) this.#context.scratch.bytes.fill(0, readBytes, count * BLOCK_BYTES);
    const slot = tracer.allocate(count);
    if (slot < 0) {
      tracer.fail(STORE_FULL);
      return this.#saved();
    }
    const map = tracer.storeMap;
    assert(map !== undefined, 'snapshot mode has a store');
    this.#places = map.placesOfSlots(slot, count);
    this.#pieces = storePieces(map, this.#places).reverse();
    this.#state = 'saving';
    return this.#savePiece();
  }

  #savePiece(): Result {
    const device = this.#tracer.storeDevice;
    const piece = this.#pieces.at(-1);
    assert(device !== undefined && piece !== undefined, 'what is to be saved has a place');
    // A foreign write fails the snapshot first and then waits for what is in hand: after it, nothing goes to the store.
    if (!this.#tracer.beginStoreWrite()) return this.#saved();
    this.#isStoreWriting = true;
    const { scratch } = this.#context;
    const at = this.#savedCount * BLOCK_BYTES;
    const lengthBytes = piece.count * BLOCK_BYTES;
    return yielded({ kind: 'write', device, buffer: scratch, at, lengthBytes, offset: piece.offset });
  }

  #haveSaved(): Result {
    this.#endStoreWrite();
    this.#savedCount += this.#pieces.pop()?.count ?? 0;
    if (this.#pieces.length > 0) return this.#savePiece();
    publish(this.#tracer.memory, [{ first: this.#first, end: this.#end }], this.#places);
    return this.#saved();
  }

  #endStoreWrite(): void {
    this.#isStoreWriting = false;
    this.#tracer.endStoreWrite();
  }

  /** What could be done for the snapshot is done. All blocks are marked, also where it failed. */
  #saved(): Result {
    const { memory, hooks } = this.#tracer;
    releaseClaims(memory, this.#first, this.#end, (word) => hooks.wake(word));
    const last = Math.floor((this.#offset + this.#lengthBytes - 1) / BLOCK_BYTES);
    memory.mark(Math.floor(this.#offset / BLOCK_BYTES), last);
    return this.#write();
  }

  #write(): Result {
    this.#state = 'writing';
    const { origin } = this.#tracer;
    const [at, lengthBytes, offset] = [this.#at, this.#lengthBytes, this.#offset];
    return yielded({ kind: 'write', device: origin, buffer: this.#buffer, at, lengthBytes, offset });
  }

  #leave(): void {
    this.#state = 'ended';
    this.#tracer.end(this.#context);
  }
}

function yielded(step: Step): Result {
  return { done: false, value: step };
}
