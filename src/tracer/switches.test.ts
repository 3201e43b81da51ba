/** Switches whose size small volumes do not have. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Word } from './layout.js';
import { type SlotRun, type StoreConfig, StoreMap } from './store-map.js';
import { applySwitch } from './switches.js';
import { memoryFor } from './testing.js';

/** Places 0 to 15 of the store were there before; it lies on the volume from this block on. */
const FIRST_BLOCK = 1_000;
const BEFORE_PLACES = 16;

/** A store that took in places of which every third one is kept, in extents of a thousand. */
function grown(runs: number): { before: StoreConfig; store: StoreConfig } {
  const placeCount = BEFORE_PLACES + runs * 3;
  const extents = [{ place: 0, block: FIRST_BLOCK, count: BEFORE_PLACES }];
  for (let place = BEFORE_PLACES; place < placeCount; place += 1_000)
    extents.push({ place, block: FIRST_BLOCK + place * 2, count: Math.min(1_000, placeCount - place) });
  const first: SlotRun = { place: 8, count: 8 };
  const slots = [first];
  for (let i = 0; i < runs; i++) slots.push({ place: BEFORE_PLACES + i * 3, count: 2 });
  const before: StoreConfig = {
    kind: 'origin',
    extents: extents.slice(0, 1),
    slots: [first],
    placeCount: BEFORE_PLACES,
  };
  return { before, store: { kind: 'origin', extents, slots, placeCount } };
}

describe('a store that grew into a hundred thousand pieces', () => {
  const RUNS = 150_000;
  const { before, store } = grown(RUNS);

  it('marks exactly what it keeps, in time, for everybody waits meanwhile (I1)', { timeout: 20_000 }, () => {
    const memory = memoryFor(FIRST_BLOCK + store.placeCount * 2 + 1_000);
    applySwitch(memory, { kind: 'grow', before, store });
    const map = new StoreMap(store);
    const isMarked = (place: number): boolean => {
      const block = map.locate(place).offset / 4096;
      return (((memory.map[Math.floor(block / 32)] ?? 0) >>> (block % 32)) & 1) === 1;
    };
    let marked = 0;
    for (let place = BEFORE_PLACES; place < store.placeCount; place++) {
      assert.equal(isMarked(place), (place - BEFORE_PLACES) % 3 === 2, `place ${place}`);
      if (isMarked(place)) marked++;
    }
    assert.equal(marked, RUNS);
    assert.equal(memory.get(Word.SLOT_COUNT), 8 + 2 * RUNS);
  });

  it('gives out each free place once, in order', { timeout: 20_000 }, () => {
    const map = new StoreMap(store);
    let slot = 0;
    for (const run of store.slots) {
      assert.deepEqual(map.placeOfSlot(slot), { place: run.place, run: run.count });
      assert.deepEqual(map.placeOfSlot(slot + run.count - 1), { place: run.place + run.count - 1, run: 1 });
      slot += run.count;
    }
    assert.equal(map.slotCount, slot);
    assert.throws(() => map.placeOfSlot(slot), /beyond/);
  });
});
