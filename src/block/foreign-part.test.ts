/** Parts of a file system on other devices. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { foreignPart } from './foreign-part.js';
import { HEAD_BYTES } from './signature.js';

function headWith(at: number, bytes: Buffer): Buffer {
  const head = Buffer.alloc(HEAD_BYTES);
  bytes.copy(head, at);
  return head;
}

/** The head of what mkfs makes; undefined without mkfs. */
function made(t: { after: (action: () => void) => void }, ...args: readonly string[]): Buffer | undefined {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-part-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const path = join(folder, 'image');
  writeFileSync(path, '');
  truncateSync(path, 16 * 1_048_576);
  try {
    execFileSync('mkfs.ext4', ['-q', ...args, path], {
      stdio: 'ignore',
      env: { ...process.env, PATH: `${process.env['PATH']}:/sbin:/usr/sbin` },
    });
  } catch {
    return undefined;
  }
  return readFileSync(path).subarray(0, HEAD_BYTES);
}

describe('a part of a file system elsewhere', () => {
  it('is none where ext4 has its journal in itself, or has none', (t) => {
    for (const args of [[], ['-O', '^has_journal']]) {
      const head = made(t, ...args);
      if (head !== undefined) assert.equal(foreignPart('ext4', head), undefined);
    }
  });

  it('is the journal of an ext4 that has the number of no inode for it', (t) => {
    const head = made(t);
    if (head === undefined) return t.skip('no mkfs.ext4 here');
    head.writeUInt32LE(0, 1024 + 0xe0);
    assert.match(foreignPart('ext4', head) ?? '', /journal on another device/);
    assert.equal(foreignPart('ext2', head), undefined);
  });

  it('is a device that F2FS names', () => {
    assert.equal(foreignPart('f2fs', Buffer.alloc(HEAD_BYTES)), undefined);
    assert.match(foreignPart('f2fs', headWith(3225, Buffer.from('/dev/sdb'))) ?? '', /more than one device/);
  });

  it('is the log of a JFS that does not say that it is inline', () => {
    assert.match(foreignPart('jfs', Buffer.alloc(HEAD_BYTES)) ?? '', /log on another device/);
    assert.equal(foreignPart('jfs', headWith(32_804, Buffer.of(0, 8, 0, 0))), undefined);
  });
});
