/** The write path against a model, with several workers interleaved at every step. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import type { IoBuffer } from '../block/device.js';
import { BLOCK_BYTES, HeaderState, isBitSet, Mode, setBits, Word } from './layout.js';
import { readSnapshot } from './snapshot-view.js';
import { runSteps, type Steps } from './steps.js';
import type { StoreConfig, StoreExtent } from './store-map.js';
import {
  beginSnapshot,
  bufferOf,
  interleave,
  MemoryDevice,
  randomOf,
  stepsOf,
  type World,
  worldOf,
} from './testing.js';

const INDEX_PLACES = 3;
const RUNS = { numRuns: 150 };

function noWait(): never {
  throw new Error('a single request waits for nobody');
}

/** A store in random pieces of the last part of the volume; the rest is the user's. */
function originStore(firstBlock: number, blocks: number, random: (below: number) => number): StoreConfig {
  const pieces: Array<{ block: number; count: number }> = [];
  for (let block = firstBlock; block < firstBlock + blocks; ) {
    const count = Math.min(1 + random(9), firstBlock + blocks - block);
    pieces.push({ block, count });
    block += count + random(3);
  }
  const extents: StoreExtent[] = [];
  let place = 0;
  for (const piece of pieces.filter((entry) => entry.block + entry.count <= firstBlock + blocks)) {
    extents.splice(random(extents.length + 1), 0, { place: 0, ...piece });
  }
  for (const extent of extents) {
    extent.place = place;
    place += extent.count;
  }
  return { kind: 'origin', extents, slots: [{ place: INDEX_PLACES, count: place - INDEX_PLACES }], placeCount: place };
}

function deviceStore(blocks: number): { config: StoreConfig; device: MemoryDevice } {
  const placeCount = INDEX_PLACES + blocks;
  const config: StoreConfig = {
    kind: 'device',
    extents: [],
    slots: [{ place: INDEX_PLACES, count: blocks }],
    placeCount,
  };
  return { config, device: new MemoryDevice(placeCount * BLOCK_BYTES) };
}

function snapshotOf(world: World): Buffer {
  const { sizeBytes } = world.origin;
  const buffer = bufferOf(sizeBytes);
  runSteps(readSnapshot(world.tracer, { buffer, at: 0, scratch: bufferOf(4 * BLOCK_BYTES) }, sizeBytes, 0), noWait);
  return Buffer.from(buffer.bytes);
}

interface Op {
  kind: 'write' | 'zero' | 'read';
  sector: number;
  sectors: number;
  value: number;
}

function opsFor(userSectors: number): fc.Arbitrary<Op[]> {
  const op = fc.record({
    kind: fc.constantFrom<Op['kind']>('write', 'write', 'write', 'zero', 'read'),
    sector: fc.nat(userSectors - 1),
    sectors: fc.integer({ min: 1, max: 64 }),
    value: fc.integer({ min: 1, max: 255 }),
  });
  return fc.array(op, { minLength: 1, maxLength: 24 });
}

/** The steps of an operation by one worker; a read checks what it got against T0. */
function* perform(world: World, op: Op, worker: number, userSectors: number, t0: Buffer): Steps {
  const lengthBytes = Math.min(op.sectors, userSectors - op.sector) * 512;
  const offset = op.sector * 512;
  const context = { worker, scratch: bufferOf(16 * BLOCK_BYTES) };
  if (op.kind === 'write') {
    const data: IoBuffer = { bytes: new Uint8Array(lengthBytes).fill(op.value), address: 0 };
    yield* stepsOf(world.tracer.write(context, data, 0, lengthBytes, offset));
  } else if (op.kind === 'zero') {
    yield* world.tracer.zero(context, offset, lengthBytes, true);
  } else if (world.memory.get(Word.MODE) === Mode.SNAPSHOT) {
    const buffer = bufferOf(lengthBytes);
    yield* readSnapshot(world.tracer, { buffer, at: 0, scratch: bufferOf(4 * BLOCK_BYTES) }, lengthBytes, offset);
    assert.ok(
      Buffer.from(buffer.bytes).equals(t0.subarray(offset, offset + lengthBytes)),
      'a read in between is of T0',
    );
  }
}

function fillWith(bytes: Buffer, endBytes: number, random: (below: number) => number): void {
  for (let at = 0; at < endBytes; at += BLOCK_BYTES) {
    if (random(3) > 0) bytes.fill(1 + random(255), at, Math.min(at + BLOCK_BYTES, endBytes));
  }
}

function runOps(world: World, ops: Op[], userSectors: number, t0: Buffer, random: (below: number) => number): void {
  for (let at = 0; at < ops.length; at += 3) {
    const batch = ops.slice(at, at + 3).map((op, worker) => perform(world, op, worker, userSectors, t0));
    interleave(world.memory, batch, random);
  }
}

const volumes = fc.record({
  blocks: fc.integer({ min: 4, max: 60 }),
  tailSectors: fc.nat(7),
  seed: fc.nat(),
  onOrigin: fc.boolean(),
  freeAware: fc.boolean(),
});

/** A volume with random contents, its T0, and a snapshot that has just begun. */
function begun({
  blocks,
  tailSectors,
  seed,
  onOrigin,
  freeAware = false,
}: {
  blocks: number;
  tailSectors: number;
  seed: number;
  onOrigin: boolean;
  freeAware?: boolean;
}): {
  world: World;
  t0: Buffer;
  userSectors: number;
  random: (below: number) => number;
  config: StoreConfig;
} {
  const random = randomOf(seed);
  const storeBlocks = 2 * blocks + 40;
  const sizeBytes = (onOrigin ? blocks + storeBlocks : blocks) * BLOCK_BYTES + tailSectors * 512;
  const world = worldOf(sizeBytes);
  fillWith(world.origin.bytes, sizeBytes, random);
  const t0 = Buffer.from(world.origin.bytes);
  for (let block = 0; freeAware && block < blocks; block++) {
    // What is free has something in it all the same: what was there before.
    if (random(3) > 0) continue;
    setBits(world.memory.freeMaps[0], block, block);
    t0.fill(0, block * BLOCK_BYTES, Math.min(sizeBytes, (block + 1) * BLOCK_BYTES));
  }
  world.memory.set(Word.FREE, freeAware ? 1 : 0);
  if (onOrigin) {
    const config = originStore(blocks, storeBlocks, random);
    for (const extent of config.extents) {
      t0.fill(0, extent.block * BLOCK_BYTES, Math.min(sizeBytes, (extent.block + extent.count) * BLOCK_BYTES));
    }
    beginSnapshot(world, config, world.origin);
    return { world, t0, userSectors: blocks * 8, random, config };
  }
  const { config, device } = deviceStore(2 * blocks + 2);
  beginSnapshot(world, config, device);
  return { world, t0, userSectors: sizeBytes / 512, random, config };
}

describe('the write path', () => {
  it('keeps the snapshot at T0 under interleaved writes and discards, wherever the store lies (I2, I6)', () => {
    fc.assert(
      fc.property(volumes, fc.context(), (volume, _) => {
        const { world, t0, userSectors, random } = begun(volume);
        const [ops] = fc.sample(opsFor(userSectors), { numRuns: 1, seed: volume.seed });
        runOps(world, ops ?? [], userSectors, t0, random);
        assert.equal(world.memory.get(Word.FAILED), 0, world.failures.join());
        assert.ok(snapshotOf(world).equals(t0));
        for (let block = 0; block < world.memory.blockCount; block++)
          assert.ok(!world.memory.isFree(block) || world.memory.entry(block) === 0, `free block ${block} is not saved`);
      }),
      RUNS,
    );
  });

  it('marks every block that differs from T0, and none that was neither written nor differs (I3)', () => {
    fc.assert(
      fc.property(volumes, (volume) => {
        const { world, t0, userSectors, random } = begun(volume);
        const before = Buffer.from(world.origin.bytes);
        const [ops = []] = fc.sample(opsFor(userSectors), { numRuns: 1, seed: volume.seed });
        runOps(world, ops, userSectors, t0, random);
        const written = (block: number): boolean =>
          ops.some((op) => op.kind !== 'read' && op.sector < (block + 1) * 8 && op.sector + op.sectors > block * 8);
        let count = 0;
        for (let block = 0; block < world.memory.blockCount; block++) {
          const marked = isBitSet(world.memory.map, block);
          if (marked) count++;
          const range = [block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES] as const;
          const differs = !world.origin.bytes.subarray(...range).equals(before.subarray(...range));
          if (block * 8 < userSectors && differs) assert.ok(marked, `block ${block} differs and is marked`);
          if (marked) assert.ok(written(block), `block ${block} is marked and was written`);
        }
        assert.equal(world.memory.get(Word.CHANGED), count);
      }),
      RUNS,
    );
  });

  it('gives the next image from the old one and the marks, over a transition (I3)', () => {
    fc.assert(
      fc.property(volumes, (volume) => {
        const { world, t0, userSectors, random } = begun({ ...volume, onOrigin: false, freeAware: false });
        const [first = [], second = []] = fc.sample(opsFor(userSectors), { numRuns: 2, seed: volume.seed });
        runOps(world, first, userSectors, t0, random);
        const image = snapshotOf(world);
        world.memory.set(Word.MODE, Mode.INCREMENTAL);
        runOps(world, second, userSectors, t0, random);
        for (let block = 0; block < world.memory.blockCount; block++) {
          if (isBitSet(world.memory.map, block)) {
            world.origin.bytes.copy(image, block * BLOCK_BYTES, block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
          }
        }
        assert.ok(image.equals(world.origin.bytes));
      }),
      RUNS,
    );
  });

  it('never writes outside the store and the ranges of the requests (diff_storage)', () => {
    fc.assert(
      fc.property(volumes, (volume) => {
        const { world, userSectors, random, t0, config } = begun({ ...volume, onOrigin: true });
        const [ops = []] = fc.sample(opsFor(userSectors), { numRuns: 1, seed: volume.seed });
        const before = Buffer.from(world.origin.bytes);
        runOps(world, ops, userSectors, t0, random);
        const own = (block: number): boolean =>
          config.extents.some((e) => e.block <= block && block < e.block + e.count);
        for (let block = userSectors / 8; block < world.memory.blockCount; block++) {
          if (own(block)) continue;
          const range = [block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES] as const;
          assert.ok(
            world.origin.bytes.subarray(...range).equals(before.subarray(...range)),
            `block ${block} is untouched`,
          );
        }
      }),
      RUNS,
    );
  });

  it('saves whole blocks at the edges of a write, and no neighbour (boundary)', () => {
    for (const [sector, sectors] of [
      [8, 1],
      [15, 1],
      [15, 2],
      [0, 8],
      [7, 10],
      [79, 1],
    ] as const) {
      const world = worldOf(10 * BLOCK_BYTES);
      fillWith(world.origin.bytes, 10 * BLOCK_BYTES, randomOf(5));
      const t0 = Buffer.from(world.origin.bytes);
      const { config, device } = deviceStore(10);
      beginSnapshot(world, config, device);
      const op: Op = { kind: 'write', sector, sectors, value: 7 };
      runSteps(perform(world, op, 0, 80, t0), noWait);
      assert.ok(snapshotOf(world).equals(t0));
      const expected = Math.floor((sector + sectors - 1) / 8) - Math.floor(sector / 8) + 1;
      assert.equal(world.memory.get(Word.NEXT_SLOT), expected);
      assert.equal(world.memory.get(Word.CHANGED), expected);
    }
  });
});

describe('a failure of the store', () => {
  const write = (world: World, sector: number, value: number): void =>
    runSteps(perform(world, { kind: 'write', sector, sectors: 8, value }, 0, 160, Buffer.alloc(0)), noWait);

  it('when it is full fails the snapshot with 27; writes go on and are marked; reads give EIO (I1, I2, I3)', () => {
    const world = worldOf(20 * BLOCK_BYTES);
    const { config, device } = deviceStore(2);
    beginSnapshot(world, config, device);
    for (let block = 0; block < 5; block++) write(world, block * 8, block + 1);
    assert.equal(world.memory.get(Word.FAILED), 27);
    assert.deepEqual([...world.origin.bytes.subarray(4 * BLOCK_BYTES, 4 * BLOCK_BYTES + 2)], [5, 5]);
    assert.equal(world.memory.get(Word.CHANGED), 5);
    assert.throws(() => snapshotOf(world), { code: 'EIO' });
  });

  it('when old contents cannot be read fails the snapshot, never a discard over them (I1, I3)', () => {
    for (const mode of [Mode.SNAPSHOT, Mode.INCREMENTAL]) {
      const world = worldOf(20 * BLOCK_BYTES);
      fillWith(world.origin.bytes, 20 * BLOCK_BYTES, randomOf(6));
      const { config, device } = deviceStore(9);
      beginSnapshot(world, config, device);
      world.memory.set(Word.MODE, mode);
      world.origin.failReads = true;
      runSteps(
        world.tracer.zero({ worker: 0, scratch: bufferOf(16 * BLOCK_BYTES) }, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES, true),
        noWait,
      );
      assert.ok(world.origin.bytes.subarray(2 * BLOCK_BYTES, 5 * BLOCK_BYTES).every((byte) => byte === 0));
      assert.deepEqual(
        [1, 2, 4, 5].map((block) => world.memory.isMarked(block)),
        [false, true, true, false],
      );
      assert.equal(world.memory.get(Word.FAILED), mode === Mode.SNAPSHOT ? 5 : 0);
    }
  });

  it('when it cannot be written fails the snapshot, never the write', () => {
    const world = worldOf(20 * BLOCK_BYTES);
    const { config, device } = deviceStore(9);
    beginSnapshot(world, config, device);
    device.failWrites = true;
    write(world, 0, 9);
    assert.equal(world.memory.get(Word.FAILED), 5);
    assert.equal(world.origin.bytes[0], 9);
    assert.ok(world.memory.isMarked(0));
  });

  it('when somebody else writes into it fails the snapshot with 117', () => {
    const world = worldOf(40 * BLOCK_BYTES);
    const config: StoreConfig = {
      kind: 'origin',
      extents: [{ place: 0, block: 10, count: 9 }],
      slots: [{ place: 3, count: 6 }],
      placeCount: 9,
    };
    beginSnapshot(world, config, world.origin);
    write(world, 12 * 8, 1);
    assert.equal(world.memory.get(Word.FAILED), 117);
    assert.equal(world.origin.bytes[12 * BLOCK_BYTES], 1);
  });

  it('when somebody else zeroes blocks of it fails the snapshot with 117, zeros though they were', () => {
    const world = worldOf(40 * BLOCK_BYTES);
    const extents = [{ place: 0, block: 10, count: 9 }];
    const config: StoreConfig = { kind: 'origin', extents, slots: [{ place: 3, count: 6 }], placeCount: 9 };
    beginSnapshot(world, config, world.origin);
    const context = { worker: 0, scratch: bufferOf(16 * BLOCK_BYTES) };
    runSteps(world.tracer.zero(context, 14 * BLOCK_BYTES, BLOCK_BYTES, true), noWait);
    assert.equal(world.memory.get(Word.FAILED), 117);
  });

  it('that is clean on disk is made dirty, flushed, before the first write is issued to the origin', () => {
    const world = worldOf(20 * BLOCK_BYTES);
    const { config, device } = deviceStore(9);
    beginSnapshot(world, config, device);
    world.memory.set(Word.MODE, Mode.INCREMENTAL);
    world.memory.set(Word.HEADER_STATE, HeaderState.CLEAN);
    const order: string[] = [];
    const { origin } = world;
    const originWrite = origin.write.bind(origin);
    origin.write = (...args) => {
      order.push(...device.log, 'origin');
      originWrite(...args);
    };
    write(world, 8, 3);
    assert.deepEqual(order, [`write 0+${BLOCK_BYTES}`, 'flush', 'origin']);
    assert.equal(device.bytes[0], 0xdd);
    assert.equal(world.memory.get(Word.HEADER_STATE), HeaderState.DIRTY);
  });
});

describe('the gate', () => {
  it('holds writes back until it opens, and a write that is inside is seen', () => {
    const world = worldOf(8 * BLOCK_BYTES);
    world.memory.set(Word.GATE, 1);
    const steps = perform(world, { kind: 'write', sector: 0, sectors: 8, value: 1 }, 0, 64, Buffer.alloc(0));
    assert.deepEqual(steps.next().value, { kind: 'wait', word: Word.GATE, value: 1 });
    assert.equal(world.memory.get(Word.BUSY), 0);
    world.memory.set(Word.GATE, 0);
    assert.ok(steps.next().done === false);
    assert.equal(world.memory.get(Word.BUSY), 1);
    runSteps(steps, noWait);
    assert.equal(world.memory.get(Word.BUSY), 0);
  });
});
