/** `cowbird track`, `untrack` and `tracking`. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { TrackingInfo } from '../index.js';
import { CowbirdError } from '../sys/errors.js';
import { main } from './cowbird.js';
import { fakeIo } from './testing.js';

const INFO: TrackingInfo = {
  device: '/dev/sda1',
  user: 'track',
  since: '2026-01-02T03:04:05.000Z',
  changedBlocks: 256,
  sizeBytes: 1_073_741_824,
  doubt: null,
  busy: false,
};

describe('the commands of tracking', () => {
  it('track for a user by default, and say where that is so already', async () => {
    const asked: unknown[] = [];
    const io = fakeIo({
      track: async (device, user) => {
        asked.push([device, user]);
        return { started: user === 'track' };
      },
    });
    assert.equal(await main(['track', '/dev/sda1'], io), 0);
    assert.equal(await main(['track', '/dev/sda1', '--user', 'me'], io), 0);
    assert.equal(await main(['track', '/dev/sda1', '--json'], io), 0);
    assert.deepEqual(asked.slice(0, 2), [
      ['/dev/sda1', 'track'],
      ['/dev/sda1', 'me'],
    ]);
    assert.equal(
      io.stdout,
      '/dev/sda1 is tracked for me already\n{"device":"/dev/sda1","user":"track","started":true}\n',
    );
  });

  it('refuse a user without a name, before anything is done', async () => {
    const io = fakeIo();
    assert.equal(await main(['track', '/dev/sda1', '--user', ''], io), 3);
    assert.match(io.stderr, /User `` is not a name/);
  });

  it('tell why a disk cannot be tracked', async () => {
    const io = fakeIo({
      track: async () => {
        throw new CowbirdError('ENOTSUP', '/dev/md0 cannot be tracked: it passes requests on');
      },
    });
    assert.equal(await main(['track', '/dev/md0', '--json'], io), 3);
    assert.match(io.stderr, /"code":"ENOTSUP"/);
  });

  it('list what is tracked, and why a map is not trusted', async () => {
    const lost = { ...INFO, device: null, user: 'series', doubt: 'the disk is gone (sdb)' };
    const io = fakeIo({ listTracking: async () => [INFO, lost] });
    assert.equal(await main(['tracking'], io), 0);
    assert.match(io.stdout, /\/dev\/sda1 {2}track .* 1\.0 MiB of 1\.0 GiB {2}trusted\n/);
    assert.match(io.stdout, /\n- +series .* lost: the disk is gone \(sdb\)\n/);
    const json = fakeIo({ listTracking: async () => [INFO] });
    assert.equal(await main(['tracking', '--json'], json), 0);
    assert.deepEqual(JSON.parse(json.stdout), { tracking: [INFO] });
  });

  it('end tracking for one or for all', async () => {
    const asked: unknown[] = [];
    const io = fakeIo({
      untrack: async (_, user) => {
        asked.push(user);
        return { ended: user === undefined ? 2 : 0 };
      },
    });
    assert.equal(await main(['untrack', '/dev/sda1'], io), 0);
    assert.equal(await main(['untrack', '/dev/sda1', '--user', 'me'], io), 0);
    assert.deepEqual(asked, [undefined, 'me']);
    assert.equal(io.stdout, 'ended for 2 users\n/dev/sda1 was not tracked\n');
  });
});
