import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { stablePath } from './stable-path.js';

function disks(t: TestContext, links: Record<string, string>): string {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-disk-'));
  t.after(() => rmSync(folder, { recursive: true }));
  for (const [link, target] of Object.entries(links)) {
    mkdirSync(join(folder, link, '..'), { recursive: true });
    symlinkSync(target, join(folder, link));
  }
  return folder;
}

describe('the name of a disk that stays', () => {
  it('is its partition’s UUID, then its maker’s number, then its model', (t) => {
    const all = {
      'by-id/ata-Model_1': '/dev/null',
      'by-id/wwn-0x5000': '/dev/null',
      'by-id/wwn-0x6000': '/dev/zero',
      'by-partuuid/aaaa-02': '/dev/null',
      'by-partuuid/gone': '/dev/gone',
    };
    assert.match(stablePath('/dev/null', disks(t, all)) ?? '', /by-partuuid\/aaaa-02$/);
    const { 'by-partuuid/aaaa-02': _, ...whole } = all;
    assert.match(stablePath('/dev/null', disks(t, whole)) ?? '', /by-id\/wwn-0x5000$/);
    assert.match(stablePath('/dev/null', disks(t, { 'by-id/ata-Model_1': '/dev/null' })) ?? '', /by-id\/ata-Model_1$/);
  });

  it('is never one of contents, which volume, origin and snapshots share', (t) => {
    const folder = disks(t, { 'by-uuid/1234': '/dev/null', 'by-label/data': '/dev/null' });
    assert.equal(stablePath('/dev/null', folder), undefined);
    assert.equal(stablePath('/dev/null', '/nonexistent'), undefined);
  });

  it('is the one that was given where that is lasting', () => {
    for (const path of [
      '/dev/vg0/data',
      '/dev/mapper/vg0-data',
      '/dev/disk/by-id/x',
      '/dev/disk/by-path/x',
      '/dev/md/0',
    ])
      assert.equal(stablePath(path, '/nonexistent'), path);
  });
});
