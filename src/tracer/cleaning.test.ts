/** Going clean, and what comes in between. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { encodeHeader } from '../cow/header.js';
import { goClean } from './cleaning.js';
import { BLOCK_BYTES, HeaderState, Mode, Word } from './layout.js';
import { performIo, runSteps, type Step, type Stepper, type Steps } from './steps.js';
import { type StoreConfig, StoreMap } from './store-map.js';
import { beginSnapshot, bufferOf, type MemoryDevice, type World, worldOf } from './testing.js';

const BLOCKS = 32;
const ON_ORIGIN: StoreConfig = {
  kind: 'origin',
  extents: [{ place: 0, block: 16, count: 12 }],
  slots: [{ place: 9, count: 3 }],
  placeCount: 12,
};

function noWait(): never {
  throw new Error('a single request waits for nobody');
}

function cleaning(world: World, store: MemoryDevice, config: StoreConfig): Steps<boolean> {
  return goClean(world.tracer, {
    store: { map: new StoreMap(config), device: store },
    buffer: bufferOf(4 * BLOCK_BYTES),
    fingerprint: () => new Uint8Array(32),
    header: (changedBlocks, fingerprint) =>
      encodeHeader({
        clean: true,
        indexOnly: false,
        vmallocUpper: false,
        positionBlocks: 9,
        fileSizeBytes: config.placeCount * BLOCK_BYTES,
        sequenceId: 1,
        uuid: new Uint8Array(16),
        version: 1,
        changedBlocks,
        extension: { fingerprint, volumeSizeBytes: BLOCKS * BLOCK_BYTES },
      }),
  });
}

function writeOf({ tracer }: World, block: number): Stepper {
  const data = { bytes: new Uint8Array(BLOCK_BYTES).fill(7), address: 0 };
  const context = { worker: 0, scratch: bufferOf(4 * BLOCK_BYTES) };
  return tracer.write(context, data, 0, BLOCK_BYTES, block * BLOCK_BYTES);
}

/** Runs up to a step that matches, which is not done yet. */
function runUntil<T>(steps: Stepper<T>, isIt: (step: Step) => boolean): Step {
  for (;;) {
    const next = steps.next();
    assert.ok(next.done !== true, 'the step comes');
    if (isIt(next.value)) return next.value;
    if (next.value.kind !== 'wait') performIo(next.value);
  }
}

describe('goClean()', () => {
  it('after an error of the header has the next write make it dirty, failed snapshot or not (I3)', () => {
    const world = worldOf(BLOCKS * BLOCK_BYTES);
    const store = worldOf(12 * BLOCK_BYTES).origin;
    const config: StoreConfig = { ...ON_ORIGIN, kind: 'device', extents: [] };
    beginSnapshot(world, config, store);
    const flush = store.flush.bind(store);
    let flushes = 0;
    store.flush = () => {
      // The first is that of the index. The header gets to the disk, and its flush fails.
      if (++flushes === 2) throw new Error('flush failed');
      flush();
    };
    assert.throws(() => runSteps(cleaning(world, store, config), noWait), /flush failed/);
    world.tracer.fail(5);
    assert.equal(store.bytes.readUInt32LE(4), 1, 'the header on the disk says clean');
    runSteps(writeOf(world, 3), noWait);
    assert.equal(store.bytes[0], 0xdd, 'the header on the disk is the dirty one');
    assert.equal(world.memory.get(Word.HEADER_STATE), HeaderState.DIRTY);
  });

  it('lets a foreign write through only when its own write to the store has ended, and writes no more then (I1)', () => {
    const world = worldOf(BLOCKS * BLOCK_BYTES);
    beginSnapshot(world, ON_ORIGIN, world.origin);
    runSteps(writeOf(world, 3), noWait);
    const clean = cleaning(world, world.origin, ON_ORIGIN);
    const indexWrite = runUntil(clean, ({ kind }) => kind === 'write');
    const foreign = writeOf(world, 17);
    assert.deepEqual(
      runUntil(foreign, ({ kind }) => kind === 'wait'),
      {
        kind: 'wait',
        word: Word.STORE_WRITES,
        value: 1,
      },
    );
    assert.ok(indexWrite.kind !== 'wait');
    performIo(indexWrite);
    assert.deepEqual(runRest(clean), { result: false, writes: 0 });
    runSteps(foreign, noWait);
    assert.equal(world.origin.bytes[17 * BLOCK_BYTES], 7);
    assert.equal(world.memory.get(Word.MODE), Mode.SNAPSHOT);
  });
});

function runRest(steps: Steps<boolean>): { result: boolean; writes: number } {
  let writes = 0;
  for (;;) {
    const next = steps.next();
    if (next.done === true) return { result: next.value, writes };
    if (next.value.kind === 'write') writes++;
    if (next.value.kind !== 'wait') performIo(next.value);
  }
}
