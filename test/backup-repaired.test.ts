/** What a repair calls used again without writing it is in no list of changes, and in the next version all the same. */
import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import * as cowbird from '../src/index.js';
import { mountedVolume, requireSound, restored } from './backup-scenarios.js';
import { CANNOT, Lab, MIB, run, until } from './lab.js';

const VOLUME_BYTES = 60 * MIB;
const PAYLOAD_MIB = 8;
/** e2fsck: errors were corrected. */
const CORRECTED = 1;

test('blocks that e2fsck calls used again are in the next version by the list of the driver', {
  skip: CANNOT,
}, async (t) => {
  const lab = new Lab(t);
  const { node, at } = await mountedVolume(lab, 'repaired', 'ext4', VOLUME_BYTES, PAYLOAD_MIB);
  const repository = lab.path('repository');
  // Not on the volume: it would be given the blocks that are called free by mistake.
  const cow = lab.path('cow');
  mkdirSync(cow);
  const unmounted = async (): Promise<void> => {
    await run('umount', at);
    await until(`${node} is unmounted`, async () => !(await run('cat', '/proc/self/mountinfo')).includes(` ${at} `));
  };
  await unmounted();
  const blocks = (await run('debugfs', '-R', 'blocks /payload', node)).trim().split(/\s+/);
  const commands = lab.path('commands');
  writeFileSync(commands, blocks.map((block) => `freeb ${block}\n`).join(''));
  await run('debugfs', '-w', '-f', commands, node);
  await run('mount', node, at);
  const first = await cowbird.backup(node, repository, { cow, client: lab.client });
  assert.ok(first.bytesWritten < (PAYLOAD_MIB / 2) * MIB, `${first.bytesWritten} bytes were written: not the payload`);
  await unmounted();
  await run('sh', '-c', `e2fsck -fy "$0" > /dev/null || test $? = ${CORRECTED}`, node);
  await run('mount', node, at);
  const payload = (await run('sha256sum', join(at, 'payload'))).split(' ')[0] ?? '?';
  const second = await cowbird.backup(node, repository, { cow, client: lab.client });
  assert.match(second.reason, /^the driver lists/);
  const files = await requireSound(await restored(repository), 'ext4', true);
  assert.ok(files.includes(`${payload}  ./payload`), `payload is not ${payload} in version 2`);
});
