/** Live backups where what the kernel lists cannot be trusted: contents are compared, in the same chain, and it is said. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import * as cowbird from '../src/index.js';
import { stopTracking } from '../src/live/tracking.js';
import { requireSound } from './backup-scenarios.js';
import { fill, Lab, MIB, run } from './lab.js';
import { type LiveDisk, mountedDisk } from './live-lab.js';
import { CANNOT_TRACK, trackerPlace } from './tracking-lab.js';

const GROWN_BYTES = 150 * MIB;

/** A version, compared with the disk as it was while its file system stood still. */
async function rightVersion({ lab, image, node, repository }: LiveDisk): Promise<cowbird.BackupSummary> {
  const reference = lab.path('reference.img');
  const onFrozen = (): void => void execFileSync('cp', ['--sparse=always', image, reference], { timeout: 20_000 });
  const live = { freezeTimeoutSeconds: 30, onFrozen };
  const made = await cowbird.backup(node, repository, { whole: true, live, client: lab.client });
  await run('cmp', reference, join(repository, 'image'));
  return made;
}

test('a live backup after its tracking was ended, and after the disk has grown, compares contents and misses nothing', {
  skip: CANNOT_TRACK,
}, async (t) => {
  const lab = new Lab(t);
  const disk = await mountedDisk(lab, 'ext4', false);
  const { at, node, image, repository } = disk;
  await fill(join(at, 'kept'), 6);
  await fill(join(at, 'removed'), 6);
  assert.match((await rightVersion(disk)).reason, /the disk is in use$/);

  await cowbird.untrack(node, undefined, lab.client);
  await fill(join(at, 'kept'), 3);
  rmSync(join(at, 'removed'));
  await fill(join(at, 'new'), 4);
  const ended = await rightVersion(disk);
  assert.deepEqual([ended.version, ended.engine], [2, 'live']);
  assert.match(ended.reason, /^contents were compared: .* is not tracked for .* any more$/);

  await run('truncate', '-s', String(GROWN_BYTES), image);
  await run('losetup', '-c', node);
  await run('dd', 'if=/dev/urandom', `of=${node}`, 'bs=1M', 'seek=140', 'count=5', 'oflag=direct', 'conv=notrunc');
  await fill(join(at, 'behind'), 20);
  const grown = await rightVersion(disk);
  assert.deepEqual([grown.version, grown.sizeBytes], [3, GROWN_BYTES]);
  assert.match(grown.reason, /^contents were compared: /);
  assert.match((await rightVersion(disk)).reason, /^the kernel lists what changed since version 3$/);

  assert.deepEqual((await cowbird.verify(repository)).damage, []);
  const target = lab.path('version-1.img');
  await cowbird.restore(`${repository}@1`, target);
  await requireSound(target, 'ext4');
});

test('a disk in use without a file system is backed up live when hooks make it stand still', {
  skip: CANNOT_TRACK,
}, async (t) => {
  const lab = new Lab(t);
  const { client } = lab;
  const image = lab.image('database.img', 24 * MIB);
  await fill(image, 24);
  const node = (await run('losetup', '-f', '--show', '--direct-io=on', image)).trim();
  lab.onEnd(() => run('losetup', '-d', node));
  const runDir = trackerPlace(lab);
  lab.onEnd(async () => void stopTracking(node, runDir));
  const holder = spawn(
    process.execPath,
    ['-e', `require('fs').openSync('${node}', ${0o200 + 2}); setInterval(() => {}, 1e6); console.log(1)`],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  lab.onEnd(async () => holder.kill('SIGKILL'));
  await new Promise((resolve) => holder.stdout.once('data', resolve));
  const repository = lab.path('repository');
  await assert.rejects(cowbird.backup(node, repository, { client }), {
    code: 'EBUSY',
    message: /not by a file system/,
  });
  const hooks = { preFreeze: `echo stands >> ${lab.path('hooks')}`, postThaw: `echo goes >> ${lab.path('hooks')}` };
  for (const version of [1, 2]) {
    const made = await cowbird.backup(node, repository, { hooks, client });
    assert.deepEqual([made.version, made.engine], [version, 'live']);
    assert.match(made.reason, version === 1 ? /in use$/ : /^the kernel lists/);
    await run('cmp', image, join(repository, 'image'));
    await run('dd', 'if=/dev/urandom', `of=${node}`, 'bs=4k', 'count=5', 'seek=777', 'oflag=direct', 'conv=notrunc');
  }
  assert.equal((await run('cat', lab.path('hooks'))).trim(), 'stands\ngoes\nstands\ngoes');
  const made = await cowbird.backup(node, repository, { hooks: { ...hooks, postThaw: 'exit 3' }, client });
  assert.deepEqual([made.version, made.engine, made.hookFailed], [3, 'live', true]);
  assert.match(made.warnings.join('\n'), /post-thaw.*3/);
});
