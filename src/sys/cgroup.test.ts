import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { hierarchiesIn } from './cgroup.js';
import { parseMountInfo } from './mounts.js';

const V1 = '30 20 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory';
const V2 = '31 20 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw';
const CONTAINER = '30 20 0:28 /docker/abc /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory';

function found(groups: string, ...mounts: string[]): string[] {
  return hierarchiesIn(groups, parseMountInfo(mounts.join('\n'), 0)).map(({ version, group }) => `${version} ${group}`);
}

describe('the memory groups of a process', () => {
  it('are found in both versions', () => {
    const groups = '5:pids:/x\n4:cpu,memory:/a/b\n0::/a.slice\n';
    assert.deepEqual(found(groups, V1, V2), ['1 /sys/fs/cgroup/memory/a/b', '2 /sys/fs/cgroup/unified/a.slice']);
  });

  it('are found where a container has a part of the hierarchy mounted', () => {
    assert.deepEqual(found('4:memory:/docker/abc/in\n', CONTAINER), ['1 /sys/fs/cgroup/memory/in']);
    assert.deepEqual(found('4:memory:/docker/abc\n', CONTAINER), ['1 /sys/fs/cgroup/memory']);
  });

  it('are none where the hierarchy is not mounted, or lies outside of what is', () => {
    assert.deepEqual(found('4:memory:/a\n0::/b\n'), []);
    assert.deepEqual(found('4:memory:/elsewhere\n', CONTAINER), []);
  });
});
