/** Bad input gets the errno that the peer's users know, and leaves nothing behind. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, unlinkSync, writeFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import * as cowbird from '../src/index.js';
import { boundLoops } from '../src/sys/blkdev.js';
import { otherNamespace } from './harness.js';
import { CANNOT, fill, Lab, MIB, run } from './lab.js';

const MINOR = 130;

describe('attach refuses', { skip: CANNOT }, () => {
  it('what is not there, is no disk, has a name that is taken, or is attached already', async (t) => {
    const lab = new Lab(t);
    const image = lab.image('volume', 20 * MIB);
    const name = `taken-${process.pid}`;
    await assert.rejects(cowbird.attach(lab.path('nothing'), {}, lab.client), { code: 'ENOENT' });
    await assert.rejects(cowbird.attach(lab.folder, {}, lab.client), { code: 'ENOTBLK' });
    await assert.rejects(cowbird.attach(image, { name: 'a b' }, lab.client), { code: 'EINVAL' });
    const { device } = await cowbird.attach(image, { name }, lab.client);
    await assert.rejects(cowbird.attach(image, { name: 'other' }, lab.client), { code: 'EBUSY' });
    await assert.rejects(cowbird.attach(lab.image('second', 20 * MIB), { name }, lab.client), { code: 'EEXIST' });
    await assert.rejects(cowbird.attach(device, {}, lab.client), { code: 'EBUSY' });
    assert.equal((await cowbird.listVolumes(lab.client)).length, 1);
  });

  it('an origin that is behind another loop device, mounted, or locked by another Cowbird', async (t) => {
    const lab = new Lab(t);
    const image = lab.image('volume', 20 * MIB);
    const loop = (await run('losetup', '-f', '--show', image)).trim();
    lab.onEnd(() => run('losetup', '-d', loop));
    await assert.rejects(cowbird.attach(image, {}, lab.client), { code: 'EBUSY', message: new RegExp(loop) });
    await run('mkfs.ext4', '-q', loop);
    await lab.mount(loop);
    await assert.rejects(cowbird.attach(loop, { name: 'x' }, lab.client), {
      code: 'EBUSY',
      message: /mounted or claimed/,
    });
    const other = new Lab(t);
    const shared = lab.image('shared', 20 * MIB);
    await cowbird.attach(shared, { name: `shared-${process.pid}` }, lab.client);
    await assert.rejects(cowbird.attach(shared, { name: 'y' }, other.client), { code: 'EBUSY' });
    assert.deepEqual(await cowbird.listVolumes(other.client), []);
  });

  it('a qcow2 image, unless it is told that these are raw bytes', async (t) => {
    const lab = new Lab(t);
    const image = lab.image('volume', 20 * MIB);
    await run('sh', '-c', `printf 'QFI\\373' | dd of=${image} conv=notrunc status=none`);
    await assert.rejects(cowbird.attach(image, {}, lab.client), { code: 'EINVAL', message: /--raw/ });
    await cowbird.attach(image, { raw: true, name: `raw-${process.pid}` }, lab.client);
  });

  it('the disk that holds the program itself', async (t) => {
    const lab = new Lab(t);
    const source = (await run('findmnt', '-no', 'SOURCE', '--target', process.execPath)).trim();
    if (!source.startsWith('/dev/')) {
      t.skip(`the program lies on ${source}`);
      return;
    }
    await assert.rejects(cowbird.attach(source, { name: 'own' }, lab.client), { code: 'EBUSY' });
  });
});

describe('detach refuses', { skip: CANNOT }, () => {
  it('while mounted, open or tracked, naming the holder, and returns when the node is free', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 100 * MIB);
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    await assert.rejects(cowbird.detach(node, lab.client), { code: 'EBUSY', message: new RegExp(mnt) });
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, {}, lab.client);
    await assert.rejects(cowbird.detach(node, lab.client), { code: 'EBUSY', message: /minor 130/ });
    await cowbird.destroy(MINOR, lab.client);
    await run('umount', mnt);
    await cowbird.detach(node, lab.client);
    assert.ok(!boundLoops().some(({ backingFile }) => backingFile.startsWith(lab.folder)), 'free at once');
    await assert.rejects(cowbird.detach(node, lab.client), { code: 'ENOENT' });
    assert.deepEqual(
      readdirSync(lab.path('run/fuse')).filter(
        (name) =>
          existsSync(`/proc/self/mounts`) &&
          readFileSync('/proc/self/mounts', 'utf8').includes(`${lab.folder}/run/fuse/${name} `),
      ),
      [],
    );
  });

  it('while another mount namespace has it, but for one that ends in a moment', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 100 * MIB);
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    const holder = await otherNamespace(lab, mnt);
    await run('umount', mnt);
    await assert.rejects(cowbird.detach(node, lab.client), {
      code: 'EBUSY',
      message: new RegExp(`namespace of pid ${holder.pid}: unmount it first`),
    });
    setTimeout(() => void holder.end(), 500);
    await cowbird.detach(node, lab.client);
  });
});

describe('setup-snapshot refuses', { skip: CANNOT }, () => {
  it('each bad argument with its errno, and leaves no file and no device', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 200 * MIB);
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    await fill(`${mnt}/old`, 1);
    const before = readdirSync(mnt);
    const setup = (device: string, cowFile: string, options: cowbird.SetupOptions = {}): Promise<string> =>
      cowbird.setupSnapshot(device, cowFile, MINOR, options, lab.client);
    const cow = `${mnt}/.cow`;
    await assert.rejects(setup(lab.path('nothing'), cow), { code: 'ENOENT' });
    await assert.rejects(setup(lab.folder, cow), { code: 'ENOTBLK' });
    await assert.rejects(setup('/dev/null', cow), { code: 'ENOTBLK' });
    await assert.rejects(setup('', cow), { code: 'EINVAL' });
    await assert.rejects(setup(node, mnt), { code: 'EISDIR' });
    await assert.rejects(setup(node, `${mnt}/missing/.cow`), { code: 'ENOENT' });
    await assert.rejects(setup(node, `${mnt}/old`), { code: 'EEXIST' });
    await assert.rejects(setup(node, cow, { storeBytes: 10_000 * MIB }), { code: 'ENOSPC' });
    await assert.rejects(setup(node, cow, { storeBytes: 4096 }), { code: 'EINVAL' });
    await assert.rejects(setup(node, lab.path('elsewhere'), { onVolumeOnly: true }), { code: 'EINVAL' });
    await assert.rejects(cowbird.setupSnapshot(node, cow, 256, {}, lab.client), { code: 'EINVAL' });
    assert.deepEqual(readdirSync(mnt), before);
    assert.deepEqual((await cowbird.info(undefined, lab.client)).devices, []);
    await run('mount', '-o', 'remount,ro', mnt);
    await assert.rejects(setup(node, lab.path('elsewhere')), { code: 'EINVAL', message: /read-only/ });
    await run('umount', mnt);
    await assert.rejects(setup(node, cow), { code: 'EINVAL', message: /not mounted/ });
    assert.ok(!existsSync('/dev/cowbird130'));
  });

  it('a minor that is in use, a volume that is tracked, and a link that is somebody else’s', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 200 * MIB);
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    const second = await lab.attached('second', 20 * MIB);
    writeFileSync('/dev/cowbird131', '');
    lab.onEnd(async () => unlinkSync('/dev/cowbird131'));
    await assert.rejects(cowbird.setupSnapshot(node, `${mnt}/.cow`, 131, {}, lab.client), { code: 'EBUSY' });
    assert.equal(readFileSync('/dev/cowbird131', 'utf8'), '');
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, {}, lab.client);
    await assert.rejects(cowbird.setupSnapshot(second, lab.path('s'), MINOR, {}, lab.client), { code: 'EBUSY' });
    await assert.rejects(cowbird.setupSnapshot(node, `${mnt}/.c2`, 132, {}, lab.client), { code: 'EINVAL' });
    await assert.rejects(cowbird.reloadSnapshot(node, '/.cow', 132, {}, lab.client), { code: 'EINVAL' });
    await assert.rejects(cowbird.transitionToSnapshot(MINOR, `${mnt}/.c2`, {}, lab.client), { code: 'EINVAL' });
    await cowbird.transitionToIncremental(MINOR, lab.client);
    await assert.rejects(cowbird.transitionToIncremental(MINOR, lab.client), { code: 'EINVAL' });
    await assert.rejects(cowbird.expandCowFile(MINOR, MIB, lab.client), { code: 'EINVAL' });
    await assert.rejects(cowbird.transitionToSnapshot(MINOR, `${mnt}/.cow`, {}, lab.client), { code: 'EPERM' });
    await assert.rejects(cowbird.transitionToSnapshot(MINOR, mnt, {}, lab.client), { code: 'EISDIR' });
    assert.equal((await lab.status(MINOR)).state, 2, 'and goes on tracking');
    await assert.rejects(cowbird.destroy(199, lab.client), { code: 'ENOENT' });
    await assert.rejects(cowbird.reconfigure(199, 1, lab.client), { code: 'ENOENT' });
    await assert.rejects(cowbird.changes(199, lab.client), { code: 'ENOENT' });
  });

  it('a store that it would have to serve itself, on btrfs, or in blocks that are not aligned', async (t) => {
    const lab = new Lab(t);
    const first = await lab.attached('first', 200 * MIB);
    const second = await lab.attached('second', 300 * MIB);
    await lab.mkfs(first, 'ext4');
    const mnt = await lab.mount(first, 'first-mnt');
    await assert.rejects(cowbird.setupSnapshot(second, `${mnt}/.cow`, MINOR, {}, lab.client), { code: 'EINVAL' });
    await run('mkfs.btrfs', '-q', second);
    const btrfs = await lab.mount(second, 'btrfs-mnt');
    await assert.rejects(cowbird.setupSnapshot(second, `${btrfs}/.cow`, MINOR, {}, lab.client), {
      code: 'EINVAL',
      message: /btrfs/,
    });
    const third = await lab.attached('third', 100 * MIB);
    await run('mkfs.ext4', '-q', '-b', '1024', third);
    const small = await lab.mount(third, 'small-mnt');
    await assert.rejects(cowbird.setupSnapshot(third, `${small}/.cow`, MINOR, {}, lab.client), {
      code: 'EINVAL',
      message: /4096/,
    });
    assert.ok(!existsSync(`${small}/.cow`));
  });

  it('to end a snapshot that is open or mounted, naming the holder', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 200 * MIB);
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, {}, lab.client);
    const view = lab.path('view');
    mkdirSync(view);
    const { device } = await cowbird.device(String(MINOR), { client: lab.client });
    assert.equal(device, realpathSync('/dev/cowbird130'));
    await cowbird.mount(String(MINOR), view, { client: lab.client });
    await assert.rejects(cowbird.destroy(MINOR, lab.client), { code: 'EBUSY', message: new RegExp(view) });
    await assert.rejects(cowbird.transitionToIncremental(MINOR, lab.client), { code: 'EBUSY' });
    await run('umount', view);
    await assert.rejects(run('dd', 'if=/dev/zero', 'of=/dev/cowbird130', 'bs=4096', 'count=1', 'oflag=direct'));
    await cowbird.destroy(MINOR, lab.client);
    assert.ok(!existsSync(`${mnt}/.cow`), 'the current COW file is deleted');
  });
});
