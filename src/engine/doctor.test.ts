/** What `doctor` and `attach` say of a machine. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { attachWarnings, checkMemoryLimit, examineMachine, hasResend } from './doctor.js';

describe('the examination of a machine', () => {
  it('knows that requests are sent again from Linux 6.9 on, whatever follows the version', () => {
    for (const release of ['6.9.0', '6.10.3-arch1-1', '6.18.0', '7.0.0-rc1']) assert.ok(hasResend(release), release);
    for (const release of ['6.8.12', '6.1.0-28-amd64', '5.15.0', '4.19.0']) assert.ok(!hasResend(release), release);
  });

  it('warns who attaches of each thing that is not as it should be, with what to do', () => {
    const kernel = { name: 'kernel', detail: '6.1: no FUSE_NOTIFY_RESEND', fix: 'Linux 6.9 or later' };
    const warnings = attachWarnings([
      { ...kernel, status: 'warning' },
      { name: 'max_request_timeout', status: 'ok', detail: 'no limit' },
    ]);
    assert.deepEqual(warnings, ['kernel: 6.1: no FUSE_NOTIFY_RESEND; Linux 6.9 or later']);
  });

  it('tells of each way of seeing writes whether it works here, and else why not and what to do', () => {
    const ways = examineMachine().filter(({ name }) => name.startsWith('way: '));
    assert.deepEqual(
      ways.map(({ name }) => name),
      ['way: interposed', 'way: live', 'way: device mapper'],
    );
    for (const { status, detail, fix } of ways)
      if (status !== 'ok') assert.ok(detail.includes('no ') && fix !== undefined);
  });

  it('names the limits that a daemon may meet', () => {
    const limits = examineMachine().flatMap(({ name }) => (name.startsWith('limit: ') ? [name.slice(7)] : []));
    assert.deepEqual(limits, ['locked memory', 'descriptors', 'loop devices', 'FUSE request']);
  });

  it('gives each check a verdict, and what to do where it is not good', () => {
    const checks = examineMachine();
    assert.ok(checks.length > 5);
    for (const { name, status, detail, fix } of checks) {
      assert.ok(name !== '' && detail !== '');
      if (status === 'missing') assert.ok(fix !== undefined && fix !== '', name);
    }
  });
});

const LIMIT = {
  version: 1,
  file: '/sys/fs/cgroup/memory/small/memory.limit_in_bytes',
  limitBytes: 67_108_864,
} as const;
const GROUP = { ...LIMIT, group: '/sys/fs/cgroup/memory/small', above: undefined };

describe('the doctor’s look at the memory group', () => {
  it('finds nothing wrong without a limit', () => {
    assert.equal(checkMemoryLimit(undefined, false).status, 'ok');
  });

  it('warns of a hang in a limited group of version 1, and says what to do', () => {
    const { status, detail, fix } = checkMemoryLimit(GROUP, false);
    assert.equal(status, 'warning');
    assert.match(detail, /small\/memory\.limit_in_bytes limits the daemon to 67108864 bytes: .*hang/);
    assert.match(fix ?? '', /outside of that group/);
  });

  it('warns of no hang where the driver is an I/O flusher, or the group is of version 2', () => {
    for (const check of [checkMemoryLimit(GROUP, true), checkMemoryLimit({ ...GROUP, version: 2 }, false)]) {
      assert.equal(check.status, 'warning');
      assert.match(check.detail, /a kill for memory pauses every volume/);
    }
  });
});
