/** Whatever happens to a live backup while the file system is frozen: it is thawed in time, and the versions stay. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import * as cowbird from '../src/index.js';
import { stopTracking } from '../src/live/tracking.js';
import { fill, Lab, MIB, run, succeeds, until } from './lab.js';
import { grief, MARGIN_MS, TIMEOUT_SECONDS, writeMs } from './live-grief.js';
import { type LiveDisk, mountedDisk } from './live-lab.js';
import { CANNOT_TRACK, trackerPlace } from './tracking-lab.js';

/** The versions are those, each whole, and the next backup goes on with the map. */
async function requireWhole({ lab, node, repository }: LiveDisk, versions: number): Promise<void> {
  const next = await cowbird.backup(node, repository, { whole: true, client: lab.client });
  assert.equal(next.version, versions + 1);
  assert.match(next.reason, /^the kernel lists/);
  assert.deepEqual((await cowbird.verify(repository)).damage, []);
}

test('a live backup that is killed, stopped or hangs while frozen: thawed in time', {
  skip: CANNOT_TRACK,
}, async (t) => {
  const lab = new Lab(t);
  const disk = await mountedDisk(lab, 'ext4', false);
  await fill(join(disk.at, 'file'), 8);
  await cowbird.backup(disk.node, disk.repository, { whole: true, client: lab.client });
  await fill(join(disk.at, 'more'), 2);

  const killed = await grief(disk, 'killed');
  assert.ok((await writeMs(disk.at)) < MARGIN_MS, 'at once when the backup is gone');
  await killed.ended;
  assert.equal(killed.said(), 'frozen\n');
  await until('its post-thaw hook has run', () => existsSync(lab.path('thawed')));
  await requireWhole(disk, 1);

  const stopped = await grief(disk, 'stopped');
  const waitedMs = await writeMs(disk.at);
  assert.ok(waitedMs < TIMEOUT_SECONDS * 1000 + MARGIN_MS, `after its time: ${waitedMs} ms`);
  stopped.child.kill('SIGCONT');
  await stopped.ended;
  assert.match(stopped.said(), /ETIMEDOUT: .*thawed before all was read/);
  await requireWhole(disk, 2);

  const hung = await grief(disk, 'hung');
  const hungMs = await writeMs(disk.at);
  assert.ok(hungMs < TIMEOUT_SECONDS * 1000 + MARGIN_MS, `after its time: ${hungMs} ms`);
  await hung.ended;
  assert.match(hung.said(), /ETIMEDOUT: /);
  await requireWhole(disk, 3);
  const unguarded = await grief(disk, 'unguarded');
  await unguarded.ended;
  assert.equal(unguarded.said(), 'frozen\nversion 5\n', 'it thawed itself');
  assert.equal(readFileSync(lab.path('thawed'), 'utf8'), 'thawed\n'.repeat(4), 'and ran the hook itself');
  await requireWhole(disk, 5);
  assert.ok(await succeeds('fsfreeze', '-f', disk.at), 'it is not frozen any more');
  await run('fsfreeze', '-u', disk.at);

  // Nothing was missed: not mounted, it is claimed, read by the map, and the image is the disk, bit for bit.
  await fill(join(disk.at, 'last'), 1);
  await run('umount', disk.at);
  await requireWhole(disk, 6);
  await run('cmp', disk.node, join(disk.repository, 'image'));
});

test('hooks are run around the freeze, the second one always', { skip: CANNOT_TRACK }, async (t) => {
  const lab = new Lab(t);
  const disk = await mountedDisk(lab, 'ext4', false);
  const log = lab.path('hooks');
  const hooksWith = (preFreeze: string): cowbird.HookOptions => ({
    preFreeze: `echo "$COWBIRD_HOOK $COWBIRD_DEVICES" >> ${log}; ${preFreeze}`,
    postThaw: `echo "$COWBIRD_HOOK" >> ${log}`,
    hookTimeoutSeconds: 2,
  });
  const backup = (hooks: cowbird.HookOptions): Promise<cowbird.BackupSummary> =>
    cowbird.backup(disk.node, disk.repository, { hooks, client: lab.client });
  assert.equal((await backup(hooksWith(`echo done > ${disk.at}/quiesced`))).version, 1);
  await assert.rejects(backup(hooksWith('echo no, not now; exit 3')), {
    code: 'ECANCELED',
    message: /exit code 3: no, not now/,
  });
  await assert.rejects(backup(hooksWith('sleep 60')), { code: 'ECANCELED', message: /did not end within 2 s/ });
  const pair = `pre-freeze ${disk.node}\npost-thaw\n`;
  assert.equal(readFileSync(log, 'utf8'), pair.repeat(3));
  assert.deepEqual(
    (await cowbird.listVersions(disk.repository)).versions.map(({ number }) => number),
    [1],
  );
  // What the hook wrote is in the version: it is run before everything is written out.
  const target = lab.path('restored.img');
  await cowbird.restore(disk.repository, target);
  const look = await lab.mount(target, 'look', '-o', 'loop');
  assert.equal(readFileSync(join(look, 'quiesced'), 'utf8'), 'done\n');
});

test('a file system that is mounted while the backup goes on did not stand still: no version', {
  skip: CANNOT_TRACK,
}, async (t) => {
  const lab = new Lab(t);
  const repository = lab.path('repository');
  const disk = (await run('losetup', '-f', '--show', lab.image('two.img', 64 * MIB))).trim();
  lab.onEnd(() => succeeds('losetup', '-d', disk));
  lab.onEnd(async () => void stopTracking(disk, trackerPlace(lab)));
  for (const part of ['1', '2']) {
    await run('addpart', disk, part, part === '1' ? '2048' : '67584', '61440');
    await until(`partition ${part} is there`, () => existsSync(`${disk}p${part}`));
    await run('mkfs.ext4', '-q', `${disk}p${part}`);
  }
  const second = `${disk}p2`;
  const at = await lab.mount(`${disk}p1`);
  const look = lab.path('second');
  mkdirSync(look);
  const onFrozen = (): void => void execFileSync('mount', [second, look], { timeout: 20_000 });
  await assert.rejects(cowbird.backup(disk, repository, { client: lab.client, live: { onFrozen } }), {
    code: 'EBUSY',
    message: new RegExp(`${look} was mounted`),
  });
  await run('touch', join(at, 'thawed'));
  assert.equal((await cowbird.backup(disk, repository, { client: lab.client })).version, 1);
  await run('umount', look);
});

test('what cannot be backed up live is refused, and stays as it is', { skip: CANNOT_TRACK }, async (t) => {
  const lab = new Lab(t);
  const disk = await mountedDisk(lab, 'ext4', true);
  const { node, at, repository } = disk;
  const backup = (source: string, target: string, more: cowbird.BackupOptions = {}): Promise<cowbird.BackupSummary> =>
    cowbird.backup(source, target, { ...more, client: lab.client });
  await assert.rejects(backup(node, join(at, 'repo')), {
    code: 'EINVAL',
    message: /lies on .*which is to be backed up/,
  });
  await assert.rejects(backup(disk.disk, join(at, 'repo')), { code: 'EINVAL' });
  // Below too: a file system in a file on it.
  await run('truncate', '-s', '32M', join(at, 'inner.img'));
  await run('mkfs.ext4', '-q', join(at, 'inner.img'));
  const inner = await lab.mount(join(at, 'inner.img'), 'inner', '-o', 'loop');
  await assert.rejects(backup(node, join(inner, 'repo')), { code: 'EINVAL', message: /put it on another disk/ });
  await run('umount', inner);
  // Frozen by somebody else: that is theirs to thaw.
  await run('fsfreeze', '-f', at);
  lab.onEnd(() => succeeds('fsfreeze', '-u', at));
  await assert.rejects(backup(node, repository), { code: 'EBUSY', message: /frozen by somebody else/ });
  await run('fsfreeze', '-u', at);
  assert.deepEqual((await backup(disk.disk, repository)).version, 1, 'the disk with its partition');
  assert.match((await backup(disk.disk, repository)).reason, /^the kernel lists/);
  // Not a file system: nothing makes it stand still.
  const swap = lab.image('swap.img', 16 * 1_048_576);
  const swapNode = (await run('losetup', '-f', '--show', swap)).trim();
  lab.onEnd(() => run('losetup', '-d', swapNode));
  const holder = spawn(
    process.execPath,
    ['-e', `require('fs').openSync('${swapNode}', ${0o200 + 2}); setInterval(() => {}, 1e6); console.log(1)`],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  lab.onEnd(async () => holder.kill('SIGKILL'));
  await new Promise((resolve) => holder.stdout.once('data', resolve));
  await assert.rejects(backup(swapNode, lab.path('raw')), { code: 'EBUSY', message: /not by a file system/ });
  await assert.rejects(backup(node, repository, { live: { freezeTimeoutSeconds: 61 } }), { code: 'EINVAL' });
  await assert.rejects(backup(swap, lab.path('raw'), { engine: 'live' }), { code: 'ENOTBLK' });
});

test('a disk that is smaller than its version is refused before anything is begun', {
  skip: CANNOT_TRACK,
}, async (t) => {
  const lab = new Lab(t);
  const image = lab.image('shrunk.img', 48 * 1_048_576);
  const node = (await run('losetup', '-f', '--show', image)).trim();
  lab.onEnd(() => succeeds('losetup', '-d', node));
  await run('mkfs.ext4', '-q', node, '32M');
  await lab.mount(node, 'at');
  const repository = lab.path('repository');
  const { client } = lab;
  assert.equal((await cowbird.backup(node, repository, { client })).engine, 'live');
  await cowbird.untrack(node, undefined, client);
  await run('truncate', '-s', '40M', image);
  await run('losetup', '-c', node);
  await assert.rejects(cowbird.backup(node, repository, { client }), {
    code: 'EINVAL',
    message: /needs another repository/,
  });
  assert.deepEqual(await cowbird.listTracking(client), []);
});
