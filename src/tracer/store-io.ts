/** Writing to places of a store. */
import type { BlockDevice, IoBuffer } from '../block/device.js';
import { BLOCK_BYTES } from './layout.js';
import type { Steps } from './steps.js';
import type { SlotRun, StoreMap } from './store-map.js';

/** Writes blocks from the start of `buffer` to runs of places of the store, one I/O for each piece that is contiguous there. */
export function* writePlaces(
  store: { map: StoreMap; device: BlockDevice },
  buffer: IoBuffer,
  runs: readonly SlotRun[],
): Steps {
  let at = 0;
  for (const { place, count } of runs) {
    let done = 0;
    while (done < count) {
      const { offset, run } = store.map.locate(place + done);
      const blocks = Math.min(run, count - done);
      const lengthBytes = blocks * BLOCK_BYTES;
      yield { kind: 'write', device: store.device, buffer, at, lengthBytes, offset };
      at += lengthBytes;
      done += blocks;
    }
  }
}
