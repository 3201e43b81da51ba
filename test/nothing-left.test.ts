/** A refusal leaves volumes, minors, links, loop devices, mounts and files exactly as they were. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, it, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import * as cowbird from '../src/index.js';
import { boundLoops } from '../src/sys/blkdev.js';
import { program, traces } from './harness.js';
import { CANNOT, fill, Lab, MIB, run, until } from './lab.js';

const MINOR = 170;
const STORE = { storeBytes: 20 * MIB };

interface Bench {
  lab: Lab;
  node: string;
  mnt: string;
}

/** A mounted ext4, not tracked. */
async function bench(t: TestContext): Promise<Bench> {
  const lab = new Lab(t);
  const node = await lab.attached('volume', 200 * MIB);
  await lab.mkfs(node, 'ext4');
  const mnt = await lab.mount(node);
  await fill(`${mnt}/a`, 2);
  return { lab, node, mnt };
}

/** Refused with this code and its number, and everything as before. */
async function refused(lab: Lab, code: string, errno: number, action: () => Promise<unknown>): Promise<void> {
  const before = await traces(lab);
  await assert.rejects(action(), (error: unknown) => {
    assert.ok(error instanceof cowbird.CowbirdError, String(error));
    assert.deepEqual({ code: error.code, errno: error.errno }, { code, errno }, error.message);
    assert.equal(error.outcome, 'refused', error.message);
    return true;
  });
  assert.deepEqual(await traces(lab), before, 'nothing is left behind');
}

/** Where the size of a loop device's requests cannot be written; the prefix of a command. */
const READ_ONLY_SYS = ['-m', 'sh', '-c', 'mount -o remount,bind,ro /sys && exec "$@"', 'sh'];
const PROGRAM = fileURLToPath(new URL('../../bin/cowbird', import.meta.url));

describe('a failing attach', { skip: CANNOT }, () => {
  it('gives back the loop device that it cannot set up', async (t) => {
    const lab = new Lab(t);
    const image = lab.image('volume', 20 * MIB);
    const before = new Set(boundLoops().map(({ node }) => node));
    const env = ['RUN_DIR', 'STATE_DIR'].map((name) => `COWBIRD_${name}=${lab.env[`COWBIRD_${name}`]}`);
    const attach = ['env', ...env, process.execPath, PROGRAM, 'attach', image, '--name', `volume-${lab.tag}`];
    await assert.rejects(run('unshare', ...READ_ONLY_SYS, ...attach), /EROFS/);
    // The name of a file whose file system is mounted nowhere is `/`.
    const left = boundLoops().filter(
      ({ node, backingFile }) => !before.has(node) && (backingFile === '/' || backingFile.startsWith(lab.folder)),
    );
    assert.deepEqual(left, []);
  });
});

describe('setup-snapshot refuses', { skip: CANNOT }, () => {
  it('a minor in use (EBUSY), a volume that is tracked already and a minor above 255 (EINVAL)', async (t) => {
    const { lab, node, mnt } = await bench(t);
    const other = await lab.attached('other', 50 * MIB);
    await lab.mkfs(other, 'ext4');
    const otherMount = await lab.mount(other, 'mnt-other');
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, STORE, lab.client);
    await refused(lab, 'EBUSY', 16, () =>
      cowbird.setupSnapshot(other, `${otherMount}/.cow`, MINOR, { storeBytes: 5 * MIB }, lab.client),
    );
    assert.ok(!existsSync(`${otherMount}/.cow`));
    await refused(lab, 'EINVAL', 22, () => cowbird.setupSnapshot(node, `${mnt}/.cow2`, MINOR + 1, STORE, lab.client));
    await refused(lab, 'EINVAL', 22, () => cowbird.setupSnapshot(other, `${otherMount}/.cow`, 256, STORE, lab.client));
    await cowbird.destroy(MINOR, lab.client);
  });

  it('a directory or a plain path as device (ENOTBLK), a missing one (ENOENT), one not attached (EINVAL)', async (t) => {
    const { lab, mnt } = await bench(t);
    await refused(lab, 'ENOTBLK', 15, () => cowbird.setupSnapshot(mnt, `${mnt}/.cow`, MINOR, STORE, lab.client));
    await refused(lab, 'ENOTBLK', 15, () => cowbird.setupSnapshot(`${mnt}/a`, `${mnt}/.cow`, MINOR, STORE, lab.client));
    await refused(lab, 'ENOENT', 2, () =>
      cowbird.setupSnapshot('/dev/no-such-device', `${mnt}/.cow`, MINOR, STORE, lab.client),
    );
    const loop = (await run('losetup', '-f', '--show', lab.image('plain', 20 * MIB))).trim();
    lab.onEnd(() => run('losetup', '-d', loop));
    await assert.rejects(cowbird.setupSnapshot(loop, `${mnt}/.cow`, MINOR, STORE, lab.client), (error: unknown) => {
      assert.ok(error instanceof cowbird.CowbirdError);
      assert.equal(error.errno, 22);
      assert.match(error.message, /attach/);
      return true;
    });
    assert.ok(!existsSync(`${mnt}/.cow`));
  });

  it('a COW path that is a directory (EISDIR), exists (EEXIST), or has no parent (ENOENT)', async (t) => {
    const { lab, node, mnt } = await bench(t);
    mkdirSync(`${mnt}/folder`);
    writeFileSync(`${mnt}/mine`, 'precious');
    await refused(lab, 'EISDIR', 21, () => cowbird.setupSnapshot(node, `${mnt}/folder`, MINOR, STORE, lab.client));
    await refused(lab, 'EEXIST', 17, () => cowbird.setupSnapshot(node, `${mnt}/mine`, MINOR, STORE, lab.client));
    assert.equal(readFileSync(`${mnt}/mine`, 'utf8'), 'precious');
    await refused(lab, 'ENOENT', 2, () => cowbird.setupSnapshot(node, `${mnt}/none/.cow`, MINOR, STORE, lab.client));
  });

  it('a store on a volume that is not mounted, or mounted read-only (EINVAL)', async (t) => {
    const { lab, node, mnt } = await bench(t);
    await run('umount', mnt);
    await refused(lab, 'EINVAL', 22, () =>
      cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { ...STORE, onVolumeOnly: true }, lab.client),
    );
    await lab.mount(node, 'mnt', '-o', 'ro');
    await refused(lab, 'EINVAL', 22, () => cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, STORE, lab.client));
  });

  it('a store elsewhere through dbdctl (EINVAL), and allows it otherwise', async (t) => {
    const { lab, node } = await bench(t);
    const store = lab.path('store');
    await refused(lab, 'EINVAL', 22, () =>
      cowbird.setupSnapshot(node, store, MINOR, { ...STORE, onVolumeOnly: true }, lab.client),
    );
    await cowbird.setupSnapshot(node, store, MINOR, STORE, lab.client);
    assert.equal((await lab.status(MINOR)).state, 3);
    await cowbird.destroy(MINOR, lab.client);
    assert.ok(!existsSync(store), 'destroy deletes the COW file of an active snapshot');
  });

  it('a store larger than the free space (ENOSPC), which then is free again', async (t) => {
    const { lab, node, mnt } = await bench(t);
    const free = (await run('stat', '-f', '-c', '%a', mnt)).trim();
    await refused(lab, 'ENOSPC', 28, () =>
      cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { storeBytes: 500 * MIB }, lab.client),
    );
    await run('sync', '-f', mnt);
    assert.equal((await run('stat', '-f', '-c', '%a', mnt)).trim(), free);
  });

  it('to replace a device name that is not its own (EBUSY)', async (t) => {
    const { lab, node, mnt } = await bench(t);
    writeFileSync('/dev/datto171', 'somebody else’s');
    lab.onEnd(() => run('rm', '-f', '/dev/datto171'));
    const action = () =>
      cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR + 1, { ...STORE, alias: 'datto' }, lab.client);
    await assert.rejects(action(), { code: 'EBUSY' });
    assert.equal(readFileSync('/dev/datto171', 'utf8'), 'somebody else’s');
    assert.ok(!existsSync('/dev/cowbird171'));
    assert.ok(!existsSync(`${mnt}/.cow`));
    assert.deepEqual((await cowbird.info(undefined, lab.client)).devices, []);
  });
});

describe('the other commands refuse', { skip: CANNOT }, () => {
  it('a minor that is not there (ENOENT)', async (t) => {
    const { lab, mnt } = await bench(t);
    const { client } = lab;
    await refused(lab, 'ENOENT', 2, () => cowbird.destroy(MINOR, client));
    await refused(lab, 'ENOENT', 2, () => cowbird.transitionToIncremental(MINOR, client));
    await refused(lab, 'ENOENT', 2, () => cowbird.transitionToSnapshot(MINOR, `${mnt}/.cow2`, {}, client));
    await refused(lab, 'ENOENT', 2, () => cowbird.reconfigure(MINOR, 10 * MIB, client));
    await refused(lab, 'ENOENT', 2, () => cowbird.expandCowFile(MINOR, 10 * MIB, client));
    await refused(lab, 'ENOENT', 2, () => cowbird.reconfigureAutoExpand(MINOR, 10 * MIB, 0, client));
    await refused(lab, 'ENOENT', 2, () => cowbird.changes(MINOR, client));
    await refused(lab, 'ENOENT', 2, () => cowbird.info(MINOR, client));
    assert.ok(!existsSync(`${mnt}/.cow2`));
  });

  it('a transition from the wrong mode (EINVAL), onto an existing path (EEXIST) or the current COW file (EPERM)', async (t) => {
    const { lab, node, mnt } = await bench(t);
    writeFileSync(`${mnt}/mine`, 'precious');
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, STORE, lab.client);
    await refused(lab, 'EINVAL', 22, () => cowbird.transitionToSnapshot(MINOR, `${mnt}/.cow2`, STORE, lab.client));
    await cowbird.transitionToIncremental(MINOR, lab.client);
    await refused(lab, 'EINVAL', 22, () => cowbird.transitionToIncremental(MINOR, lab.client));
    await refused(lab, 'EINVAL', 22, () => cowbird.expandCowFile(MINOR, 10 * MIB, lab.client));
    await refused(lab, 'EEXIST', 17, () => cowbird.transitionToSnapshot(MINOR, `${mnt}/mine`, STORE, lab.client));
    await refused(lab, 'EPERM', 1, () => cowbird.transitionToSnapshot(MINOR, `${mnt}/.cow`, STORE, lab.client));
    assert.equal(readFileSync(`${mnt}/mine`, 'utf8'), 'precious');
    assert.equal((await lab.status(MINOR)).state, 2, 'a refused transition ends nothing');
    await cowbird.destroy(MINOR, lab.client);
  });

  it('a transition to a directory, to nowhere, or larger than the free space, and goes on tracking', async (t) => {
    const { lab, node, mnt } = await bench(t);
    mkdirSync(`${mnt}/folder`);
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, STORE, lab.client);
    await cowbird.transitionToIncremental(MINOR, lab.client);
    const to = (path: string, storeBytes = 20 * MIB) =>
      cowbird.transitionToSnapshot(MINOR, path, { storeBytes, onVolumeOnly: true }, lab.client);
    await refused(lab, 'EISDIR', 21, () => to(`${mnt}/folder`));
    await refused(lab, 'ENOENT', 2, () => to(`${mnt}/none/.cow2`));
    await refused(lab, 'ENOSPC', 28, () => to(`${mnt}/.cow2`, 500 * MIB));
    await refused(lab, 'EINVAL', 22, () => to(lab.path('elsewhere')));
    const before = (await lab.status(MINOR)).nr_changed_blocks ?? 0;
    await fill(`${mnt}/b`, 2);
    assert.ok(((await lab.status(MINOR)).nr_changed_blocks ?? 0) >= before + 512, 'still tracking');
    await to(`${mnt}/.cow2`);
    assert.equal((await lab.status(MINOR)).seq_id, 2);
    await cowbird.destroy(MINOR, lab.client);
    assert.ok(existsSync(`${mnt}/.cow`), 'the file of the sequence before is not touched');
  });

  it('a reload with a COW file that lies on a volume by now, which would wait for itself (EINVAL)', async (t) => {
    const lab = new Lab(t);
    await lab.attached('tracked', 32 * MIB);
    const host = await lab.attached('host', 64 * MIB);
    await lab.mkfs(host, 'ext4');
    const elsewhere = lab.path('elsewhere');
    mkdirSync(elsewhere);
    const store = `${elsewhere}/cow`;
    await cowbird.setupSnapshot(lab.link('tracked'), store, MINOR, STORE, lab.client);
    await cowbird.transitionToIncremental(MINOR, lab.client);
    await cowbird.stopDaemon({}, lab.client);
    await cowbird.startDaemon(lab.client);
    const mnt = await lab.mount(lab.link('host'));
    await run('cp', '--sparse=never', store, `${mnt}/cow`);
    await run('mount', '--bind', mnt, elsewhere);
    lab.onEnd(() => run('umount', elsewhere));
    for (const reload of [cowbird.reloadIncremental, cowbird.reloadSnapshot])
      await refused(lab, 'EINVAL', 22, () => reload(lab.link('tracked'), store, MINOR, {}, lab.client));
    await run('rm', `${mnt}/cow`);
    await refused(lab, 'ENOENT', 2, () => cowbird.reloadIncremental(lab.link('tracked'), store, MINOR, {}, lab.client));
    await run('umount', elsewhere);
    await cowbird.reloadIncremental(lab.link('tracked'), store, MINOR, {}, lab.client);
    assert.equal((await lab.status(MINOR)).error, undefined);
  });

  it('whatever a failed snapshot cannot do (EINVAL), and lets it be destroyed', async (t) => {
    const { lab, node, mnt } = await bench(t);
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { storeBytes: 4 * MIB }, lab.client);
    await fill(`${mnt}/a`, 2);
    await fill(`${mnt}/b`, 2);
    await run('dd', 'if=/dev/urandom', `of=${mnt}/a`, 'bs=1M', 'count=2', 'conv=notrunc,fsync', 'status=none');
    await run('rm', `${mnt}/b`);
    await fill(`${mnt}/c`, 40);
    await until('it failed', async () => (await lab.status(MINOR)).error === -27);
    await refused(lab, 'EINVAL', 22, () => cowbird.transitionToIncremental(MINOR, lab.client));
    await refused(lab, 'EINVAL', 22, () => cowbird.expandCowFile(MINOR, 10 * MIB, lab.client));
    await refused(lab, 'EINVAL', 22, () => cowbird.reconfigure(MINOR, 10 * MIB, lab.client));
    await refused(lab, 'EINVAL', 22, () => cowbird.reconfigureAutoExpand(MINOR, 10 * MIB, 0, lab.client));
    await cowbird.destroy(MINOR, lab.client);
    assert.ok(!existsSync(`${mnt}/.cow`));
  });

  it('a transition while somebody has the snapshot open (EBUSY, with the program’s name)', async (t) => {
    const { lab, node, mnt } = await bench(t);
    const snapshot = await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, STORE, lab.client);
    const reader = program(lab, 'sleep', ['30'], snapshot);
    for (const action of [cowbird.transitionToIncremental, cowbird.destroy]) {
      await assert.rejects(action(MINOR, lab.client), { code: 'EBUSY', message: /sleep/ });
      assert.equal((await lab.status(MINOR)).state, 3);
    }
    await reader();
    await cowbird.destroy(MINOR, lab.client);
  });
});

describe('attach and detach refuse', { skip: CANNOT }, () => {
  it('what another program has claimed for itself alone (EBUSY)', async (t) => {
    const { lab } = await bench(t);
    const loop = (await run('losetup', '-f', '--show', lab.image('other', 20 * MIB))).trim();
    lab.onEnd(() => run('losetup', '-d', loop));
    const claim =
      'import os, sys, time; fd = os.open(sys.argv[1], os.O_RDWR | os.O_EXCL); open(sys.argv[2], "w"); time.sleep(30)';
    const isClaimed = lab.path('claimed');
    const stop = program(lab, 'python3', ['-c', claim, loop, isClaimed]);
    await until('it is claimed', () => existsSync(isClaimed));
    await refused(lab, 'EBUSY', 16, () => cowbird.attach(loop, { name: 'claimed' }, lab.client));
    await stop();
  });

  it('a name that is taken (EEXIST), a bad one (EINVAL), the same image or node again (EBUSY)', async (t) => {
    const { lab, node } = await bench(t);
    const image = lab.image('other', 20 * MIB);
    await refused(lab, 'EEXIST', 17, () => cowbird.attach(image, { name: `volume-${lab.tag}` }, lab.client));
    await refused(lab, 'EINVAL', 22, () => cowbird.attach(image, { name: 'a/b' }, lab.client));
    await refused(lab, 'EBUSY', 16, () => cowbird.attach(lab.path('volume'), { name: 'twice' }, lab.client));
    await refused(lab, 'EBUSY', 16, () => cowbird.attach(node, { name: 'stacked' }, lab.client));
  });

  it('to detach or stop while mounted, tracked or open (EBUSY), and do it afterwards', async (t) => {
    const { lab, node, mnt } = await bench(t);
    await refused(lab, 'EBUSY', 16, () => cowbird.detach(node, lab.client));
    await refused(lab, 'EBUSY', 16, () => cowbird.stopDaemon({}, lab.client));
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, STORE, lab.client);
    await run('umount', mnt);
    await assert.rejects(cowbird.detach(node, lab.client), { code: 'EBUSY' });
    await cowbird.destroy(MINOR, lab.client);
    const stop = program(lab, 'sleep', ['30'], node);
    await assert.rejects(cowbird.detach(node, lab.client), { code: 'EBUSY', message: /sleep/ });
    await stop();
    await cowbird.detach(node, lab.client);
    assert.deepEqual(await cowbird.listVolumes(lab.client), []);
    assert.ok(!(await run('losetup', '-a')).includes(lab.folder));
  });
});
