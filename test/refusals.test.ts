/** What is refused, with the errno of the field's tools, and that nothing is left behind by it. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { describe, it, type TestContext } from 'node:test';
import * as cowbird from '../src/index.js';
import { CANNOT, fill, Lab, MIB, run } from './lab.js';

const MINOR = 140;
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

/** Everything that an operation could leave: volumes, minors, links, loop devices, mounts, files beside the COW file. */
async function traces(lab: Lab): Promise<string[]> {
  const volumes = await cowbird.listVolumes(lab.client);
  const { devices } = await cowbird.info(undefined, lab.client);
  const links = readdirSync('/dev').filter((name) => /^(cowbird|datto|elastio-snap)14\d$/.test(name));
  const named = existsSync('/dev/cowbird') ? readdirSync('/dev/cowbird') : [];
  const loops = (await run('losetup', '-l', '-n', '-O', 'NAME,BACK-FILE')).split('\n');
  const mounts = readFileSync('/proc/self/mounts', 'utf8').split('\n');
  const folders = [lab.folder, lab.path('mnt'), lab.path('run/fuse')].filter(existsSync);
  return [
    ...volumes.map(({ name, minor, mode }) => `volume ${name} ${minor} ${mode}`),
    ...devices.map(({ minor, state, error }) => `minor ${minor} ${state} ${error}`),
    ...links.map((name) => `/dev/${name} -> ${readlinkSync(`/dev/${name}`)}`),
    ...named.filter((name) => name.endsWith(`-${process.pid}`)),
    ...[...loops, ...mounts].filter((line) => line.includes(lab.folder)).map((line) => line.replace(/\s+/g, ' ')),
    ...folders.flatMap((folder) => readdirSync(folder).map((name) => `${folder}/${name}`)),
  ].sort();
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

describe('setup-snapshot refuses', { skip: CANNOT }, () => {
  it('a minor in use (EBUSY), a volume that is tracked already (EBUSY), and a minor above 255 (EINVAL)', async (t) => {
    const { lab, node, mnt } = await bench(t);
    const other = await lab.attached('other', 50 * MIB);
    await lab.mkfs(other, 'ext4');
    const otherMount = await lab.mount(other, 'mnt-other');
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, STORE, lab.client);
    await refused(lab, 'EBUSY', 16, () =>
      cowbird.setupSnapshot(other, `${otherMount}/.cow`, MINOR, { storeBytes: 5 * MIB }, lab.client),
    );
    assert.ok(!existsSync(`${otherMount}/.cow`));
    await refused(lab, 'EBUSY', 16, () =>
      cowbird.setupSnapshot(node, `${mnt}/.cow2`, MINOR + 1, STORE, lab.client),
    );
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
    writeFileSync('/dev/datto141', 'somebody else’s');
    lab.onEnd(() => run('rm', '-f', '/dev/datto141'));
    const action = () =>
      cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR + 1, { ...STORE, alias: 'datto' }, lab.client);
    await assert.rejects(action(), { code: 'EBUSY' });
    assert.equal(readFileSync('/dev/datto141', 'utf8'), 'somebody else’s');
    assert.ok(!existsSync('/dev/cowbird141'));
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

  it('a transition from the wrong mode (EINVAL) and one onto an existing path (EEXIST)', async (t) => {
    const { lab, node, mnt } = await bench(t);
    writeFileSync(`${mnt}/mine`, 'precious');
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, STORE, lab.client);
    await refused(lab, 'EINVAL', 22, () => cowbird.transitionToSnapshot(MINOR, `${mnt}/.cow2`, STORE, lab.client));
    await cowbird.transitionToIncremental(MINOR, lab.client);
    await refused(lab, 'EINVAL', 22, () => cowbird.transitionToIncremental(MINOR, lab.client));
    await refused(lab, 'EINVAL', 22, () => cowbird.expandCowFile(MINOR, 10 * MIB, lab.client));
    await refused(lab, 'EEXIST', 17, () => cowbird.transitionToSnapshot(MINOR, `${mnt}/mine`, STORE, lab.client));
    await refused(lab, 'EEXIST', 17, () => cowbird.transitionToSnapshot(MINOR, `${mnt}/.cow`, STORE, lab.client));
    assert.equal(readFileSync(`${mnt}/mine`, 'utf8'), 'precious');
    assert.equal((await lab.status(MINOR)).state, 2, 'a refused transition ends nothing');
    await cowbird.destroy(MINOR, lab.client);
  });

  it('a transition while somebody has the snapshot open (EBUSY, with the program’s name)', async (t) => {
    const { lab, node, mnt } = await bench(t);
    const snapshot = await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, STORE, lab.client);
    const reader = lab.program('sleep', ['30'], snapshot);
    for (const action of [cowbird.transitionToIncremental, cowbird.destroy]) {
      await assert.rejects(action(MINOR, lab.client), { code: 'EBUSY', message: /sleep/ });
      assert.equal((await lab.status(MINOR)).state, 3);
    }
    await reader();
    await cowbird.destroy(MINOR, lab.client);
  });
});
