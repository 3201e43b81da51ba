/** Convergence with a tracker and a disk of our own making: when passes end, when the freeze is tried, and when it is given up. */
import assert from 'node:assert/strict';
import { closeSync, fsyncSync, mkdtempSync, openSync, rmSync, truncateSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, it } from 'node:test';
import { BLOCK_BYTES, type BlockBitmap } from '../live/bitmap.js';
import { Freezer } from '../live/freezer.js';
import { aloneWith } from '../live/standstill.js';
import type { ContinuityToken, LiveTracking } from '../live/tracking.js';
import { hasBit } from '../repository/bits.js';
import { PageFile } from '../sys/page-file.js';
import { LivePasses } from './live-source.js';

const MIB_BLOCKS = 1_048_576 / BLOCK_BYTES;
/** And half a block. */
const SIZE_BYTES = 256 * 1_048_576 - 2048;
const LAST_BLOCK = Math.floor(SIZE_BYTES / BLOCK_BYTES);
const TOKEN: ContinuityToken = {
  bootId: 'boot',
  device: 'device',
  sizeBytes: SIZE_BYTES,
  mapId: 'map',
  user: 'user',
  generation: 0,
  mark: 'mark',
};

const cleanups: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const action of cleanups.splice(0).reverse()) await action();
});

/** Of an attempt: what the pass before it takes, what is taken ahead of the freeze, during it, and before the thaw. */
type Take = number | { first: number; count: number; value: number };

const disk = { path: '' };

/** Before a take, so many of the last blocks were written; or these, with this value. 0 when there is nothing more. */
function trackingOf(takes: readonly Take[], doubt?: string): LiveTracking & { taken: number } {
  const blockCount = Math.ceil(SIZE_BYTES / BLOCK_BYTES);
  const tracking = {
    sizeBytes: SIZE_BYTES,
    blockCount,
    token: TOKEN,
    next: TOKEN,
    taken: 0,
    take: (into: BlockBitmap): number => {
      const take = takes[tracking.taken++] ?? 0;
      const { first, count } = typeof take === 'number' ? { first: blockCount - take, count: take } : take;
      if (typeof take !== 'number') writeBlocks(take);
      let added = 0;
      for (let block = first; block < first + count; block++) {
        if (hasBit(into.bytes, block)) continue;
        into.bytes[Math.floor(block / 8)] = (into.bytes[Math.floor(block / 8)] ?? 0) | (1 << (block % 8));
        added++;
      }
      return added;
    },
    overNotes: () => new Set<string>(),
    doubt: () => doubt,
    commit: () => TOKEN,
    abandon: () => undefined,
    close: () => undefined,
  };
  return tracking;
}

function writeBlocks({ first, count, value }: { first: number; count: number; value: number }): void {
  const fd = openSync(disk.path, 'r+');
  for (let block = first; block < first + count; block++)
    writeSync(fd, Buffer.alloc(BLOCK_BYTES, value), 0, BLOCK_BYTES, block * BLOCK_BYTES);
  fsyncSync(fd);
  closeSync(fd);
}

async function passesOf(
  tracking: LiveTracking,
  frozen: () => void = () => undefined,
  requireFrozen: () => void = () => undefined,
): Promise<LivePasses> {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-test-'));
  const path = join(folder, 'disk');
  closeSync(openSync(path, 'w'));
  truncateSync(path, SIZE_BYTES);
  disk.path = path;
  const fd = openSync(path, 'r+');
  writeSync(fd, Buffer.alloc(BLOCK_BYTES, 7), 0, BLOCK_BYTES, SIZE_BYTES - BLOCK_BYTES);
  closeSync(fd);
  const file = PageFile.open(path, 'read');
  const options = { timeoutMs: 5_000, hookTimeoutMs: 5_000, environment: {} };
  const freezer = await Freezer.start([], options);
  const standstill = aloneWith(freezer);
  const own = { path, file, sizeBytes: SIZE_BYTES, used: undefined };
  const passes = new LivePasses({ ...own, tracking, standstill, requireFrozen, onFrozen: frozen });
  cleanups.push(async () => {
    passes.close();
    await freezer.close();
    file.close();
    rmSync(folder, { recursive: true });
  });
  return passes;
}

/** How many blocks each pass gives, until there is none. */
async function passed(passes: LivePasses): Promise<number[]> {
  const counts: number[] = [];
  for (let pass = await passes.nextPass(); pass !== undefined; pass = await passes.nextPass()) {
    let count = 0;
    for (let block = 0; block < SIZE_BYTES / BLOCK_BYTES; block++) if (hasBit(pass.blocks, block)) count++;
    counts.push(count);
  }
  return counts;
}

describe('the passes of a live backup', () => {
  it('go on while they shrink to less than half, and end with what came during the freeze', async () => {
    let isFrozen = false;
    const tracking = trackingOf([
      100 * MIB_BLOCKS,
      40 * MIB_BLOCKS,
      10 * MIB_BLOCKS,
      7 * MIB_BLOCKS,
      0,
      0,
      8 * MIB_BLOCKS,
    ]);
    const passes = await passesOf(tracking, () => {
      isFrozen = true;
    });
    assert.deepEqual(
      await passed(passes),
      [100, 40, 10, 8].map((mib) => mib * MIB_BLOCKS),
    );
    assert.deepEqual([passes.count, passes.restBytes, isFrozen], [5, 8 * 1_048_576, true]);
  });

  it('end at once on a disk that nobody writes to', async () => {
    assert.deepEqual(await passed(await passesOf(trackingOf([]))), [0]);
  });

  it('have the last blocks as they were during the freeze, the half one at the end too', async () => {
    const passes = await passesOf(trackingOf([0, 2]));
    const pass = await passes.nextPass();
    const bytes = Buffer.alloc(3 * BLOCK_BYTES, 1);
    const lengthBytes = 2.5 * BLOCK_BYTES;
    assert.equal(pass?.file.pread(bytes, SIZE_BYTES - lengthBytes), lengthBytes);
    // The first of the three was not read.
    const expected = Buffer.alloc(lengthBytes).fill(7, lengthBytes - BLOCK_BYTES);
    assert.ok(bytes.subarray(0, lengthBytes).equals(expected));
  });

  it('read ahead of the freeze, so that during it only what was written since is read', async () => {
    const takes: Take[] = [
      { first: 10, count: 400, value: 1 },
      { first: 10, count: 1, value: 2 },
      { first: 20, count: 150, value: 3 },
      { first: 30, count: 100, value: 4 },
      { first: 40, count: 1, value: 5 },
    ];
    const passes = await passesOf(trackingOf(takes));
    const pass = await passes.nextPass();
    const at = (block: number): number => {
      const bytes = Buffer.alloc(BLOCK_BYTES);
      pass?.file.pread(bytes, block * BLOCK_BYTES);
      assert.ok(bytes.equals(Buffer.alloc(BLOCK_BYTES, bytes[0])), `block ${block} is of one write`);
      return bytes[0] ?? -1;
    };
    assert.deepEqual([10, 11, 20, 30, 40, 41, 169, 170, 409].map(at), [2, 1, 3, 4, 5, 4, 3, 1, 1]);
    assert.equal(passes.restBytes, BLOCK_BYTES);
  });

  it('read everything during the freeze where there is no room for what was read ahead and its change', async () => {
    const rest = 63 * MIB_BLOCKS;
    const takes: Take[] = [rest, rest, 0, 0, { first: LAST_BLOCK - 2 * MIB_BLOCKS, count: 2 * MIB_BLOCKS, value: 9 }];
    const passes = await passesOf(trackingOf(takes));
    await passes.nextPass();
    const pass = await passes.nextPass();
    const bytes = Buffer.alloc(BLOCK_BYTES);
    pass?.file.pread(bytes, (LAST_BLOCK - MIB_BLOCKS) * BLOCK_BYTES);
    assert.deepEqual([bytes[0], passes.restBytes], [9, 63 * 1_048_576]);
  });

  it('fail when what is left does not shrink', async () => {
    const passes = await passesOf(trackingOf(Array.from({ length: 50 }, () => 65 * MIB_BLOCKS)));
    await assert.rejects(passed(passes), { code: 'EBUSY', message: /written faster than it can be read: 65 MiB/ });
    assert.ok(passes.count < 10, `${passes.count} passes`);
  });

  it('go on after a freeze that found too much, and give up after the third', async () => {
    const tooMuch = 70 * MIB_BLOCKS;
    const once = await passesOf(trackingOf([1, tooMuch, 1, 1]));
    assert.deepEqual(await passed(once), [tooMuch, 1]);
    const passes = await passesOf(trackingOf(Array.from({ length: 50 }, (_, i) => (i % 3 === 1 ? tooMuch : 1))));
    await assert.rejects(passed(passes), { code: 'EBUSY', message: /more than 64 MiB to be written each time/ });
  });

  it('read again what was written while it was frozen, and give up after the third time', async () => {
    const once = await passesOf(trackingOf([1, 2, 3, 1, 1, 0]));
    assert.deepEqual(await passed(once), [3, 1]);
    const passes = await passesOf(trackingOf(Array.from({ length: 50 }, () => 1)));
    await assert.rejects(passed(passes), { code: 'EBUSY', message: /was written while its file systems were frozen/ });
  });

  it('fail when the map cannot be believed', async () => {
    const passes = await passesOf(trackingOf([], 'the test says so'));
    await assert.rejects(passed(passes), { code: 'EIO', message: /\(the test says so\): no version was made/ });
  });
});
