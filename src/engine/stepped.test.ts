/** Steps whose transfers are left to others, and reads that go side by side: what happens where one of them cannot be done. */
import assert from 'node:assert/strict';
import { writeSync } from 'node:fs';
import { after, describe, it } from 'node:test';
import { FdDevice } from '../block/device.js';
import * as libc from '../sys/libc.js';
import type { ReadStep, Steps } from '../tracer/steps.js';
import { SideBySide } from './side-by-side.js';
import { SteppedRequests } from './stepped.js';

const BLOCK = 4096;
const BLOCKS = 4;

const fd = libc.memfdCreate('cowbird-stepped-test', 0);
for (let i = 0; i < BLOCKS; i++) writeSync(fd, Buffer.alloc(BLOCK, i + 1), 0, BLOCK, i * BLOCK);
const device = new FdDevice(fd, BLOCKS * BLOCK, true);
const memory = libc.mapPages(BLOCKS * BLOCK);
const buffer = { bytes: new Uint8Array(memory.bytes), address: memory.address };
after(() => {
  libc.close(fd);
  libc.unmap(memory);
});

const readOf = (block: number): ReadStep => ({
  kind: 'read',
  device,
  buffer,
  at: (block % BLOCKS) * BLOCK,
  lengthBytes: BLOCK,
  offset: block * BLOCK,
});
const executor = {
  isStill: () => false,
  sleep: () => undefined,
  perform: () => assert.fail('it is left to the caller'),
};

describe('a request by its steps', () => {
  it('hears of a transfer that cannot be left to others as of one that failed', () => {
    const heard: unknown[] = [];
    function* steps(): Steps {
      try {
        yield readOf(BLOCKS);
      } catch (error) {
        heard.push(error);
      }
      yield readOf(1);
    }
    const next = new SteppedRequests(0, 1, BLOCK).begin(steps, executor);
    assert.equal(heard.length, 1);
    assert.deepEqual([next?.isTransfer, next?.offset], [true, BLOCK]);
    assert.equal(next?.done(), undefined);
  });
});

describe('reads side by side', () => {
  it('are all looked at before the first is begun, so that none is left in hand', () => {
    const sideBySide = new SideBySide();
    assert.throws(() => sideBySide.perform({ kind: 'readTogether', reads: [readOf(0), readOf(BLOCKS)] }));
    assert.deepEqual([...buffer.bytes.subarray(0, 1)], [0], 'nothing was read');
    sideBySide.perform({ kind: 'readTogether', reads: [readOf(2), readOf(3)] });
    assert.deepEqual(
      [0, 1, 2, 3].map((block) => buffer.bytes[block * BLOCK]),
      [0, 0, 3, 4],
    );
  });
});
