/**
 * What `npm test` tries in a guest, on its kernel: the driver. `inside-more.ts` has the rest, for `npm run test:vm`.
 *
 * Run by `node --test` in the guest; `command.ts` boots it.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { hasResend } from '../../src/engine/doctor.js';
import * as cowbird from '../../src/index.js';
import { CANNOT, digestOf, Lab, MIB, run, until } from '../lab.js';
import { requireNineSteps } from './nine-steps.js';

const WAIT_MS = 60_000;
const VOLUME_BYTES = 32 * MIB;

test('on this kernel an attached volume has the nine steps, and goes on when its engine dies with nothing in hand', {
  skip: CANNOT,
}, async (t) => {
  const lab = new Lab(t);
  const { client } = lab;
  const origin = lab.image('disk', VOLUME_BYTES);
  const { device, warnings = [] } = await cowbird.attach(origin, { name: `disk-${lab.tag}` }, client);
  assert.equal(Number(await run('blockdev', '--getsize64', device)), VOLUME_BYTES);
  // What an old kernel loses is said beforehand.
  const isWarned = warnings.some((text) => text.includes('FUSE_NOTIFY_RESEND'));
  assert.equal(isWarned, !hasResend(), warnings.join('; '));
  const at = await requireNineSteps(lab, device, 'ext4');

  await run('sync', '-f', at);
  const digest = digestOf(join(at, 'third'));
  const before = await cowbird.daemonStatus(client);
  assert.ok(before?.enginePid != null);
  process.kill(before.enginePid, 'SIGKILL');
  const isFollowed = async (): Promise<boolean> => {
    const now = await cowbird.daemonStatus(client);
    return now?.enginePid != null && now.enginePid !== before.enginePid;
  };
  await until('another engine serves', isFollowed, WAIT_MS);
  await run('sh', '-c', 'echo 1 >/proc/sys/vm/drop_caches');
  assert.equal(digestOf(join(at, 'third')), digest);
});
