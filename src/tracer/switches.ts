/**
 * The switch of each operation: the change of a volume's shared words by which it goes from one mode, map and store to the
 * next, under the closed gate.
 *
 * The memory outlives the engine, so a switch that the engine's death cut off is found half made. Therefore each is told by
 * plain data, kept by the keeper before it begins, and may be applied again from its beginning: SWITCH says WITHIN before the
 * first word changes and AFTER behind the last. Nothing writes in between, in the old engine (the gate) or in the new one
 * (it applies first and serves then), so applying twice is applying once, and T0 is the same instant.
 */
import { BLOCK_BYTES, HeaderState, Mode, SwitchState, setBits, setRuns, type VolumeMemory, Word } from './layout.js';
import { type StoreConfig, StoreMap } from './store-map.js';

export type Switch =
  /** The first snapshot of a series. Both maps are empty. `free`: the free map beside the current one counts. */
  | { kind: 'begin'; store: StoreConfig; free?: boolean }
  /** Snapshot to incremental; `keptPlaces` of the store stay: header and index. */
  | { kind: 'toIncremental'; before: StoreConfig; keptPlaces: number }
  /**
   * The next snapshot: `closedMap` ends, the other one, which is empty, begins. `freeBefore`: the free map beside the one that
   * ends counted; `free`: the one beside the other counts from now on.
   */
  | {
      kind: 'next';
      before: StoreConfig;
      store: StoreConfig;
      closedMap: 0 | 1;
      freeBefore?: boolean;
      free?: boolean;
    }
  /** The store has grown. What is new and not free is the saved copy of itself; its index entry says so already. */
  | { kind: 'grow'; before: StoreConfig; store: StoreConfig }
  /** A series that was clean goes on; its index is in memory already. */
  | { kind: 'reload'; mode: 'incremental' | 'snapshot'; free?: boolean }
  /** Back to passthrough. */
  | { kind: 'end' };

/** Makes the switch, wholly. Under the closed gate, or before anything is served. */
export function applySwitch(memory: VolumeMemory, change: Switch): void {
  memory.set(Word.SWITCH, SwitchState.WITHIN);
  switch (change.kind) {
    case 'begin':
      beginFree(memory, currentIndex(memory), change.free === true);
      beginStore(memory, change.store);
      break;
    case 'toIncremental':
      memory.set(Word.MODE, Mode.INCREMENTAL);
      // What the store gives back is part of the volume again, and not what the last image has there.
      markStore(memory, memory.map, change.before, change.keptPlaces);
      break;
    case 'next': {
      // Blocks that enter the new store, and all that the old one had, read differently from now on (I6).
      const closed = memory.maps[change.closedMap];
      markStore(memory, closed, change.store, 0);
      markStore(memory, closed, change.before, 0);
      const next = change.closedMap === 0 ? 1 : 0;
      beginFree(memory, next, change.free === true);
      memory.set(Word.MAP, next);
      beginStore(memory, change.store);
      break;
    }
    case 'grow':
      for (const { block, count } of keptInPlace(change.before, change.store)) memory.mark(block, block + count - 1);
      memory.set(Word.SLOT_COUNT, slotCount(change.store) | 0);
      break;
    case 'reload':
      beginFree(memory, currentIndex(memory), change.free === true);
      memory.set(Word.HEADER_STATE, HeaderState.CLEAN);
      memory.set(Word.MODE, change.mode === 'snapshot' ? Mode.SNAPSHOT : Mode.INCREMENTAL);
      break;
    case 'end':
      // What was written meanwhile is in the list of this series, and in that of no other one.
      memory.set(Word.WRITTEN, 1);
      memory.set(Word.MODE, Mode.PASSTHROUGH);
      memory.set(Word.FAILED, 0);
      memory.set(Word.FREE, 0);
      break;
  }
  memory.set(Word.SWITCH, SwitchState.AFTER);
}

/** The words of a store that begins. The mode comes last. */
function beginStore(memory: VolumeMemory, store: StoreConfig): void {
  memory.set(Word.FAILED, 0);
  memory.set(Word.NEXT_SLOT, 0);
  memory.set(Word.SLOT_COUNT, slotCount(store) | 0);
  memory.set(Word.CHANGED, 0);
  memory.set(Word.HEADER_STATE, HeaderState.DIRTY);
  memory.set(Word.MODE, Mode.SNAPSHOT);
}

function currentIndex(memory: VolumeMemory): 0 | 1 {
  return memory.get(Word.MAP) === 0 ? 0 : 1;
}

/**
 * A free map begins to count, or none does. The free blocks were looked up some time before T0: what was written since may
 * have been given to somebody by then, and is free no more. What was given away and never written has nothing to be saved.
 */
function beginFree(memory: VolumeMemory, index: 0 | 1, isUsed: boolean): void {
  const { noted, notedPages } = memory;
  const free = memory.freeMaps[index];
  const wordsPerPage = BLOCK_BYTES / 4;
  for (const { firstBlock: page, blockCount: count } of isUsed ? setRuns(notedPages, notedPages.length * 32) : []) {
    const end = Math.min(free.length, (page + count) * wordsPerPage);
    for (let word = page * wordsPerPage; word < end; word++) {
      const bits = noted[word] ?? 0;
      if (bits !== 0) Atomics.and(free, word, ~bits);
    }
  }
  memory.set(Word.NOTING, 0);
  memory.set(Word.FREE, isUsed ? 1 : 0);
}

/**
 * Marks what reads differently in two snapshots without having been written: zeros in one of them, for it was free. Behind the
 * switch, which does not wait for it: nobody writes the map that has ended. May be done again.
 */
export function markOtherView(memory: VolumeMemory, change: Extract<Switch, { kind: 'next' }>): void {
  const { closedMap, freeBefore, free } = change;
  if (freeBefore !== true && free !== true) return;
  const closed = memory.maps[closedMap];
  const before = memory.freeMaps[closedMap];
  const after = memory.freeMaps[closedMap === 0 ? 1 : 0];
  for (let word = 0; word < closed.length; word++) {
    const differs = (freeBefore === true ? (before[word] ?? 0) : 0) ^ (free === true ? (after[word] ?? 0) : 0);
    if (differs !== 0) Atomics.or(closed, word, differs);
  }
}

export function slotCount(store: StoreConfig): number {
  return store.slots.reduce((sum, run) => sum + run.count, 0);
}

/** Marks the blocks of a store from a place on, in a given map; the count of the current map follows. */
function markStore(memory: VolumeMemory, map: Int32Array, store: StoreConfig, fromPlace: number): void {
  if (store.kind !== 'origin') return;
  const isCurrent = map === memory.map;
  for (const extent of store.extents) {
    const skip = Math.max(0, fromPlace - extent.place);
    if (skip >= extent.count) continue;
    const added = setBits(map, extent.block + skip, extent.block + extent.count - 1);
    if (isCurrent) Atomics.add(memory.words, Word.CHANGED, added);
  }
}

/** Runs of the volume's blocks that a store took over by growing and that are not free in it. */
function* keptInPlace(before: StoreConfig, store: StoreConfig): Generator<{ block: number; count: number }> {
  if (store.kind !== 'origin') return;
  const map = new StoreMap(store);
  let place = before.placeCount;
  // Slots ascend: this is done while everybody waits, and there may be as many runs as there are places.
  for (const free of [...store.slots, { place: store.placeCount, count: 0 }]) {
    while (place < free.place) {
      const { offset, run } = map.locate(place);
      const count = Math.min(run, free.place - place);
      yield { block: offset / BLOCK_BYTES, count };
      place += count;
    }
    place = Math.max(place, free.place + free.count);
  }
}
