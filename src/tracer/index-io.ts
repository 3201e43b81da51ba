/**
 * Index and header of a store, between shared memory and the disk.
 *
 * On disk the index is zero where the map has no bit: it was zeroed at setup, and bits are only added. So writing the pages
 * that have bits is writing the index.
 */
import type { BlockDevice, IoBuffer } from '../block/device.js';
import { ENTRY_SIZE_BYTES, HEADER_SIZE_BYTES, indexLengthBytes } from '../cow/geometry.js';
import { decodeHeader } from '../cow/header.js';
import { decodeEntries } from '../cow/index-codec.js';
import { assert } from '../sys/errors.js';
import { BLOCK_BYTES, isBitSet, type VolumeMemory } from './layout.js';
import type { Steps } from './steps.js';
import { writePlaces } from './store-io.js';
import type { SlotRun, StoreMap } from './store-map.js';

export const ENTRIES_PER_PAGE = BLOCK_BYTES / ENTRY_SIZE_BYTES;

export interface StoreOnDevice {
  map: StoreMap;
  device: BlockDevice;
}

/** Writes every index page that has a set bit. Snapshot mode: places; incremental: 1 for a change. */
export function* writeIndex(memory: VolumeMemory, store: StoreOnDevice, buffer: IoBuffer, indexOnly: boolean): Steps {
  const capacity = buffer.bytes.byteLength / BLOCK_BYTES;
  const view = new DataView(buffer.bytes.buffer, buffer.bytes.byteOffset, buffer.bytes.byteLength);
  const map = memory.map;
  let runs: SlotRun[] = [];
  let pages = 0;
  for (let first = 0; first < memory.blockCount; first += ENTRIES_PER_PAGE) {
    if (!pageHasBits(map, first)) continue;
    const at = pages * BLOCK_BYTES;
    buffer.bytes.fill(0, at, at + BLOCK_BYTES);
    const end = Math.min(first + ENTRIES_PER_PAGE, memory.blockCount);
    for (let block = first; block < end; block++) {
      if (!isBitSet(map, block)) continue;
      view.setUint32(at + (block - first) * ENTRY_SIZE_BYTES, indexOnly ? 1 : entryOf(memory, store, block), true);
    }
    const place = HEADER_SIZE_BYTES / BLOCK_BYTES + first / ENTRIES_PER_PAGE;
    const last = runs.at(-1);
    if (last !== undefined && last.place + last.count === place) last.count++;
    else runs.push({ place, count: 1 });
    if (++pages === capacity) {
      yield* writePlaces(store, buffer, runs);
      runs = [];
      pages = 0;
    }
  }
  yield* writePlaces(store, buffer, runs);
}

/** What was free at T0 and is overwritten has the store's block of zeros as its place. */
function entryOf(memory: VolumeMemory, { map }: StoreOnDevice, block: number): number {
  if (!memory.isFree(block)) return memory.entry(block);
  assert(map.zeroPlace !== undefined, 'the store of a snapshot that knows free blocks has a block of zeros');
  return map.zeroPlace;
}

function pageHasBits(map: Int32Array, first: number): boolean {
  const end = Math.min(map.length, (first + ENTRIES_PER_PAGE) / 32);
  for (let word = first / 32; word < end; word++) if (Atomics.load(map, word) !== 0) return true;
  return false;
}

/** Writes a header page and makes it durable. It is decoded first: what cannot be read back is not written. */
export function* writeHeader(store: StoreOnDevice, buffer: IoBuffer, header: Uint8Array): Steps {
  decodeHeader(header);
  buffer.bytes.set(header, 0);
  yield* writePlaces(store, buffer, [{ place: 0, count: 1 }]);
  yield { kind: 'flush', device: store.device };
}

/** Reads the header page of a store. */
export function* readHeaderPage(store: StoreOnDevice, buffer: IoBuffer): Steps<Uint8Array> {
  const { offset } = store.map.locate(0);
  yield { kind: 'read', device: store.device, buffer, at: 0, lengthBytes: HEADER_SIZE_BYTES, offset };
  return Uint8Array.from(buffer.bytes.subarray(0, HEADER_SIZE_BYTES));
}

/** Takes the index on disk over into memory; returns how many entries are set. */
export function* loadIndex(
  memory: VolumeMemory,
  store: StoreOnDevice,
  buffer: IoBuffer,
  bounds: { indexOnly: boolean; firstPlace: number; endPlace: number },
): Steps<number> {
  const pages = indexLengthBytes(memory.blockCount) / BLOCK_BYTES;
  let found = 0;
  let page = 0;
  while (page < pages) {
    const { offset, run } = store.map.locate(1 + page);
    const count = Math.min(run, pages - page, buffer.bytes.byteLength / BLOCK_BYTES);
    yield { kind: 'read', device: store.device, buffer, at: 0, lengthBytes: count * BLOCK_BYTES, offset };
    const firstBlock = page * ENTRIES_PER_PAGE;
    const entries = decodeEntries(buffer.bytes.subarray(0, count * BLOCK_BYTES), bounds, firstBlock);
    entries.forEach((entry, i) => {
      if (entry === 0) return;
      const block = firstBlock + i;
      assert(block < memory.blockCount, `index entry ${block} belongs to a block of the volume`);
      if (!bounds.indexOnly) memory.setEntry(block, entry);
      memory.mark(block, block);
      found++;
    });
    page += count;
  }
  return found;
}
