/**
 * Where a COW file's blocks lie: which device, at which offset, and in which order free places are given out.
 *
 * A *place* is a block number within the COW file, as the index on disk has it. On the volume itself a place is mapped to a
 * block of the origin by the file's extents; elsewhere the store is a file or disk of its own, place × 4096 from its start.
 *
 * A *slot* is a place in the order of allocation, 0, 1, 2 … The first slots are the data region of the file as it was set
 * up. A store that grew on the volume has taken blocks which were the user's at T0; those whose contents had to be kept are
 * kept where they are (their index entry names their own place), so the slots of the new region leave them out.
 */
import { assert } from '../sys/errors.js';
import { BLOCK_BYTES } from './layout.js';

/** `count` blocks of the COW file from `place` lie at `block` of the origin. Sorted by place, no gaps. */
export interface StoreExtent {
  place: number;
  block: number;
  count: number;
}

/** `count` places from `place`. Free ones are sorted in order of allocation. */
export interface SlotRun {
  place: number;
  count: number;
}

/** A store as configuration: plain data that is sent to workers and kept across a restart of the engine. */
export interface StoreConfig {
  /** `origin`: by extents on the volume itself; `device`: a file or disk of its own. */
  kind: 'origin' | 'device';
  extents: StoreExtent[];
  slots: SlotRun[];
  /** Blocks that the COW file has in all. */
  placeCount: number;
  /** A block of zeros, for index entries of blocks that were free at T0; absent where none was asked for. */
  zeroPlace?: number | undefined;
}

export class StoreMap {
  readonly config: StoreConfig;
  readonly slotCount: number;
  readonly #byBlock: StoreExtent[];
  /** Of each run of slots, its first slot. */
  readonly #firstSlots: Float64Array;

  constructor(config: StoreConfig) {
    let next = 0;
    for (const extent of config.kind === 'origin' ? config.extents : []) {
      assert(extent.place === next && extent.count > 0, `store extent at place ${extent.place} follows place ${next}`);
      next += extent.count;
    }
    assert(config.kind !== 'origin' || next === config.placeCount, 'store extents cover the COW file');
    this.config = config;
    this.#firstSlots = new Float64Array(config.slots.length);
    let slots = 0;
    for (const [i, run] of config.slots.entries()) {
      this.#firstSlots[i] = slots;
      slots += run.count;
    }
    this.slotCount = slots;
    this.#byBlock = config.kind === 'origin' ? [...config.extents].sort((a, b) => a.block - b.block) : [];
  }

  get zeroPlace(): number | undefined {
    return this.config.zeroPlace;
  }

  /** The place of a slot, and how many slots from there lie in consecutive places. */
  placeOfSlot(slot: number): { place: number; run: number } {
    const at = upperBound(this.#firstSlots, (first) => first > slot) - 1;
    const run = this.config.slots[at];
    const into = slot - (this.#firstSlots[at] ?? 0);
    if (run === undefined || into >= run.count) throw new Error(`Slot ${slot} is beyond the store's ${this.slotCount}`);
    return { place: run.place + into, run: run.count - into };
  }

  /** The places of `count` slots from `slot` on, in their order. */
  placesOfSlots(slot: number, count: number): SlotRun[] {
    const places: SlotRun[] = [];
    for (let done = 0; done < count; ) {
      const { place, run } = this.placeOfSlot(slot + done);
      places.push({ place, count: Math.min(run, count - done) });
      done += run;
    }
    return places;
  }

  /** Byte offset of a place on the store's device, and how many blocks from there lie in one piece. */
  locate(place: number): { offset: number; run: number } {
    assert(
      place >= 0 && place < this.config.placeCount,
      () => `place ${place} is inside a store of ${this.config.placeCount}`,
    );
    if (this.config.kind === 'device') return { offset: place * BLOCK_BYTES, run: this.config.placeCount - place };
    const extents = this.config.extents;
    const extent = extents[upperBound(extents, (e) => e.place > place) - 1];
    assert(extent !== undefined, () => `place ${place} has an extent`);
    const into = place - extent.place;
    return { offset: (extent.block + into) * BLOCK_BYTES, run: extent.count - into };
  }

  /** First block in `[first, last]` of the origin that belongs to the store, or -1. */
  firstOwnBlock(first: number, last: number): number {
    const extent = this.#byBlock[upperBound(this.#byBlock, (e) => e.block + e.count > first)];
    if (extent === undefined || extent.block > last) return -1;
    return Math.max(extent.block, first);
  }

  /** First block at or after `first`, at most `last + 1`, that does not belong to the store; `first` is one that does. */
  endOfOwn(first: number, last: number): number {
    let block = first;
    let at = upperBound(this.#byBlock, (e) => e.block + e.count > block);
    for (let extent = this.#byBlock[at]; extent !== undefined && extent.block <= block; extent = this.#byBlock[++at]) {
      block = extent.block + extent.count;
      if (block > last) return last + 1;
    }
    return block;
  }
}

/** First index whose element satisfies a predicate that is false, then true, along the array. */
function upperBound<T>(sorted: ArrayLike<T>, isAbove: (element: T) => boolean): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const element = sorted[middle];
    if (element !== undefined && isAbove(element)) high = middle;
    else low = middle + 1;
  }
  return low;
}
