/** Devices of versions, and targets and sources that are not what their names say: nothing is lost, hung or kept locked. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { linkSync, mkdirSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import * as cowbird from '../src/index.js';
import { COWBIRD } from './backup-scenarios.js';
import { CANNOT, copy, digestOf, fill, Lab, MIB, run, succeeds } from './lab.js';
import { CANNOT_TRACK, loopDevice, trackerPlace } from './tracking-lab.js';

const CANNOT_LIVE_BTRFS: string | false =
  CANNOT_TRACK || ((await succeeds('mkfs.btrfs', '--version')) ? false : 'no mkfs.btrfs here');
const COMMAND_MS_MAX = 60_000;
/** A device that cannot be made is said not to be before anybody gives up waiting for it (30 s). */
const REFUSED_MS_MAX = 15_000;

/** Runs `cowbird`; gives its status and what it said. */
function command(lab: Lab, env: NodeJS.ProcessEnv, ...args: string[]): Promise<{ status: number; said: string }> {
  return new Promise((done) => {
    const options = { env: { ...lab.env, ...env }, timeout: COMMAND_MS_MAX };
    const child = execFile(COWBIRD, args, options, (_, stdout, stderr) =>
      done({ status: child.exitCode ?? -1, said: stdout + stderr }),
    );
  });
}

/** A file system in an image, and its repository. */
async function backedUp(lab: Lab): Promise<{ source: string; repository: string }> {
  const source = lab.image('disk.img', 32 * MIB);
  await lab.mkfs(source, 'ext4');
  const repository = lab.path('repository');
  await cowbird.backup(source, repository, { client: lab.client });
  return { source, repository };
}

test('a device that cannot be made says why, and leaves the repository free', { skip: CANNOT }, async (t) => {
  const lab = new Lab(t);
  const { source, repository } = await backedUp(lab);
  const beganMs = Date.now();
  const { status, said } = await command(lab, { TMPDIR: lab.path('nowhere') }, 'device', '--writable', repository);
  assert.ok(Date.now() - beganMs < REFUSED_MS_MAX, 'it is said at once');
  assert.notEqual(status, 0);
  assert.match(said, /cannot be kept in .*nowhere.*TMPDIR/);
  await cowbird.backup(source, repository, { client: lab.client });
  assert.ok(!(await succeeds('grep', '-q', lab.folder, '/proc/mounts')), 'nothing of it is mounted');
});

test('a version that is unmounted has let go of its repository', { skip: CANNOT }, async (t) => {
  const lab = new Lab(t);
  const { source, repository } = await backedUp(lab);
  const at = lab.path('version');
  mkdirSync(at);
  for (let round = 0; round < 4; round++) {
    await cowbird.mount(repository, at, { writable: round % 2 === 1, client: lab.client });
    await cowbird.umount(at);
    await cowbird.backup(source, repository, { client: lab.client });
  }
});

test('a restore does not write over the image through a loop device, nor under a disk through another name', {
  skip: CANNOT,
}, async (t) => {
  const lab = new Lab(t);
  const { repository } = await backedUp(lab);
  const image = `${repository}/image`;
  const before = digestOf(image);
  const loopOn = async (path: string): Promise<string> => {
    const node = (await run('losetup', '-f', '--show', path)).trim();
    lab.onEnd(() => succeeds('losetup', '-d', node));
    return node;
  };
  const own = await loopOn(image);
  await assert.rejects(cowbird.restore(repository, own, { confirm: async () => true }), { code: 'EINVAL' });
  await run('losetup', '-d', own);
  assert.equal(digestOf(image), before);
  const used = lab.image('used.img', 32 * MIB);
  await lab.mkfs(used, 'ext4');
  linkSync(used, lab.path('second-name.img'));
  await lab.mount(await loopOn(used));
  await assert.rejects(cowbird.restore(repository, lab.path('second-name.img'), { confirm: async () => true }), {
    code: 'EBUSY',
    message: /behind \/dev\/loop/,
  });
});

test('a backup that may wait does so for another one of its source', { skip: CANNOT }, async (t) => {
  const lab = new Lab(t);
  const { source, repository } = await backedUp(lab);
  const node = await lab.attached('volume', 64 * MIB);
  await lab.mkfs(node, 'ext4');
  await lab.mount(node);
  const pairs = [
    [source, repository],
    [node, lab.path('of-volume')],
  ] as const;
  for (const [from, to] of pairs) {
    const first = command(lab, {}, 'backup', from, to, '--pre-freeze', 'sleep 2');
    await pause(500);
    const both = await Promise.all([first, command(lab, {}, 'backup', from, to, '--wait=50')]);
    assert.deepEqual(
      both.map(({ status, said }) => [status, /warning|error/i.test(said) && !/hooks were not run/.test(said)]),
      [
        [0, false],
        [0, false],
      ],
      JSON.stringify(both),
    );
  }
});

test('free blocks of a file system that was there before the partitions are not left out', {
  skip: CANNOT,
}, async (t) => {
  const lab = new Lab(t);
  const node = await lab.attached('disk', 200 * MIB);
  await lab.mkfs(node, 'ext4');
  // Behind all that the old file system has written of itself, which is whole and calls this free.
  const start = 64 * 2048;
  const sectors = 64 * 2048;
  await run(
    'sh',
    '-c',
    `echo 'start=${start},size=${sectors},type=83' | sfdisk -q -X dos -w never -W never --no-reread --no-tell-kernel ${node}`,
  );
  await succeeds('partx', '-d', node);
  await run('addpart', node, '1', String(start), String(sectors));
  lab.onEnd(() => succeeds('delpart', node, '1'));
  await lab.mkfs(`${node}p1`, 'ext4');
  const at = await lab.mount(`${node}p1`);
  await fill(`${at}/file`, 20);
  const reference = lab.path('reference.img');
  const onSnapshot = (device: string): Promise<void> => copy(device, reference);
  const made = await cowbird.backup(node, lab.path('repository'), { onSnapshot, client: lab.client });
  assert.match(made.warnings.join(), /what is mounted is not the ext2, ext3 or ext4/);
  await cowbird.restore(lab.path('repository'), lab.path('restored.img'));
  assert.equal(digestOf(lab.path('restored.img')), digestOf(reference));
});

test('a file system that another one is mounted over is not taken for that one', { skip: CANNOT }, async (t) => {
  const lab = new Lab(t);
  const minor = 231;
  const node = await lab.attached('volume', 120 * MIB);
  await lab.mkfs(node, 'ext4');
  const at = await lab.mount(node);
  const other = lab.image('other.img', 120 * MIB);
  await lab.mkfs(other, 'ext4');
  await run('mount', '-o', 'loop', other, at);
  lab.onEnd(() => succeeds('umount', at));
  const take = (options: cowbird.SetupOptions): Promise<unknown> =>
    cowbird.setupSnapshot(node, lab.path('cow'), minor, { storeBytes: 20 * MIB, ...options }, lab.client);
  for (const freeAware of [false, true])
    await assert.rejects(take({ freeAware }), { code: 'EBUSY', message: /something else is mounted over it/ });
  // By another of its places it is reached.
  await lab.mount(node, 'again');
  await take({});
  await cowbird.destroy(minor, lab.client);
});

test('a live backup of a btrfs that another file system is mounted over is refused', {
  skip: CANNOT_LIVE_BTRFS,
}, async (t) => {
  const lab = new Lab(t);
  const disk = await loopDevice(lab, 200 * MIB);
  trackerPlace(lab);
  await run('mkfs.btrfs', '-q', '-f', disk);
  const at = await lab.mount(disk);
  const other = lab.image('other.img', 120 * MIB);
  await lab.mkfs(other, 'ext4');
  await run('mount', '-o', 'loop', other, at);
  const backup = (): Promise<cowbird.BackupSummary> =>
    cowbird.backup(disk, lab.path('repository'), { client: lab.client });
  await assert.rejects(backup(), { code: 'EBUSY', message: /something else is mounted over it/ });
  await run('umount', at);
  assert.equal((await backup()).engine, 'live');
});

test('free blocks of a file system that is mounted without its journal are copied too', {
  skip: CANNOT_TRACK,
}, async (t) => {
  const lab = new Lab(t);
  const disk = await loopDevice(lab, 64 * MIB);
  trackerPlace(lab);
  await lab.mkfs(disk, 'ext4');
  const at = await lab.mount(disk, 'mnt', '-o', 'ro,noload');
  const backup = (): Promise<cowbird.BackupSummary> =>
    cowbird.backup(disk, lab.path('repository'), { client: lab.client });
  const first = await backup();
  assert.equal(first.engine, 'live');
  assert.match(first.warnings.join(), /unused blocks of .* were copied too: .*journal/);
  await run('umount', at);
  await lab.mount(disk, 'mnt', '-o', 'ro');
  const next = await backup();
  assert.deepEqual([next.engine, next.warnings], ['live', []]);
});
