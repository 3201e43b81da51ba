/** What a restore promises of its target: what it says is written can be read from it. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import type { WritableFile } from './files.js';
import { Repository, versionRecord } from './repository.js';
import { type RestoreResult, restoreVersion } from './restore.js';
import { runInThisThread } from './runner.js';
import { diskWith } from './scenario.js';
import { SimulatedFiles } from './testing.js';

const SEED = Number(process.env['COWBIRD_SEED'] ?? Math.floor(Date.now() / 1000) % 1_000_000);
/** A medium that takes every write, and loses one bit of one block. */
function failing(file: WritableFile, block: number): WritableFile {
  const at = block * BLOCK_SIZE_BYTES;
  return {
    handle: undefined,
    sizeBytes: () => file.sizeBytes(),
    nextData: (offset, end) => file.nextData(offset, end),
    pread: (bytes, offset) => {
      const count = file.pread(bytes, offset);
      if (offset <= at && at < offset + count) bytes[at - offset] = (bytes[at - offset] ?? 0) ^ 1;
      return count;
    },
    pwrite: (bytes, offset) => file.pwrite(bytes, offset),
    zero: (offset, lengthBytes) => file.zero(offset, lengthBytes),
    punch: (offset, lengthBytes) => file.punch(offset, lengthBytes),
    truncate: (lengthBytes) => file.truncate(lengthBytes),
    fsync: () => file.fsync(),
    dropCache: () => file.dropCache(),
    close: () => file.close(),
  };
}

async function restore(files: SimulatedFiles, target: WritableFile, number: number): Promise<RestoreResult> {
  const repository = await Repository.open(files, 'read');
  try {
    const record = versionRecord(files, repository.requireManifest(), number);
    const place = { open: () => target, isFile: true, sizeBytes: target.sizeBytes() };
    return await restoreVersion(repository, record, place, { all: false, dryRun: false, run: runInThisThread });
  } finally {
    repository.close();
  }
}

describe(`a restore (COWBIRD_SEED=${SEED})`, () => {
  it('fails where the target does not give back what was written, and names the place', async () => {
    const { disk, versions } = await diskWith(2, SEED);
    const files = new SimulatedFiles(disk);
    const target = files.open('target', 'create');
    const wanted = versions.get(1) ?? Buffer.alloc(0);
    const block = Math.floor(wanted.findIndex((byte) => byte !== 0) / BLOCK_SIZE_BYTES);
    await assert.rejects(restore(files, failing(target, block), 1), {
      code: 'EIO',
      outcome: 'partial',
      message: new RegExp(`does not read back in 1 blocks, the first at ${block * BLOCK_SIZE_BYTES}:`),
    });
    // Run again on a medium that is right by now, it has nothing left to do.
    assert.equal((await restore(files, target, 1)).bytesWritten, 0);
    const found = Buffer.alloc(wanted.byteLength);
    target.pread(found, 0);
    assert.ok(found.equals(wanted));
  });
});
