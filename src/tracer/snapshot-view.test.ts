/** A reader of the snapshot and a store that grows under it. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { BLOCK_BYTES, Word } from './layout.js';
import { readSnapshot } from './snapshot-view.js';
import type { Step, Steps } from './steps.js';
import type { StoreConfig } from './store-map.js';
import { applySwitch } from './switches.js';
import { bufferOf, MemoryDevice, memoryFor } from './testing.js';
import { Tracer } from './tracer.js';

const BLOCKS = 32;
const BEFORE: StoreConfig = {
  kind: 'origin',
  extents: [{ place: 0, block: 16, count: 4 }],
  slots: [{ place: 3, count: 1 }],
  placeCount: 4,
};
/** Block 20 is kept where it is, block 21 is free. */
const AFTER: StoreConfig = {
  kind: 'origin',
  extents: [
    { place: 0, block: 16, count: 4 },
    { place: 4, block: 20, count: 2 },
  ],
  slots: [
    { place: 3, count: 1 },
    { place: 5, count: 1 },
  ],
  placeCount: 6,
};
const KEPT = 20;
const FREE = 21;

/** A snapshot whose store is about to take two blocks in; `announce` is what the workers hear of it. */
function growing() {
  const origin = new MemoryDevice(BLOCKS * BLOCK_BYTES);
  origin.bytes.fill(0x55, KEPT * BLOCK_BYTES, FREE * BLOCK_BYTES);
  const memory = memoryFor(BLOCKS);
  let mail: StoreConfig | undefined;
  let generation = 0;
  const configure = (config: StoreConfig): void =>
    tracer.setStore({ config, dirtyHeader: new Uint8Array(BLOCK_BYTES) }, origin);
  const tracer = new Tracer(memory, origin, {
    wake: () => undefined,
    attention: () => undefined,
    refresh: () => {
      if (memory.get(Word.GENERATION) === generation || mail === undefined) return;
      generation = memory.get(Word.GENERATION);
      configure(mail);
    },
  });
  applySwitch(memory, { kind: 'begin', store: BEFORE });
  configure(BEFORE);
  memory.setEntry(KEPT, 4);
  const announce = (): void => {
    mail = AFTER;
    memory.set(Word.GENERATION, 1);
  };
  const grow = (): void => applySwitch(memory, { kind: 'grow', before: BEFORE, store: AFTER });
  return { origin, memory, tracer, grow, announce };
}

/** Runs up to the next step; the I/O before it is done first. */
function advance(steps: Steps, last?: Step): Step | undefined {
  if (last?.kind === 'read') last.device.read(last.buffer, last.at, last.lengthBytes, last.offset);
  const next = steps.next();
  return next.done === true ? undefined : next.value;
}

describe('readSnapshot()', () => {
  it('waits for the new places of a store that has marked what it keeps and not told where that lies', () => {
    const { tracer, grow, announce } = growing();
    grow();
    const buffer = bufferOf(BLOCK_BYTES);
    const steps = readSnapshot(
      tracer,
      { buffer, at: 0, scratch: bufferOf(BLOCK_BYTES) },
      BLOCK_BYTES,
      KEPT * BLOCK_BYTES,
    );
    assert.equal(advance(steps)?.kind, 'wait');
    announce();
    const read = advance(steps);
    assert.equal(read?.kind, 'read');
    assert.equal(advance(steps, read), undefined);
    assert.ok(buffer.bytes.every((byte) => byte === 0x55));
  });

  it('gives zeros for a block that a growing store took in and wrote while it was read', () => {
    const { origin, tracer, grow, announce } = growing();
    const buffer = bufferOf(BLOCK_BYTES);
    const steps = readSnapshot(
      tracer,
      { buffer, at: 0, scratch: bufferOf(BLOCK_BYTES) },
      BLOCK_BYTES,
      FREE * BLOCK_BYTES,
    );
    const read = advance(steps);
    assert.equal(read?.kind, 'read');
    grow();
    announce();
    origin.bytes.fill(0xaa, FREE * BLOCK_BYTES, (FREE + 1) * BLOCK_BYTES);
    assert.equal(advance(steps, read), undefined);
    assert.ok(buffer.bytes.every((byte) => byte === 0));
  });

  it('fails with EIO for a block that is marked and not saved, as a failed snapshot has', () => {
    const { memory, tracer } = growing();
    const steps = readSnapshot(
      tracer,
      { buffer: bufferOf(BLOCK_BYTES), at: 0, scratch: bufferOf(BLOCK_BYTES) },
      BLOCK_BYTES,
      3 * BLOCK_BYTES,
    );
    const read = advance(steps);
    tracer.fail(27);
    memory.mark(3, 3);
    assert.throws(() => advance(steps, read), { code: 'EIO' });
  });
});
