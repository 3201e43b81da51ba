/**
 * The shared memory of one volume: what every worker thread must see alike, and what a new engine finds after `kill -9`.
 *
 * It lies in a memory file that the keeper holds. Layout, all little-endian as on the host:
 *
 *     0        control words, 1024 × int32         (see {@link Word})
 *     4096     claims, 65536 × int32               (a word a block, by block number modulo 65536)
 *     266240   change map A, one bit a block       (padded to a page)
 *              change map B                        (padded to a page)
 *              index, one uint32 a block           (0: not saved; else the block's place in the COW file, in blocks)
 *              free maps A and B, one bit a block  (free at T0 of the sequence whose change map is A, or B)
 *              noted writes, one bit a block       (see {@link Word.NOTING})
 *              one bit a page of those             (set where the page has any)
 *
 * A change map's bit is set after its index entry is written and before the origin is: whoever sees the bit may use the
 * entry. Two maps, so that a transition starts an empty one at the very instant at which the other is closed. Words change
 * through `Atomics` only. The file is sparse: what was never touched costs nothing, so an index entry may be read only
 * where the block's bit is set.
 */
import { assert } from '../sys/errors.js';

export const BLOCK_BYTES = 4096;
export const CLAIM_COUNT = 65_536;
export const MAX_WORKERS = 64;
/** Index entries and block numbers are 32-bit: 16 TiB. */
export const MAX_BLOCKS = 0xffff_fff0;

const CONTROL_BYTES = 4096;
const CLAIM_BYTES = CLAIM_COUNT * 4;
const MAPS_OFFSET = CONTROL_BYTES + CLAIM_BYTES;
const FIRST_CLAIM_WORD = CONTROL_BYTES / 4;
const PAGE_BYTES = 4096;
/** Bits of a page: 32 768. */
const NOTED_PAGE_SHIFT = 15;
/** Entries of one index view: 1 GiB, within what a typed array can hold. */
const ENTRIES_PER_VIEW = 268_435_456;

/** Control words, by index. Flags and counts are signed 32-bit; positions are read as unsigned. */
export const Word = {
  MODE: 0,
  /** 0, or the positive errno with which the snapshot failed. */
  FAILED: 1,
  /** Whether writes are held; see {@link Gate}. */
  GATE: 2,
  HEADER_STATE: 3,
  /** Held while the header on disk is being changed. */
  HEADER_LOCK: 4,
  /** Next free place of the store, counted in allocation order; see `StoreMap`. */
  NEXT_SLOT: 5,
  /** Places that the store has. */
  SLOT_COUNT: 6,
  /** Bits set in the current change map. */
  CHANGED: 7,
  /** Counts up whenever workers must take a new configuration before they go on. */
  GENERATION: 8,
  /** Which change map is current: 0 is A, 1 is B. */
  MAP: 9,
  /** Store writes in flight; a foreign write into the store waits for 0. */
  STORE_WRITES: 10,
  /** How far the switch of the pending operation came; see {@link SwitchState}. */
  SWITCH: 11,
  /** Not 0 once anything was written since the volume was attached: a reload can then not be trusted. */
  WRITTEN: 12,
  /** Not 0 while the free map beside the current change map counts: what it has reads as zeros in the snapshot. */
  FREE: 13,
  /** Bits set in that free map; counted when the operation is finished. */
  FREE_BLOCKS: 14,
  /** Not 0 while each written block is noted: from before the free blocks are looked up until T0. */
  NOTING: 15,
  /** One word a worker: writes of this volume that it is inside of. */
  BUSY: 64,
} as const;

export const Mode = { PASSTHROUGH: 0, INCREMENTAL: 1, SNAPSHOT: 2 } as const;
export type Mode = (typeof Mode)[keyof typeof Mode];

/**
 * Writes go in; writes are held back; the words of a mode are being changed. A closed gate may be opened by whoever must
 * end a freeze. In a switch it may not: who wants to has to wait for its end, or for the end of the process.
 */
export const Gate = { OPEN: 0, CLOSED: 1, SWITCHING: 2 } as const;

/** Of the operation that the volume's record names as pending: nothing switched yet; in the middle of it; switched. */
export const SwitchState = { BEFORE: 0, WITHIN: 1, AFTER: 2 } as const;

/** The header on disk: says unclean; is being made clean; says clean. */
export const HeaderState = { DIRTY: 0, CLEANING: 1, CLEAN: 2 } as const;

/** Bytes of a volume's memory, with the address that futexes want. */
export interface MemorySource {
  /** Maps `[offset, offset + lengthBytes)` of the memory file. */
  map(offset: number, lengthBytes: number): { bytes: ArrayBufferLike; address: number };
}

export interface LayoutSizes {
  mapBytes: number;
  mapOffsets: readonly [number, number];
  indexOffset: number;
  indexBytes: number;
  freeOffsets: readonly [number, number];
  notedOffset: number;
  /** Noted writes, and the bits of their pages. */
  notedBytes: number;
  totalBytes: number;
}

function toPages(bytes: number): number {
  return Math.ceil(bytes / PAGE_BYTES) * PAGE_BYTES;
}

/** Where everything lies for a volume of `blockCount` blocks. */
export function layoutFor(blockCount: number): LayoutSizes {
  assert(blockCount > 0 && blockCount <= MAX_BLOCKS, `block count ${blockCount} is in range`);
  const mapBytes = toPages(Math.ceil(blockCount / 32) * 4);
  const indexOffset = MAPS_OFFSET + 2 * mapBytes;
  const indexBytes = toPages(blockCount * 4);
  const freeOffset = indexOffset + indexBytes;
  return {
    mapBytes,
    mapOffsets: [MAPS_OFFSET, MAPS_OFFSET + mapBytes],
    indexOffset,
    indexBytes,
    freeOffsets: [freeOffset, freeOffset + mapBytes],
    notedOffset: freeOffset + 2 * mapBytes,
    notedBytes: mapBytes + toPages(mapBytes / PAGE_BYTES / 8),
    totalBytes: freeOffset + 3 * mapBytes + toPages(mapBytes / PAGE_BYTES / 8),
  };
}

/** One thread's view of a volume's shared memory. */
export class VolumeMemory {
  readonly blockCount: number;
  readonly sizes: LayoutSizes;
  /** Control words and claims. */
  readonly words: Int32Array;
  /** Address of word 0, for futexes. */
  readonly wordsAddress: number;
  readonly maps: readonly [Int32Array, Int32Array];
  /** Blocks that were free at T0, each beside the change map of the same index. */
  readonly freeMaps: readonly [Int32Array, Int32Array];
  /** Blocks that were written while {@link Word.NOTING} was set. */
  readonly noted: Int32Array;
  /** Pages of that map that have a bit: so that nobody has to look at all of it while writes are held. */
  readonly notedPages: Int32Array;
  readonly #index: Uint32Array[] = [];

  constructor(source: MemorySource, blockCount: number) {
    const sizes = layoutFor(blockCount);
    const head = source.map(0, sizes.indexOffset);
    this.blockCount = blockCount;
    this.sizes = sizes;
    this.words = new Int32Array(head.bytes, 0, MAPS_OFFSET / 4);
    this.wordsAddress = head.address;
    this.maps = [
      new Int32Array(head.bytes, sizes.mapOffsets[0], sizes.mapBytes / 4),
      new Int32Array(head.bytes, sizes.mapOffsets[1], sizes.mapBytes / 4),
    ];
    const tail = source.map(sizes.freeOffsets[0], sizes.totalBytes - sizes.freeOffsets[0]);
    this.freeMaps = [
      new Int32Array(tail.bytes, 0, sizes.mapBytes / 4),
      new Int32Array(tail.bytes, sizes.mapBytes, sizes.mapBytes / 4),
    ];
    this.noted = new Int32Array(tail.bytes, 2 * sizes.mapBytes, sizes.mapBytes / 4);
    this.notedPages = new Int32Array(tail.bytes, 3 * sizes.mapBytes, (sizes.notedBytes - sizes.mapBytes) / 4);
    for (let first = 0; first < blockCount; first += ENTRIES_PER_VIEW) {
      const bytes = Math.min(ENTRIES_PER_VIEW * 4, sizes.indexBytes - first * 4);
      this.#index.push(new Uint32Array(source.map(sizes.indexOffset + first * 4, bytes).bytes, 0, bytes / 4));
    }
  }

  get(word: number): number {
    return Atomics.load(this.words, word);
  }

  set(word: number, value: number): void {
    Atomics.store(this.words, word, value);
  }

  /** The current change map. */
  get map(): Int32Array {
    return this.get(Word.MAP) === 0 ? this.maps[0] : this.maps[1];
  }

  /** The change map that is not current. */
  get otherMap(): Int32Array {
    return this.get(Word.MAP) === 0 ? this.maps[1] : this.maps[0];
  }

  /** Word number of the claim of a block. */
  claimWord(block: number): number {
    return FIRST_CLAIM_WORD + (block % CLAIM_COUNT);
  }

  isMarked(block: number): boolean {
    return isBitSet(this.map, block);
  }

  /** Of the current snapshot. */
  get #freeMap(): Int32Array {
    return this.freeMaps[this.get(Word.MAP) === 0 ? 0 : 1];
  }

  /** Whether a block was free at T0: then the snapshot has zeros there, whatever is written since. */
  isFree(block: number): boolean {
    return this.get(Word.FREE) !== 0 && isBitSet(this.#freeMap, block);
  }

  /** Whether the old contents of a block have to be saved before it is written: neither saved yet, nor free at T0. */
  isToBeSaved(block: number): boolean {
    return !this.isMarked(block) && !this.isFree(block);
  }

  /** First block in `[from, end)` whose old contents have to be saved, or `end`. */
  nextToBeSaved(from: number, end: number): number {
    return nextBit(this.map, from, end, -1, this.#freeMapInUse);
  }

  /** First block in `[from, end)` whose old contents need not be saved (any more), or `end`. */
  nextSettled(from: number, end: number): number {
    return nextBit(this.map, from, end, 0, this.#freeMapInUse);
  }

  get #freeMapInUse(): Int32Array | undefined {
    return this.get(Word.FREE) === 0 ? undefined : this.#freeMap;
  }

  /** First block in `[from, end)` that was free at T0, or `end`. */
  nextFree(from: number, end: number): number {
    return this.get(Word.FREE) === 0 ? end : nextBit(this.#freeMap, from, end, 0);
  }

  /** First block in `[from, end)` that was in use at T0, or `end`. */
  nextInUse(from: number, end: number): number {
    return this.get(Word.FREE) === 0 ? from : nextBit(this.#freeMap, from, end, -1);
  }

  /** First marked block in `[from, end)`, or `end`. */
  nextMarked(from: number, end: number): number {
    return nextBit(this.map, from, end, 0);
  }

  /** First block in `[from, end)` that is not marked, or `end`. */
  nextUnmarked(from: number, end: number): number {
    return nextBit(this.map, from, end, -1);
  }

  /** Marks blocks `first` to `last`; counts those that were not marked yet. Returns how many those were. */
  mark(first: number, last: number): number {
    const added = setBits(this.map, first, last);
    if (added > 0) Atomics.add(this.words, Word.CHANGED, added);
    return added;
  }

  /** Notes a write of blocks `first` to `last`. */
  note(first: number, last: number): void {
    setBits(this.noted, first, last);
    setBits(this.notedPages, first >>> NOTED_PAGE_SHIFT, last >>> NOTED_PAGE_SHIFT);
  }

  /** The place in the COW file of a marked block, in blocks. */
  entry(block: number): number {
    const view = this.#index[block >>> 28];
    assert(view !== undefined, () => `index entry of block ${block} is inside the volume`);
    return Atomics.load(view, block & (ENTRIES_PER_VIEW - 1));
  }

  setEntry(block: number, place: number): void {
    this.setEntries(block, place, 1);
  }

  /** Blocks from `first` on are at places from `place` on. */
  setEntries(first: number, place: number, count: number): void {
    let done = 0;
    while (done < count) {
      const view = this.#index[(first + done) >>> 28];
      assert(view !== undefined, () => `index entry of block ${first} is inside the volume`);
      const at = (first + done) & (ENTRIES_PER_VIEW - 1);
      const end = Math.min(at + count - done, view.length);
      for (let entry = at; entry < end; entry++) Atomics.store(view, entry, place + done++);
    }
  }
}

export function isBitSet(map: Int32Array, block: number): boolean {
  return (Atomics.load(map, block >>> 5) & (1 << (block & 31))) !== 0;
}

/** First bit in `[from, end)` that differs from those of `passed` (0 or -1), or `end`. A bit of `other` counts as set, too. */
function nextBit(map: Int32Array, from: number, end: number, passed: 0 | -1, other?: Int32Array): number {
  let block = from;
  while (block < end) {
    const bits = Atomics.load(map, block >>> 5) | (other === undefined ? 0 : Atomics.load(other, block >>> 5));
    const found = (bits ^ passed) & (-1 << (block & 31));
    const wordStart = block - (block & 31);
    // The lowest bit that is set.
    if (found !== 0) return Math.min(end, wordStart + 31 - Math.clz32(found & -found));
    block = wordStart + 32;
  }
  return end;
}

/** Sets bits `first` to `last`; returns how many were clear. */
export function setBits(map: Int32Array, first: number, last: number): number {
  let added = 0;
  const lastWord = last >>> 5;
  for (let word = first >>> 5; word <= lastWord; word++) {
    let mask = -1;
    if (word === first >>> 5) mask &= -1 << (first & 31);
    if (word === lastWord) mask &= -1 >>> (31 - (last & 31));
    const current = Atomics.load(map, word);
    // The common case of a hot block costs no locked instruction.
    if ((current & mask) === mask) continue;
    const before = Atomics.or(map, word, mask);
    added += popCount(mask & ~before);
  }
  return added;
}

function popCount(value: number): number {
  let v = value - ((value >>> 1) & 0x5555_5555);
  v = (v & 0x3333_3333) + ((v >>> 2) & 0x3333_3333);
  return Math.imul((v + (v >>> 4)) & 0x0f0f_0f0f, 0x0101_0101) >>> 24;
}

/** How many bits are set. */
export function countBits(map: Int32Array): number {
  let count = 0;
  for (let word = 0; word < map.length; word++) {
    const bits = Atomics.load(map, word);
    if (bits !== 0) count += popCount(bits);
  }
  return count;
}

/** Runs of set bits among blocks `[from, blockCount)`, ascending. */
export function* setRuns(
  map: Int32Array,
  blockCount: number,
  from = 0,
): Generator<{ firstBlock: number; blockCount: number }, void, undefined> {
  let start = -1;
  let block = from;
  while (block < blockCount) {
    const word = Atomics.load(map, block >>> 5);
    const aligned = (block & 31) === 0 && block + 32 <= blockCount;
    if (aligned && word === 0) {
      if (start >= 0) yield { firstBlock: start, blockCount: block - start };
      start = -1;
      block += 32;
      continue;
    }
    if (aligned && word === -1) {
      if (start < 0) start = block;
      block += 32;
      continue;
    }
    const set = (word & (1 << (block & 31))) !== 0;
    if (set && start < 0) start = block;
    if (!set && start >= 0) {
      yield { firstBlock: start, blockCount: block - start };
      start = -1;
    }
    block++;
  }
  if (start >= 0) yield { firstBlock: start, blockCount: blockCount - start };
}
