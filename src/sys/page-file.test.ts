/** What is told to the kernel about reads to come. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { PageFile } from './page-file.js';

const FILE_BYTES = 1_048_576;
const FROM = 300 * 1024;
const TOLD_BYTES = 8192;
const PATIENCE_MS = 5_000;

test('a range that is told is read ahead, and what is not told is read as it is asked for', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-test-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'file');
  const contents = randomBytes(FILE_BYTES);
  writeFileSync(path, contents);
  const file = PageFile.open(path, 'write');
  t.after(() => file.close());
  const cachedBytes = (): number =>
    Number(execFileSync('fincore', ['-b', '-n', '-o', 'RES', path], { encoding: 'utf8' }));
  file.fsync();
  file.dropCache();
  if (cachedBytes() > 0) return t.skip(`${folder} lies in memory`);
  // Large ones go past the cache.
  file.prefetch(0, 65_536);
  assert.equal(cachedBytes(), 0);
  file.prefetch(FROM, TOLD_BYTES);
  const deadline = performance.now() + PATIENCE_MS;
  while (cachedBytes() < TOLD_BYTES && performance.now() < deadline) await sleep(10);
  assert.equal(cachedBytes(), TOLD_BYTES);
  const read = (offset: number, lengthBytes: number): void => {
    const bytes = Buffer.alloc(lengthBytes);
    assert.equal(file.pread(bytes, offset), lengthBytes);
    assert.ok(bytes.equals(contents.subarray(offset, offset + lengthBytes)));
  };
  read(FROM, TOLD_BYTES);
  assert.equal(cachedBytes(), TOLD_BYTES);
  read(40_960, 4096);
  assert.equal(cachedBytes(), TOLD_BYTES + 4096);
});
