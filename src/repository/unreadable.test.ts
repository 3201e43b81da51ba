/** A repository on a disk with sectors that cannot be read: what lies on them is lost, and nothing else is. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { BLOCK_SIZE_BYTES, blockCount } from '../cow/geometry.js';
import { CHECKSUM_BYTES } from './checksum.js';
import { CHECKSUMS, deltaName, IMAGE, MANIFEST } from './layout.js';
import { pruneVersions } from './prune.js';
import { Repository, versionRecord } from './repository.js';
import { type RestoreResult, restoreVersion } from './restore.js';
import { runInThisThread } from './runner.js';
import { backUp, differing, IDENTITY, SIZE_BYTES, updateOptions } from './scenario.js';
import { memorySource, SimulatedDisk, SimulatedFiles } from './testing.js';
import { createVersion, type UpdateResult } from './update.js';
import { type VerifyReport, verifyRepository, verifyVersion } from './verify.js';

function blockOf(bytes: Buffer, block: number): Buffer {
  return bytes.subarray(block * BLOCK_SIZE_BYTES, (block + 1) * BLOCK_SIZE_BYTES);
}

/** Two versions without zeros that differ in a few blocks. */
async function twoVersions(): Promise<{ disk: SimulatedDisk; old: Buffer; now: Buffer; block: number }> {
  const block = 5;
  const old = Buffer.alloc(SIZE_BYTES);
  for (let each = 0; each < blockCount(SIZE_BYTES); each++) blockOf(old, each).fill(1 + (each % 200));
  const now = Buffer.from(old);
  for (const each of [2, block, 9]) blockOf(now, each).fill(0xe0 + each);
  const disk = new SimulatedDisk();
  for (const bytes of [old, now]) await backUp(new SimulatedFiles(disk), bytes);
  return { disk, old, now, block };
}

async function backUpListed(files: SimulatedFiles, bytes: Buffer, candidates?: Uint8Array): Promise<UpdateResult> {
  const repository = await Repository.open(files, 'write');
  try {
    const source = { sizeBytes: bytes.byteLength, identity: IDENTITY, file: memorySource(bytes), candidates };
    return await createVersion(repository, source, updateOptions());
  } finally {
    repository.close();
  }
}

async function reading<T>(files: SimulatedFiles, use: (repository: Repository) => Promise<T>): Promise<T> {
  const repository = await Repository.open(files, 'read');
  try {
    return await use(repository);
  } finally {
    repository.close();
  }
}

function verify(files: SimulatedFiles, number?: number): Promise<VerifyReport> {
  return reading(files, (repository) => {
    if (number === undefined) return verifyRepository(repository, { run: runInThisThread });
    const record = versionRecord(files, repository.requireManifest(), number);
    return verifyVersion(repository, record, { run: runInThisThread });
  });
}

async function restored(files: SimulatedFiles, number: number): Promise<{ result: RestoreResult; bytes: Buffer }> {
  const target = new SimulatedFiles(files.disk).open(`target-${number}`, 'create');
  const result = await reading(files, (repository) => {
    const record = versionRecord(files, repository.requireManifest(), number);
    const place = { open: () => target, isFile: true, sizeBytes: target.sizeBytes() };
    return restoreVersion(repository, record, place, { all: false, dryRun: false, run: runInThisThread });
  });
  const bytes = Buffer.alloc(target.sizeBytes());
  target.pread(bytes, 0);
  return { result, bytes };
}

describe('a repository whose checksums were lost', () => {
  for (const how of ['in the middle', 'at the end'] as const)
    it(`does not take what is in the image for zeros: lost ${how}, they are damage of the older versions`, async () => {
      const { disk, now } = await twoVersions();
      const files = new SimulatedFiles(disk);
      const checksums = files.open(CHECKSUMS, 'write');
      const [from, count] = how === 'in the middle' ? [12, 3] : [blockCount(SIZE_BYTES) - 3, 3];
      const lost = Array.from({ length: count }, (_, at) => from + at);
      if (how === 'in the middle') checksums.pwrite(Buffer.alloc(count * CHECKSUM_BYTES), from * CHECKSUM_BYTES);
      else checksums.truncate(from * CHECKSUM_BYTES);
      checksums.close();
      // Those that are overwritten, and those that are not: both are lost for the versions before.
      const next = Buffer.from(now);
      blockOf(next, from).fill(0x31);
      if (how === 'in the middle') blockOf(next, from + 1).fill(0);
      // A list of what changed does not name the others.
      const candidates = how === 'at the end' ? differing(now, next) : undefined;
      const { damagedBlocks } = await backUpListed(files, next, candidates);
      assert.ok(damagedBlocks.includes(from), `${damagedBlocks}`);
      const report = await verify(files);
      assert.deepEqual(report.whole, [3]);
      const { result } = await restored(files, 2);
      for (const { offset } of result.damaged) assert.ok(lost.includes(offset / BLOCK_SIZE_BYTES), `${offset}`);
      assert.ok(result.damaged.some(({ offset }) => offset === from * BLOCK_SIZE_BYTES));
      assert.ok((await restored(files, 3)).bytes.equals(next));
    });
});

describe('a repository with a sector that cannot be read', () => {
  it('restores everything but that block, and verify names it and the versions that are whole', async () => {
    const { disk, old, now, block } = await twoVersions();
    disk.spoil(IMAGE, block);
    const files = new SimulatedFiles(disk);
    const report = await verify(files);
    assert.deepEqual(report.whole, [1]);
    assert.deepEqual(
      report.damage.map(({ file, offset, lengthBytes, versions }) => ({ file, offset, lengthBytes, versions })),
      [{ file: IMAGE, offset: block * BLOCK_SIZE_BYTES, lengthBytes: BLOCK_SIZE_BYTES, versions: [2] }],
    );
    assert.deepEqual((await verify(files, 2)).whole, []);
    const { result, bytes } = await restored(files, 2);
    assert.deepEqual(
      result.damaged.map(({ offset }) => offset),
      [block * BLOCK_SIZE_BYTES],
    );
    const expected = Buffer.from(now);
    blockOf(expected, block).fill(0);
    assert.ok(bytes.equals(expected), 'all the rest is there');
    assert.ok((await restored(files, 1)).bytes.equals(old));
  });

  it('makes the next version, whole, and the older one keeps its damage', async () => {
    const { disk, old, now, block } = await twoVersions();
    disk.spoil(IMAGE, block);
    const files = new SimulatedFiles(disk);
    const next = Buffer.from(now);
    blockOf(next, block).fill(0x77);
    const { damagedBlocks, version } = await backUp(files, next);
    assert.deepEqual([damagedBlocks, version.number], [[block], 3]);
    const report = await verify(files);
    assert.deepEqual([report.whole, report.damage.length], [[1, 3], 1]);
    assert.ok((await restored(files, 3)).bytes.equals(next));
    assert.ok((await restored(files, 1)).bytes.equals(old));
  });

  it('is damage of the history where that cannot be read, and is not taken for contents when versions are dropped', async () => {
    const { disk, now, block } = await twoVersions();
    const files = new SimulatedFiles(disk);
    const next = Buffer.from(now);
    blockOf(next, 20).fill(0x99);
    await backUp(files, next);
    assert.deepEqual((await verify(files)).damage, []);
    // The place of the block in the delta: the only one where the version becomes damaged at that block.
    for (let page = 0; ; page++) {
      disk.spoil(deltaName(1), page);
      const { damage } = await verify(files);
      const isThere = damage.length === 1 && damage[0]?.offset === block * BLOCK_SIZE_BYTES;
      // Structure that cannot be read makes the version unreadable, and is said, too.
      assert.ok(isThere || damage.every(({ versions }) => versions.includes(1)), `page ${page}`);
      if (isThere) break;
      assert.ok(page < 64, 'the block is in the history');
    }
    const repository = await Repository.open(files, 'write');
    await pruneVersions(repository, [1, 3]);
    repository.close();
    disk.unreadable.clear();
    const report = await verify(files);
    assert.deepEqual([report.whole, report.damage.map(({ offset }) => offset)], [[3], [block * BLOCK_SIZE_BYTES]]);
  });

  it('is served by the copy of the manifest', async () => {
    const { disk, old } = await twoVersions();
    disk.spoil(MANIFEST, 0);
    const files = new SimulatedFiles(disk);
    const { whole, damage } = await verify(files);
    assert.deepEqual([whole, damage.map(({ file }) => file)], [[1, 2], [MANIFEST]]);
    assert.ok((await restored(files, 1)).bytes.equals(old));
  });
});
