/** Writing to places of a store. */
import type { BlockDevice, IoBuffer } from '../block/device.js';
import { BLOCK_BYTES } from './layout.js';
import type { Steps } from './steps.js';
import type { SlotRun, StoreMap } from './store-map.js';

/** Blocks that lie in one piece of the store's device, from a byte on. */
export interface StorePiece {
  offset: number;
  count: number;
}

/** Where the blocks of runs of places lie, in their order. */
export function storePieces(map: StoreMap, runs: readonly SlotRun[]): StorePiece[] {
  const pieces: StorePiece[] = [];
  for (const { place, count } of runs) {
    for (let done = 0; done < count; ) {
      const { offset, run } = map.locate(place + done);
      const blocks = Math.min(run, count - done);
      pieces.push({ offset, count: blocks });
      done += blocks;
    }
  }
  return pieces;
}

/** Writes blocks from the start of `buffer` to runs of places of the store, one I/O for each piece that is contiguous there. */
export function* writePlaces(
  store: { map: StoreMap; device: BlockDevice },
  buffer: IoBuffer,
  runs: readonly SlotRun[],
): Steps {
  let at = 0;
  for (const { offset, count } of storePieces(store.map, runs)) {
    const lengthBytes = count * BLOCK_BYTES;
    yield { kind: 'write', device: store.device, buffer, at, lengthBytes, offset };
    at += lengthBytes;
  }
}
