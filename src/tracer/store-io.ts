/** Writing to places of a store. */
import type { BlockDevice, IoBuffer } from '../block/device.js';
import { assert } from '../sys/errors.js';
import { BLOCK_BYTES } from './layout.js';
import type { Steps } from './steps.js';
import type { StoreMap } from './store-map.js';

/** Writes blocks from the start of `buffer` to places of the store, one I/O for each piece that is contiguous there. */
export function* writePlaces(
  store: { map: StoreMap; device: BlockDevice },
  buffer: IoBuffer,
  places: readonly number[],
): Steps {
  let done = 0;
  while (done < places.length) {
    const place = places[done];
    assert(place !== undefined, 'a place to write');
    const { offset, run } = store.map.locate(place);
    let count = 1;
    while (count < run && done + count < places.length && places[done + count] === place + count) count++;
    const lengthBytes = count * BLOCK_BYTES;
    yield { kind: 'write', device: store.device, buffer, at: done * BLOCK_BYTES, lengthBytes, offset };
    done += count;
  }
}
