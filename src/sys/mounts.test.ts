/** Whether the path of a mount leads to it. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isReachable, type MountEntry, parseMountInfo } from './mounts.js';

/** `id parent device mountPoint`. */
function mounts(...lines: readonly string[]): MountEntry[] {
  const text = lines.map((line) => {
    const [id, parent, device, at] = line.split(' ');
    return `${id} ${parent} ${device} / ${at} rw,relatime shared:1 - ext4 /dev/sda1 rw`;
  });
  return parseMountInfo(text.join('\n'), 0);
}

function reached(entries: readonly MountEntry[]): number[] {
  return entries.filter((entry) => isReachable(entry, entries)).map(({ id }) => id);
}

describe('a mount', () => {
  it('is reached by its path where nothing is mounted over it', () => {
    assert.deepEqual(
      reached(mounts('20 1 8:1 /', '21 20 8:2 /srv', '22 21 8:3 /srv/a', '23 20 8:4 /srva')),
      [20, 21, 22, 23],
    );
  });

  it('is not where another one is mounted over it, or over a directory above it', () => {
    assert.deepEqual(reached(mounts('20 1 8:1 /', '21 20 8:2 /srv', '22 21 8:3 /srv')), [20, 22]);
    assert.deepEqual(reached(mounts('20 1 8:1 /', '21 20 8:2 /srv/a', '22 20 8:3 /srv')), [20, 22]);
    assert.deepEqual(
      reached(mounts('20 1 8:1 /', '21 20 8:2 /srv', '22 21 8:3 /srv', '23 22 8:4 /srv/a')),
      [20, 22, 23],
    );
  });

  it('is the root of the processes there, whatever is mounted over that', () => {
    assert.deepEqual(reached(mounts('20 20 8:1 /', '21 20 8:2 /', '22 20 8:3 /a')), [20, 22]);
  });

  it('of which the root is not told is taken for one that is reached', () => {
    assert.deepEqual(reached(mounts('21 20 8:2 /srv')), [21]);
  });
});
