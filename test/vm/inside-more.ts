/** What else is tried in a guest: other file systems and disks, live backups. By `npm run test:vm`, not by `npm test`. */
import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { release } from 'node:os';
import { basename, join } from 'node:path';
import { test } from 'node:test';
import * as cowbird from '../../src/index.js';
import { CANNOT, digestOf, fill, Lab, MIB, run } from '../lab.js';
import { loopDevice, trackerPlace, zramDevice } from '../tracking-lab.js';
import { requireNineSteps } from './nine-steps.js';

/** Before, writes to a zram disk pass the block layer by. */
const ZRAM_KERNEL = [6, 3] as const;

function isZramSeen(): boolean {
  const [major = 0, minor = 0] = release().split('.').map(Number);
  return major > ZRAM_KERNEL[0] || (major === ZRAM_KERNEL[0] && minor >= ZRAM_KERNEL[1]);
}

test('more on this kernel', { skip: CANNOT }, async (t) => {
  await t.test('the nine steps on xfs', async (st) => {
    const lab = new Lab(st);
    await requireNineSteps(lab, await lab.attached('disk', 320 * MIB), 'xfs');
  });

  await t.test('a disk of the device mapper is attached, and has the nine steps too', async (st) => {
    const lab = new Lab(st);
    const loop = await loopDevice(lab, 112 * MIB);
    const name = basename(lab.folder);
    await run('dmsetup', 'create', name, '--table', `0 ${(112 * MIB) / 512} linear ${loop} 0`);
    lab.onEnd(() => run('dmsetup', 'remove', '--retry', name));
    await run('dmsetup', 'mknodes', name);
    const { device } = await cowbird.attach(`/dev/mapper/${name}`, { name: `mapped-${lab.tag}` }, lab.client);
    await requireNineSteps(lab, device, 'ext4');
  });

  for (const kind of ['loop', 'zram'])
    await t.test(`a mounted disk that was never attached is backed up live: ${kind}`, async (st) => {
      const lab = new Lab(st);
      const disk = kind === 'zram' ? await zramDevice(lab, 96 * MIB) : await loopDevice(lab, 96 * MIB);
      assert.ok(disk !== undefined, 'the module is loaded');
      trackerPlace(lab);
      await run('mkfs.ext4', '-q', '-b', '4096', disk);
      const at = await lab.mount(disk);
      await fill(join(at, 'first'), 8);
      const repository = lab.path('repository');
      if (kind === 'zram' && !isZramSeen()) {
        await assert.rejects(cowbird.backup(disk, repository, { client: lab.client }), { code: 'ENOTSUP' });
        return;
      }
      const stop = lab.writer(at);
      const versions: cowbird.BackupSummary[] = [];
      for (let i = 0; i < 2; i++) versions.push(await cowbird.backup(disk, repository, { client: lab.client }));
      assert.ok(await stop(), 'no write has failed');
      for (const { engine, reason } of versions) assert.equal(engine, 'live', reason);
      const [first, second] = versions;
      assert.ok(second !== undefined && first !== undefined && second.bytesRead < first.bytesRead, second?.reason);
      assert.deepEqual((await cowbird.verify(repository)).damage, []);
      mkdirSync(lab.path('look'));
      await run('mount', '-o', 'loop', join(repository, 'image'), lab.path('look'));
      lab.onEnd(() => run('umount', lab.path('look')));
      assert.equal(digestOf(join(lab.path('look'), 'first')), digestOf(join(at, 'first')));
    });
});
