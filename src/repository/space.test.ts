/** A repository on a disk that fills up, or fails, in the middle: what is said, and what is left. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { pruneVersions } from './prune.js';
import { Repository } from './repository.js';
import { backUp, changed, diskWith, expectOneOf, IDENTITY, SIZE_BYTES, updateOptions } from './scenario.js';
import { memorySource, randomFrom, SimulatedDisk, SimulatedFiles } from './testing.js';
import { createVersion } from './update.js';

const SEED = Number(process.env['COWBIRD_SEED'] ?? Math.floor(Date.now() / 1000) % 1_000_000);

describe(`a repository with little room (COWBIRD_SEED=${SEED})`, () => {
  it('keeps the versions that it has when the disk fills up, at any moment', async () => {
    const { disk: start, versions } = await diskWith(2, SEED);
    const next = changed(versions.get(2) ?? Buffer.alloc(0), randomFrom(SEED + 5), 40);
    const used = start.usedPages();
    let refused = 0;
    for (let room = 0; ; room += 3) {
      const disk = start.copy();
      disk.capacityPages = used + room;
      const files = new SimulatedFiles(disk);
      // A file system that promises more than it has.
      files.freeBytesSaid = 1e12;
      try {
        await backUp(files, next);
        break;
      } catch (error) {
        assert.ok(error instanceof Error && 'code' in error && error.code === 'ENOSPC', String(error));
        refused++;
      }
      disk.capacityPages = Number.POSITIVE_INFINITY;
      await expectOneOf(files, [versions, new Map([...versions, [3, next]])], `room for ${room} pages`);
    }
    assert.ok(refused > 5, `${refused} times too full`);
  });

  it('takes an update back on a disk that is full by then, whatever of its contents became zeros', async () => {
    const { disk: start, versions } = await diskWith(2, SEED);
    const next = Buffer.from(versions.get(2) ?? Buffer.alloc(0));
    next.fill(0, 0, Math.floor(next.byteLength / 2));
    const both = [versions, new Map([...versions, [3, next]])];
    let cuts = 0;
    for (let cutAt = 1; ; cutAt += 2) {
      const disk = start.copy();
      disk.cutAt = cutAt;
      const made = await backUp(new SimulatedFiles(disk), next).then(
        () => true,
        () => false,
      );
      if (made) break;
      cuts++;
      disk.reboot(randomFrom(SEED + cutAt));
      // Others have taken all but what a manifest needs.
      disk.capacityPages = disk.usedPages() + 4;
      await expectOneOf(new SimulatedFiles(disk), both, `cut at effect ${cutAt}`);
    }
    assert.ok(cuts > 20, `${cuts} cuts`);
  });

  it('gives the space of what became zeros back when the version counts', async () => {
    const files = new SimulatedFiles(new SimulatedDisk());
    // Not in the last block, of which the file has a part only: its page stays, as it does on a disk.
    await backUp(files, Buffer.alloc(SIZE_BYTES).fill(7, 4096, 300 * 4096));
    await backUp(files, Buffer.alloc(SIZE_BYTES));
    const image = files.open('image', 'read');
    assert.equal(image.nextData(0, SIZE_BYTES), SIZE_BYTES, 'the image is one hole');
    image.close();
  });

  it('says before it writes how much space is missing', async () => {
    const { disk, versions } = await diskWith(1, SEED);
    const files = new SimulatedFiles(disk);
    files.freeBytesSaid = 8192;
    const next = changed(versions.get(1) ?? Buffer.alloc(0), randomFrom(1), 40);
    await assert.rejects(backUp(files, next), /ENOSPC|needs \d+ bytes, 8192 are free: \d+ are missing/);
    assert.equal(disk.effects, 0);
  });

  it('asks for room for what is written over as well where the file system copies on write', async () => {
    const files = new SimulatedFiles(new SimulatedDisk());
    await backUp(files, Buffer.alloc(SIZE_BYTES).fill(7, 0, 200 * 4096));
    files.isCopyOnWriteSaid = true;
    const next = Buffer.alloc(SIZE_BYTES)
      .fill(7, 0, 200 * 4096)
      .fill(3, 0, 100 * 4096);
    const missing = async (free: number): Promise<number> => {
      files.freeBytesSaid = free;
      const error: unknown = await backUp(files, next).then(
        () => undefined,
        (thrown: unknown) => thrown,
      );
      return Number(/needs (\d+) bytes/.exec(String(error))?.[1]);
    };
    const needed = await missing(4096);
    files.isCopyOnWriteSaid = false;
    const elsewhere = await missing(4096);
    assert.equal(needed - elsewhere, 100 * 4096);
    files.isCopyOnWriteSaid = true;
    files.freeBytesSaid = needed;
    await backUp(files, next);
  });

  it('says what is missing when what changes meanwhile has no room aside, and keeps nothing of it', async () => {
    const { disk, versions } = await diskWith(1, SEED);
    const files = new SimulatedFiles(disk);
    const next = changed(versions.get(1) ?? Buffer.alloc(0), randomFrom(2), 40);
    const used = disk.usedPages();
    disk.capacityPages = used + 10;
    const repository = await Repository.open(files, 'write');
    const source = {
      sizeBytes: next.byteLength,
      identity: IDENTITY,
      file: memorySource(next),
      nextPass: async () => undefined,
    };
    await assert.rejects(createVersion(repository, source, updateOptions()), {
      code: 'ENOSPC',
      outcome: 'failed',
      message: /no space left for what changed, with [1-9]\d* bytes .*twice what changed/,
    });
    repository.close();
    assert.equal(disk.usedPages(), used);
    await expectOneOf(files, [versions], 'no room aside');
  });

  it('says which versions are gone when dropping them fails behind the first step', async () => {
    const { disk: start, versions } = await diskWith(5, SEED);
    const seen = new Set<string>();
    for (let failAt = 1; ; failAt++) {
      const disk = start.copy();
      const files = new SimulatedFiles(disk);
      const repository = await Repository.open(files, 'write');
      disk.failAt = disk.effects + failAt;
      const until = disk.failAt;
      // Two steps: 1 is the oldest, 3 lies between others.
      const failure = await pruneVersions(repository, [2, 4, 5]).then(
        () => undefined,
        (error: unknown) => error,
      );
      repository.close();
      if (disk.effects < until) break;
      assert.ok(failure instanceof Error, `effect ${failAt}: the failure is told`);
      const isPartial = 'outcome' in failure && failure.outcome === 'partial';
      seen.add(isPartial ? 'partial' : 'nothing');
      const without = (...gone: number[]): Map<number, Buffer> =>
        new Map([...versions].filter(([number]) => !gone.includes(number)));
      const left = isPartial ? [without(1), without(1, 3)] : [versions, without(1)];
      await expectOneOf(files, left, `failure at effect ${failAt}`);
      if (isPartial) assert.match(failure.message, /^Dropped: 1\. The others/);
    }
    assert.deepEqual(seen, new Set(['nothing', 'partial']));
  });
});
