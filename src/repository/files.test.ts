/** The contract of a repository's files, kept by the real ones and by the simulated ones. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { allocatePages } from '../sys/page-file.js';
import { DiskFiles } from './disk-files.js';
import type { RepositoryFiles } from './files.js';
import { SimulatedDisk, SimulatedFiles } from './testing.js';

const MIB = 1_048_576;
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'cowbird-files-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const KINDS: ReadonlyArray<readonly [string, () => RepositoryFiles]> = [
  ['on a disk', () => new DiskFiles(folder)],
  ['simulated', () => new SimulatedFiles(new SimulatedDisk())],
];

for (const [kind, make] of KINDS) {
  describe(`files ${kind}`, () => {
    it('read what was written, zeros where nothing was, and less at the end', () => {
      const files = make();
      const file = files.open('image', 'create');
      file.truncate(3 * MIB + 700);
      const written = allocatePages(MIB).fill(7);
      // Past the page cache, through it, and over the border of both.
      file.pwrite(written, MIB);
      file.pwrite(Buffer.from('abc'), 2 * MIB - 1);
      const bytes = allocatePages(2 * MIB);
      assert.equal(file.pread(bytes, MIB), 2 * MIB);
      assert.equal(bytes.subarray(MIB - 2, MIB + 3).toString('latin1'), '\u0007abc\0');
      assert.equal(file.pread(bytes, 3 * MIB), 700);
      assert.equal(file.pread(bytes, 4 * MIB), 0);
      assert.equal(file.sizeBytes(), 3 * MIB + 700);
      file.fsync();
      file.dropCache();
      assert.equal(file.pread(bytes.subarray(0, 3), 2 * MIB - 1), 3);
      file.close();
    });

    it('have holes that are made, found, and read as zeros', () => {
      const file = make().open('image', 'create');
      file.truncate(4 * MIB);
      file.pwrite(Buffer.alloc(8192, 1), 2 * MIB);
      assert.equal(file.nextData(0, 4 * MIB), 2 * MIB);
      assert.equal(file.nextData(3 * MIB, 4 * MIB), 4 * MIB);
      assert.equal(file.nextData(0, MIB), MIB);
      file.punch(2 * MIB, 4096);
      assert.equal(file.nextData(0, 4 * MIB), 2 * MIB + 4096);
      const bytes = Buffer.alloc(8192);
      file.pread(bytes, 2 * MIB);
      assert.deepEqual([bytes.readUInt8(4095), bytes.readUInt8(4096)], [0, 1]);
      file.truncate(2 * MIB + 5000);
      file.truncate(4 * MIB);
      file.pread(bytes, 2 * MIB);
      assert.deepEqual([bytes.readUInt8(4999), bytes.readUInt8(5000)], [1, 0]);
      file.close();
    });

    it('have names that are listed, given to other files, and removed; and a witness of each change', () => {
      const files = make();
      files.makeFolder('history');
      files.open('history/1.cow', 'create').close();
      const file = files.open('a', 'create');
      const before = files.witness('a');
      assert.equal(files.witness('b'), undefined);
      file.pwrite(Buffer.from('x'), 0);
      file.close();
      assert.notDeepEqual(files.witness('a'), before);
      files.rename('a', 'b');
      files.fsyncFolder('');
      assert.deepEqual([files.list(''), files.list('history')], [['b', 'history'], ['1.cow']]);
      files.unlink('history/1.cow');
      files.fsyncFolder('history');
      assert.equal(files.witness('history/1.cow'), undefined);
      assert.throws(() => files.open('a', 'read'), { code: 'ENOENT' });
      assert.throws(() => files.rename('a', 'b'), { code: 'ENOENT' });
      assert.throws(() => files.unlink('a'), { code: 'ENOENT' });
    });
  });
}

describe('the lock of a repository on a disk', () => {
  it('is shared by readers, kept from writers, and names who has it', () => {
    const [files, others] = [new DiskFiles(folder), new DiskFiles(folder)];
    const [first, second] = [files.tryLock(false), others.tryLock(false)];
    assert.ok(first !== undefined && second !== undefined);
    assert.equal(others.tryLock(true), undefined);
    assert.match(others.lockHolder(), new RegExp(`^process ${process.pid} \\(.*, started \\d{4}-\\d\\d-\\d\\d `));
    first.release();
    assert.equal(files.tryLock(true), undefined);
    second.release();
    const alone = files.tryLock(true);
    assert.ok(alone !== undefined);
    assert.equal(others.tryLock(false), undefined);
    alone.release();
  });
});
