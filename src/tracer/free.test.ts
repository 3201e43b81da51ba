/** Blocks that were free at T0: zeros in the snapshot, never saved, marked all the same; over transitions and reloads. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import type { IoBuffer } from '../block/device.js';
import { loadIndex, writeIndex } from './index-io.js';
import { BLOCK_BYTES, isBitSet, Mode, setBits, type VolumeMemory, Word } from './layout.js';
import { readSnapshot } from './snapshot-view.js';
import { runSteps } from './steps.js';
import { type StoreConfig, StoreMap } from './store-map.js';
import { applySwitch, markOtherView } from './switches.js';
import { bufferOf, MemoryDevice, memoryFor, randomOf, type World, worldOf } from './testing.js';

const BLOCKS = 40;
const INDEX_PLACES = 9;
const RUNS = { numRuns: 150 };

function noWait(): never {
  throw new Error('a single request waits for nobody');
}

function storeOfItsOwn(): { config: StoreConfig; device: MemoryDevice } {
  const placeCount = INDEX_PLACES + 1 + 2 * BLOCKS;
  const slots = [{ place: INDEX_PLACES + 1, count: 2 * BLOCKS }];
  const device = new MemoryDevice(placeCount * BLOCK_BYTES);
  return { config: { kind: 'device', extents: [], slots, placeCount, zeroPlace: INDEX_PLACES }, device };
}

/** As a worker writes: at once where that may be, else by steps. */
function write({ tracer, origin }: World, block: number, value: number): void {
  const data: IoBuffer = { bytes: new Uint8Array(BLOCK_BYTES).fill(value), address: 0 };
  const context = { worker: 0, scratch: bufferOf(16 * BLOCK_BYTES) };
  const offset = block * BLOCK_BYTES;
  if (tracer.begin(context, BLOCK_BYTES, offset)) {
    origin.write(data, 0, BLOCK_BYTES, offset);
    tracer.end(context);
  } else runSteps(tracer.write(context, data, 0, BLOCK_BYTES, offset), noWait);
}

function snapshotOf({ tracer, origin }: World): Buffer {
  const buffer = bufferOf(origin.sizeBytes);
  const target = { buffer, at: 0, scratch: bufferOf(4 * BLOCK_BYTES) };
  runSteps(readSnapshot(tracer, target, origin.sizeBytes, 0), noWait);
  return Buffer.from(buffer.bytes);
}

function writeSome(world: World, random: (below: number) => number): Set<number> {
  const written = new Set<number>();
  for (let i = random(20); i > 0; i--) {
    const block = random(BLOCKS);
    written.add(block);
    write(world, block, 1 + random(255));
  }
  return written;
}

/** Some blocks are found to be free, and then some are written while that is noted. Returns what the snapshot has to show. */
function lookUp(world: World, index: 0 | 1, random: (below: number) => number): { view: () => Buffer } {
  const { memory, origin } = world;
  memory.freeMaps[index].fill(0);
  memory.noted.fill(0);
  memory.notedPages.fill(0);
  memory.set(Word.NOTING, 1);
  const found = Array.from({ length: BLOCKS }, (_, block) => block).filter(() => random(2) === 0);
  for (const block of found) setBits(memory.freeMaps[index], block, block);
  const written = writeSome(world, random);
  return {
    view: () => {
      const bytes = Buffer.from(origin.bytes);
      for (const block of found) if (!written.has(block)) bytes.fill(0, block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
      return bytes;
    },
  };
}

function begin(world: World, random: (below: number) => number): { t0: Buffer; store: StoreConfig } {
  for (let block = 0; block < BLOCKS; block++) write(world, block, 1 + random(255));
  const { view } = lookUp(world, 0, random);
  const { config, device } = storeOfItsOwn();
  world.tracer.setStore({ config, dirtyHeader: new Uint8Array(BLOCK_BYTES) }, device);
  applySwitch(world.memory, { kind: 'begin', store: config, free: true });
  return { t0: view(), store: config };
}

function countFree(memory: VolumeMemory): number {
  return Array.from({ length: BLOCKS }, (_, block) => block).filter((block) => memory.isFree(block)).length;
}

describe('free blocks', () => {
  it('that were written between the look and T0 are free no more, and what is left reads as zeros for good (I2)', () => {
    fc.assert(
      fc.property(fc.nat(), (seed) => {
        const random = randomOf(seed);
        const world = worldOf(BLOCKS * BLOCK_BYTES);
        const { t0 } = begin(world, random);
        assert.equal(world.memory.get(Word.NOTING), 0);
        assert.ok(snapshotOf(world).equals(t0), 'before anything is written');
        const written = writeSome(world, random);
        assert.ok(snapshotOf(world).equals(t0), 'after');
        const saved = [...written].filter((block) => !world.memory.isFree(block)).length;
        assert.equal(world.memory.get(Word.NEXT_SLOT), saved, 'a free block takes no place');
        for (const block of written) assert.ok(world.memory.isMarked(block), `block ${block} is marked`);
        assert.equal(world.memory.get(Word.CHANGED), written.size);
      }),
      RUNS,
    );
  });

  it('make the next image follow from the old one and the marks, whichever of the two snapshots knows them (I3)', () => {
    fc.assert(
      fc.property(fc.nat(), fc.boolean(), fc.boolean(), (seed, isAgain, isCutOff) => {
        const random = randomOf(seed);
        const world = worldOf(BLOCKS * BLOCK_BYTES);
        const { memory } = world;
        const { t0: image, store } = begin(world, random);
        writeSome(world, random);
        applySwitch(memory, { kind: 'toIncremental', before: store, keptPlaces: INDEX_PLACES });
        writeSome(world, random);
        const view = isAgain ? lookUp(world, 1, random).view : () => Buffer.from(world.origin.bytes);
        const { config, device } = storeOfItsOwn();
        world.tracer.setStore({ config, dirtyHeader: new Uint8Array(BLOCK_BYTES) }, device);
        const change = { kind: 'next', before: store, store: config, closedMap: 0, freeBefore: true } as const;
        applySwitch(memory, { ...change, free: isAgain });
        // An engine that finds the switch half made makes it again.
        if (isCutOff) applySwitch(memory, { ...change, free: isAgain });
        markOtherView(memory, { ...change, free: isAgain });
        const next = snapshotOf(world);
        assert.ok(next.equals(view()));
        for (let block = 0; block < BLOCKS; block++)
          if (isBitSet(memory.maps[0], block))
            next.copy(image, block * BLOCK_BYTES, block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
        assert.ok(image.equals(next));
        writeSome(world, random);
        assert.ok(snapshotOf(world).equals(next));
      }),
      RUNS,
    );
  });

  it('that are overwritten have the block of zeros in the index on disk, and are marked again when it is loaded', () => {
    fc.assert(
      fc.property(fc.nat(), (seed) => {
        const random = randomOf(seed);
        const world = worldOf(BLOCKS * BLOCK_BYTES);
        const { memory, tracer } = world;
        const { t0, store } = begin(world, random);
        const written = writeSome(world, random);
        const { storeDevice: device } = tracer;
        assert.ok(device !== undefined);
        const onDevice = { map: new StoreMap(store), device };
        const buffer = bufferOf(16 * BLOCK_BYTES);
        runSteps(writeIndex(memory, onDevice, buffer, false), noWait);
        const again = worldOf(BLOCKS * BLOCK_BYTES);
        again.origin.bytes.set(world.origin.bytes);
        again.memory.freeMaps[0].set(memory.freeMaps[0]);
        const bounds = { indexOnly: false, firstPlace: INDEX_PLACES, endPlace: store.placeCount };
        assert.equal(runSteps(loadIndex(again.memory, onDevice, buffer, bounds), noWait), written.size);
        again.tracer.setStore({ config: store, dirtyHeader: new Uint8Array(BLOCK_BYTES) }, device);
        applySwitch(again.memory, { kind: 'reload', mode: 'snapshot', free: true });
        assert.equal(again.memory.get(Word.MODE), Mode.SNAPSHOT);
        assert.ok(snapshotOf(again).equals(t0));
        for (const block of written) assert.ok(again.memory.isMarked(block));
      }),
      RUNS,
    );
  });

  it('are none where nobody asks for them', () => {
    const memory = memoryFor(BLOCKS);
    setBits(memory.freeMaps[0], 0, BLOCKS - 1);
    applySwitch(memory, { kind: 'begin', store: storeOfItsOwn().config });
    assert.equal(countFree(memory), 0);
  });
});
