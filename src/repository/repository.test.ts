/** What a repository is worth when disks fail, fill, rot, or somebody else writes to its files. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { CowFormatError } from '../cow/errors.js';
import { readCowFile } from '../cow/file.js';
import { BLOCK_SIZE_BYTES, blockCount } from '../cow/geometry.js';
import { changesBetween } from './changes.js';
import { openDelta } from './delta.js';
import { IMAGE, MANIFEST, MANIFEST_COPY, REGION_BYTES } from './layout.js';
import { decodeManifest, encodeManifest } from './manifest.js';
import { pruneVersions } from './prune.js';
import { Repository, versionRecord } from './repository.js';
import { keptVersions } from './retention.js';
import { runInThisThread } from './runner.js';
import { backUp, changed, diskWith, expectOneOf, IDENTITY, SIZE_BYTES, updateOptions } from './scenario.js';
import { examine, needsRecovery } from './state.js';
import { memorySource, randomFrom, SimulatedDisk, SimulatedFiles } from './testing.js';
import { createVersion } from './update.js';
import { type VerifyReport, verifyRepository, verifyVersion } from './verify.js';

const SEED = Number(process.env['COWBIRD_SEED'] ?? Math.floor(Date.now() / 1000) % 1_000_000);

function readWhole(files: SimulatedFiles, name: string): Buffer {
  const bytes = Buffer.alloc(files.witness(name)?.sizeBytes ?? 0);
  files.open(name, 'read').pread(bytes, 0);
  return bytes;
}

async function verify(files: SimulatedFiles): Promise<VerifyReport> {
  const repository = await Repository.open(files, 'read');
  try {
    return await verifyRepository(repository, { run: runInThisThread });
  } finally {
    repository.close();
  }
}

describe(`a repository (COWBIRD_SEED=${SEED})`, () => {
  it('keeps history in COW files that the reader of COW files reads', async () => {
    const { disk, versions } = await diskWith(2, SEED);
    const file = new SimulatedFiles(disk).open('history/1.cow', 'read');
    const [old, now] = [versions.get(1), versions.get(2)];
    assert.ok(old !== undefined && now !== undefined);
    const cow = readCowFile(
      { lengthBytes: file.sizeBytes(), read: (bytes, offset) => file.pread(bytes, offset) },
      SIZE_BYTES,
    );
    assert.equal(cow.header.sequenceId, 1);
    let seen = 0;
    for (const { firstBlock, blockCount: count } of cow.changedRuns()) seen += firstBlock >= 0 ? count : 0;
    for (let block = 0; block < blockCount(SIZE_BYTES); block++) {
      const at = block * BLOCK_SIZE_BYTES;
      const end = Math.min(at + BLOCK_SIZE_BYTES, SIZE_BYTES);
      const saved: Uint8Array = cow.readSaved(block) ?? now.subarray(at, end);
      assert.deepEqual(saved.subarray(0, end - at), old.subarray(at, end), `block ${block}`);
      if (old.compare(now, at, end, at, end) !== 0) seen--;
    }
    assert.equal(seen, 0, 'a delta has the blocks that differ, and no other');
  });

  it('is whole after an I/O error at any effect of a backup', async () => {
    const { disk: start, versions } = await diskWith(2, SEED);
    const next = changed(versions.get(2) ?? Buffer.alloc(0), randomFrom(SEED + 3), 8);
    const both = [versions, new Map([...versions, [3, next]])];
    const outcomes = new Set<boolean>();
    for (let failAt = 1; ; failAt++) {
      const disk = start.copy();
      disk.failAt = failAt;
      const files = new SimulatedFiles(disk);
      const failed = await backUp(files, next).then(
        ({ afterwards }) => assert.ok(disk.effects < failAt || afterwards !== undefined, 'the failure is told'),
        (error: unknown) => error,
      );
      if (disk.effects < failAt) break;
      // What fails behind the commit takes nothing back: then there is a version, and a word of the failure.
      const isMade = failed === undefined;
      const found = await expectOneOf(files, both, `failure at effect ${failAt}`);
      assert.equal(found.has(3), isMade, `effect ${failAt}: there is no version after a failure`);
      outcomes.add(isMade);
      disk.reboot(randomFrom(failAt));
      await expectOneOf(files, both, `failure at effect ${failAt}, and a power cut`);
    }
    assert.equal(outcomes.size, 2, 'some failures came before the commit, some behind it');
  });

  it('finds a flipped bit anywhere, and names the versions that are still whole', async () => {
    const { disk: start, versions } = await diskWith(3, SEED);
    const random = randomFrom(SEED + 11);
    for (const name of ['image', 'checksums', 'history/1.cow', 'history/2.cow']) {
      for (let i = 0; i < 40; i++) {
        const disk = start.copy();
        const contents = disk.inodes.get(disk.names.get(name) ?? 0)?.current;
        const pages = [...(contents?.pages.keys() ?? [])];
        const page = pages[Math.floor(random() * pages.length)] ?? 0;
        const size = contents?.sizeBytes ?? 0;
        const offset = Math.min(page * BLOCK_SIZE_BYTES + Math.floor(random() * BLOCK_SIZE_BYTES), size - 1);
        disk.flip(name, offset, Math.floor(random() * 8));
        const report = await verify(new SimulatedFiles(disk));
        const what = `${name} at ${offset}`;
        assert.ok(report.damage.length > 0, `${what} is found`);
        assert.ok(report.whole.length < 3 || name === 'image', `${what}: some version is damaged`);
        if (name === 'image') assert.equal(report.damage[0]?.offset, offset - (offset % BLOCK_SIZE_BYTES));
        const files = new SimulatedFiles(disk);
        await expectWhole(files, report.whole, versions, what);
      }
    }
  });

  it('finds a flip of any bit of a header or footer of the history, as damage of the file', async () => {
    const { disk } = await diskWith(2, SEED);
    const files = new SimulatedFiles(disk);
    const uuid = Buffer.from(decodeManifest(readWhole(files, MANIFEST)).series, 'hex');
    const lengthBytes = files.witness('history/1.cow')?.sizeBytes ?? 0;
    const places = [0, 512, lengthBytes - 80].flatMap((from) => Array.from({ length: 80 }, (_, at) => from + at));
    for (const offset of places) {
      for (let bit = 0; bit < 8; bit++) {
        disk.flip('history/1.cow', offset, bit);
        assert.throws(
          () => openDelta(files.open('history/1.cow', 'read'), 1, uuid),
          CowFormatError,
          `${offset}.${bit}`,
        );
        disk.flip('history/1.cow', offset, bit);
      }
    }
    openDelta(files.open('history/1.cow', 'read'), 1, uuid);
  });

  it('finds a flip of any bit of the manifest, and goes on with its copy', async () => {
    const { disk, versions } = await diskWith(2, SEED);
    const files = new SimulatedFiles(disk);
    const bytes = readWhole(files, MANIFEST);
    assert.deepEqual(encodeManifest(decodeManifest(bytes)), bytes);
    for (let bit = 0; bit < bytes.byteLength * 8; bit++) {
      const at = Math.floor(bit / 8);
      bytes.writeUInt8(bytes.readUInt8(at) ^ (1 << (bit % 8)), at);
      assert.throws(() => decodeManifest(bytes), /damaged/, `bit ${bit}`);
      bytes.writeUInt8(bytes.readUInt8(at) ^ (1 << (bit % 8)), at);
    }
    for (const name of [MANIFEST, MANIFEST_COPY]) {
      disk.flip(name, 300, 2);
      const report = await verify(files);
      assert.deepEqual([report.damage.map(({ file }) => file), report.whole], [[name], [1, 2]]);
      // Who writes heals it.
      (await Repository.open(files, 'write')).close();
      assert.deepEqual((await verify(files)).damage, []);
    }
    files.unlink(MANIFEST);
    assert.deepEqual((await verify(files)).whole, [...versions.keys()]);
    disk.flip(MANIFEST_COPY, 200, 1);
    await assert.rejects(verify(files), /EUCLEAN|image. is the newest version/);
  });

  it('rolls back to what the copy of the manifest knows, when that is one version old', async () => {
    const { disk, versions } = await diskWith(2, SEED);
    const files = new SimulatedFiles(disk);
    const old = readWhole(files, MANIFEST_COPY);
    await backUp(files, changed(versions.get(2) ?? Buffer.alloc(0), randomFrom(SEED + 2), 9));
    // As if the power had gone after the commit of version 3 and before the copy; and then the manifest rots.
    files.open(MANIFEST_COPY, 'create').pwrite(old, 0);
    disk.flip(MANIFEST, 100, 0);
    (await Repository.open(files, 'write')).close();
    await expectOneOf(files, [versions], 'version 2, as the copy has it');
  });

  it('refuses a manifest that is older than the history', async () => {
    const { disk, versions } = await diskWith(2, SEED);
    const files = new SimulatedFiles(disk);
    const old = readWhole(files, MANIFEST);
    for (const seed of [1, 2]) await backUp(files, changed(versions.get(2) ?? Buffer.alloc(0), randomFrom(seed), 9));
    files.open(MANIFEST, 'create').pwrite(old, 0);
    await assert.rejects(verify(files), /history has a delta of version 3, the manifest ends with 2/);
    assert.ok(files.list('history')?.includes('3.cow'));
  });

  it('notices that somebody wrote to the image, compares it, and heals it', async () => {
    const { disk, versions } = await diskWith(2, SEED);
    const files = new SimulatedFiles(disk);
    const newest = versions.get(2) ?? Buffer.alloc(0);
    files.open(IMAGE, 'write').pwrite(Buffer.from('somebody else'), 8192);
    assert.deepEqual((await verify(files)).whole.includes(2), false);
    const { imageWasForeign, damagedBlocks, version } = await backUp(files, newest);
    assert.deepEqual([imageWasForeign, damagedBlocks, version.number], [true, [2], 3]);
    await expectOneOf(files, [new Map([...versions, [3, newest]])], 'healed');
  });

  for (const moves of [false, true])
    it(`heals what the source could not give because of a bad block when it can again, ${moves ? 'moving' : 'at rest'}`, async () => {
      const { disk, versions } = await diskWith(1, SEED);
      const files = new SimulatedFiles(disk);
      const newest = Buffer.from(versions.get(1) ?? Buffer.alloc(0)).fill(5, 40_960);
      await backUp(files, newest);
      files.open(IMAGE, 'write').pwrite(Buffer.from('somebody else'), 49_152);
      const repository = await Repository.open(files, 'write');
      const nextPass = moves ? async (): Promise<undefined> => undefined : undefined;
      const file = memorySource(newest, new Set([12]));
      const source = { sizeBytes: SIZE_BYTES, identity: IDENTITY, file, nextPass };
      const bad = await createVersion(repository, source, updateOptions({ skipBadBlocks: true }));
      repository.close();
      assert.deepEqual([bad.damagedBlocks, bad.version.skipped], [[12], [{ offset: 49_152, lengthBytes: 4096 }]]);
      const { version } = await backUp(files, newest);
      assert.deepEqual([version.number, version.skipped], [4, []]);
      assert.ok((await verify(files)).whole.includes(4));
      assert.ok(readWhole(files, IMAGE).equals(newest));
    });

  it('is read without being changed where a used map of an older version is left, as in a copy where nothing is deleted', async () => {
    const { disk } = await diskWith(2, SEED);
    const files = new SimulatedFiles(disk);
    files.open('history/1.used', 'create').pwrite(Buffer.alloc(100), 0);
    assert.equal(needsRecovery(examine(files), false), false);
    assert.equal(needsRecovery(examine(files), true), true);
    (await Repository.open(files, 'write')).close();
    assert.ok(files.list('history')?.includes('1.used') === false);
  });

  it('has nothing of what somebody wrote behind the end of the image, also when the source grows over it', async () => {
    const { disk, versions } = await diskWith(1, SEED);
    const files = new SimulatedFiles(disk);
    const end = blockCount(SIZE_BYTES) * BLOCK_SIZE_BYTES;
    files.open(IMAGE, 'write').pwrite(Buffer.alloc(3 * BLOCK_SIZE_BYTES, 9), end);
    const grown = Buffer.alloc(end + 8 * BLOCK_SIZE_BYTES);
    versions.get(1)?.copy(grown);
    await backUp(files, grown);
    assert.ok(readWhole(files, IMAGE).equals(grown));
    await expectOneOf(files, [new Map([...versions, [2, grown]])], 'grown');
  });

  it('tells that an old version is damaged when what somebody wrote cannot be healed', async () => {
    const { disk, versions } = await diskWith(1, SEED);
    const files = new SimulatedFiles(disk);
    const next = Buffer.from(versions.get(1) ?? Buffer.alloc(0));
    next.fill(77, 8192, 12_288);
    files.open(IMAGE, 'write').pwrite(Buffer.from('somebody else'), 8192);
    const { damagedBlocks } = await backUp(files, next);
    assert.deepEqual(damagedBlocks, [2]);
    const report = await verify(files);
    assert.deepEqual(report.whole, [2]);
    assert.deepEqual(
      report.damage.map(({ offset, versions: bad }) => [offset, bad]),
      [[8192, [1]]],
    );
  });

  it('keeps what is before a version that is dropped, also where that one had grown far beyond', async () => {
    const disk = new SimulatedDisk();
    const files = new SimulatedFiles(disk);
    const random = randomFrom(SEED);
    // More than a page of the index more: 2 MiB, and what is there lies behind the older one's index.
    const first = changed(Buffer.alloc(REGION_BYTES), random, 60);
    const second = changed(first, random, 200, 24 * REGION_BYTES);
    const third = changed(second, random, 400);
    for (const bytes of [first, second, third]) await backUp(files, bytes);
    const repository = await Repository.open(files, 'write');
    await pruneVersions(repository, [1, 3]);
    repository.close();
    await expectOneOf(
      files,
      [
        new Map([
          [1, first],
          [3, third],
        ]),
      ],
      'versions 1 and 3',
    );
  });

  it('refuses a smaller source, and a directory that is no repository', async () => {
    const { disk, versions } = await diskWith(1, SEED);
    const files = new SimulatedFiles(disk);
    await assert.rejects(backUp(files, Buffer.alloc(SIZE_BYTES - 4096)), /smaller source needs another repository/);
    await expectOneOf(files, [versions], 'refused');
    const other = new SimulatedFiles(new SimulatedDisk());
    other.open('thesis.txt', 'create');
    await assert.rejects(backUp(other, Buffer.alloc(4096)), /no repository, and not empty \(it has `thesis.txt`\)/);
    assert.deepEqual(other.list(''), ['thesis.txt']);
  });
});

describe('the changes between two versions', () => {
  it('are the blocks that differ, and what one has beyond the end of the other', async () => {
    const { disk, versions } = await diskWith(3, SEED);
    const files = new SimulatedFiles(disk);
    const last = changed(versions.get(3) ?? Buffer.alloc(0), randomFrom(SEED), 5, SIZE_BYTES + 100_000);
    await backUp(files, last);
    const contents = new Map([...versions, [4, last]]);
    const repository = await Repository.open(files, 'read');
    for (const [a, b] of [
      [1, 2],
      [1, 3],
      [3, 1],
      [2, 4],
      [4, 4],
    ] as const) {
      const manifest = repository.requireManifest();
      const ranges = changesBetween(repository, versionRecord(files, manifest, a), versionRecord(files, manifest, b));
      const marked = new Set<number>();
      for (const { offset, lengthBytes } of ranges)
        for (let at = offset; at < offset + lengthBytes; at += BLOCK_SIZE_BYTES) marked.add(at / BLOCK_SIZE_BYTES);
      const [left = Buffer.alloc(0), right = Buffer.alloc(0)] = [contents.get(a), contents.get(b)];
      for (let block = 0; block < blockCount(Math.max(left.byteLength, right.byteLength)); block++) {
        const at = block * BLOCK_SIZE_BYTES;
        const isBeyond = at >= Math.min(left.byteLength, right.byteLength);
        const [x, y] = [left, right].map((bytes) => bytes.subarray(at, at + BLOCK_SIZE_BYTES));
        const differs = isBeyond || x === undefined || y === undefined || !x.equals(y);
        // A block that the end of the older one cuts may be equal but for its length.
        if (x?.byteLength === y?.byteLength || isBeyond)
          assert.equal(marked.has(block), differs, `${a}..${b} block ${block}`);
      }
    }
    repository.close();
  });
});

describe('the rules of retention', () => {
  const versions = Array.from({ length: 40 }, (_, at) => ({
    number: at + 1,
    // Two a day from 1 January 2026, a Thursday, at 6 and 18 o'clock local time.
    time: new Date(2026, 0, 1 + Math.floor(at / 2), at % 2 === 0 ? 6 : 18).toISOString(),
  }));

  it('keep the last version of each day, week and month, and the newest whatever they say', () => {
    assert.deepEqual(keptVersions(versions, { last: 3 }), [38, 39, 40]);
    assert.deepEqual(keptVersions(versions, {}), [40]);
    assert.deepEqual(keptVersions(versions, { daily: 3 }), [36, 38, 40]);
    // Sundays: 4, 11 and 18 January are days 4, 11, 18; the last version is of Tuesday 20.
    assert.deepEqual(keptVersions(versions, { weekly: 3 }), [22, 36, 40]);
    assert.deepEqual(keptVersions(versions, { monthly: 1, daily: 1 }), [40]);
    assert.deepEqual(keptVersions(versions, { last: 1, daily: 2, weekly: 2 }), [36, 38, 40]);
  });

  it('keep the oldest version too where there are fewer days, weeks or months than were asked for', () => {
    assert.deepEqual(keptVersions(versions, { monthly: 2, daily: 1 }), [1, 40]);
    assert.deepEqual(keptVersions(versions, { weekly: 5 }), [1, 8, 22, 36, 40]);
    assert.deepEqual(keptVersions(versions, { last: 60 }).length, 40);
    assert.deepEqual(keptVersions([], { daily: 3 }), []);
  });
});

async function expectWhole(
  files: SimulatedFiles,
  whole: readonly number[],
  versions: ReadonlyMap<number, Buffer>,
  what: string,
): Promise<void> {
  const repository = await Repository.open(files, 'read');
  try {
    const manifest = repository.requireManifest();
    for (const record of manifest.versions) {
      const alone = await verifyVersion(repository, record, { run: runInThisThread });
      assert.equal(
        alone.whole.includes(record.number),
        whole.includes(record.number),
        `${what}: version ${record.number} alone`,
      );
      assert.ok(versions.has(record.number));
    }
  } finally {
    repository.close();
  }
}
