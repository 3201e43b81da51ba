import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { fstabAdvice, linesOfVolume, pathsOn } from './fstab.js';

const REQUIRES = 'x-systemd.requires=cowbird-attach-data.service';

/** A folder like /dev/disk in which /dev/null has a UUID and a label. */
function disks(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-fstab-'));
  t.after(() => rmSync(folder, { recursive: true }));
  for (const [kind, name] of [
    ['by-uuid', '1234'],
    ['by-label', 'data'],
  ] as const) {
    mkdirSync(join(folder, kind));
    symlinkSync('/dev/null', join(folder, kind, name));
  }
  return folder;
}

describe('the line for fstab', () => {
  it('is made from that of the origin, by whatever name fstab has it', (t) => {
    for (const source of ['/dev/null', 'UUID=1234', 'LABEL="data"']) {
      const text = `${source}  /srv\text4 noatime 0 2`;
      const fstab = `# ${source} /old ext4 ro 0 0\nproc /proc proc defaults 0 0\n${text}\n`;
      assert.deepEqual(fstabAdvice(fstab, 'data', '/dev/null', disks(t)), {
        line: `/dev/cowbird/data /srv ext4 noatime,${REQUIRES} 0 2`,
        replaces: text,
        isThere: false,
        mountPoints: ['/srv'],
      });
    }
  });

  it('is to be completed where fstab has none for the origin', (t) => {
    const fstab = 'UUID=gone /a ext4 defaults 0 2\n/dev/zero /b ext4 defaults\n/dev/null none swap sw 0 0\nnonsense\n';
    assert.deepEqual(fstabAdvice(fstab, 'data', '/dev/null', disks(t)), {
      line: `/dev/cowbird/data /MOUNT/POINT auto defaults,${REQUIRES} 0 2`,
      replaces: undefined,
      isThere: false,
      mountPoints: [],
    });
  });

  it('is the one that is there', (t) => {
    const line = `/dev/cowbird/data /srv xfs defaults,${REQUIRES}`;
    assert.deepEqual(fstabAdvice(`${line}\n`, 'data', '/dev/null', disks(t)), {
      line,
      replaces: undefined,
      isThere: true,
      mountPoints: ['/srv'],
    });
  });
});

describe('fstab', () => {
  it('has lines of a volume and of its partitions, and of no other whose name begins alike', () => {
    const lines = ['/dev/cowbird/a /a ext4 defaults 0 2', '/dev/cowbird/a-part2 none swap sw 0 0'];
    const others = ['/dev/cowbird/ab /b ext4 defaults', '/dev/cowbird/a-partial /c ext4 defaults', '# /dev/cowbird/a'];
    assert.deepEqual(linesOfVolume([...others, ...lines].join('\n'), 'a'), lines);
  });

  it('says which paths lie on a mount point and on none below it', () => {
    const fstab = ['/', '/var', '/var/lib/my\\040data'].map((point) => `x ${point} ext4 defaults`).join('\n');
    const paths = ['/usr/bin/node', '/var/lib/cowbird', '/var', '/variant', '/var/lib/my data/x'];
    assert.deepEqual(pathsOn(fstab, '/var', paths), ['/var/lib/cowbird', '/var']);
    assert.deepEqual(pathsOn(fstab, '/', paths), ['/usr/bin/node', '/variant']);
    assert.deepEqual(pathsOn(fstab, '/var/lib/my\\040data', paths), ['/var/lib/my data/x']);
    assert.deepEqual(pathsOn('', '/srv', paths), []);
  });
});
