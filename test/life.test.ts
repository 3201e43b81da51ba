/** Umount, mount, namespaces, stop, start, reload. */
import assert from 'node:assert/strict';
import { describe, it, type TestContext } from 'node:test';
import { decodeHeader } from '../src/cow/header.js';
import * as cowbird from '../src/index.js';
import { otherNamespace, partitioned } from './harness.js';
import { CANNOT, copy, digestOf, fill, Lab, MIB, run, until } from './lab.js';

const MINOR = 120;
/** The whole of it is read in most of these tests. */
const VOLUME_MIB = 128;

interface Bench {
  lab: Lab;
  node: string;
  mnt: string;
  image: string;
}

async function bench(t: TestContext, fsType = 'ext4'): Promise<Bench> {
  const lab = new Lab(t);
  const node = await lab.attached('volume', VOLUME_MIB * MIB);
  await lab.mkfs(node, fsType);
  const mnt = await lab.mount(node);
  await fill(`${mnt}/a`, 10);
  await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { storeBytes: 30 * MIB }, lab.client);
  await copy('/dev/cowbird120', lab.path('image'));
  await fill(`${mnt}/a`, 5);
  return { lab, node, mnt, image: lab.path('image') };
}

async function headerOnDisk(lab: Lab, node: string): Promise<ReturnType<typeof decodeHeader>> {
  const out = lab.path('cow.dump');
  await run('debugfs', '-R', `dump /.cow ${out}`, node);
  const { readFileSync } = await import('node:fs');
  return decodeHeader(readFileSync(out).subarray(0, 4096));
}

describe('a tracked volume', { skip: CANNOT }, () => {
  it('goes dormant with its umount, is clean within a second, stays readable, and comes back with a mount', async (t) => {
    const { lab, node, mnt, image } = await bench(t);
    assert.equal((await lab.status(MINOR)).state, 3);
    await run('umount', mnt);
    assert.equal((await lab.status(MINOR)).state, 1, 'at the moment of the call');
    await until('the file on disk says clean', async () => (await headerOnDisk(lab, node)).clean, 1_000);
    assert.equal((await headerOnDisk(lab, node)).changedBlocks, (await lab.status(MINOR)).nr_changed_blocks);
    assert.equal(digestOf('/dev/cowbird120'), digestOf(image));
    await lab.mount(node);
    assert.equal((await lab.status(MINOR)).state, 3);
    await fill(`${mnt}/b`, 5);
    assert.equal(digestOf('/dev/cowbird120'), digestOf(image));
    await cowbird.transitionToIncremental(MINOR, lab.client);
    await run('umount', mnt);
    assert.equal((await lab.status(MINOR)).state, 0);
  });

  it('stays active while one of two mounts is left', async (t) => {
    const { lab, mnt } = await bench(t);
    const other = lab.path('other');
    await run('mkdir', other);
    await run('mount', '--bind', mnt, other);
    lab.onEnd(() => run('umount', other));
    await run('umount', mnt);
    const status = await lab.status(MINOR);
    assert.equal(status.state, 3);
    assert.equal(status.error, undefined);
  });

  it('stays active while another mount namespace has it mounted', async (t) => {
    const { lab, mnt } = await bench(t);
    const holder = await otherNamespace(lab, mnt);
    await run('umount', mnt);
    assert.equal((await lab.status(MINOR)).state, 3);
    await holder.end();
    await until('it is dormant', async () => (await lab.status(MINOR)).state === 1);
  });

  it('marks O_DIRECT writes to the node while it is unmounted, and the file on disk stops being clean first', async (t) => {
    const { lab, node, mnt } = await bench(t);
    await cowbird.transitionToIncremental(MINOR, lab.client);
    await run('umount', mnt);
    await until('clean', async () => (await headerOnDisk(lab, node)).clean);
    const last = VOLUME_MIB * 256 - 3;
    await run(
      'dd',
      'if=/dev/urandom',
      `of=${node}`,
      'bs=4096',
      'count=2',
      `seek=${last}`,
      'oflag=direct',
      'status=none',
    );
    const { extents } = await cowbird.changes(MINOR, lab.client);
    const covered = extents.some(({ offset, length }) => offset <= last * 4096 && offset + length >= (last + 2) * 4096);
    assert.ok(covered, JSON.stringify(extents.slice(-3)));
    await until('clean again', async () => (await headerOnDisk(lab, node)).clean);
  });
});

describe('after a clean stop', { skip: CANNOT }, () => {
  for (const fsType of ['ext4', 'xfs']) {
    it(`reload-snapshot goes on where it was, on ${fsType}`, async (t) => {
      const { lab, mnt, image } = await bench(t, fsType);
      await assert.rejects(cowbird.stopDaemon({}, lab.client), { code: 'EBUSY' }, 'refused while mounted');
      await run('umount', mnt);
      await cowbird.stopDaemon({}, lab.client);
      await cowbird.startDaemon(lab.client);
      const [volume] = await cowbird.listVolumes(lab.client);
      assert.equal(volume?.link, lab.link('volume'), 'attached again');
      await cowbird.reloadSnapshot(lab.link('volume'), '/.cow', MINOR, {}, lab.client);
      const unverified = await lab.status(MINOR);
      assert.equal(unverified.state, 5);
      assert.equal(unverified.uuid, undefined);
      await lab.mount(lab.link('volume'));
      const status = await lab.status(MINOR);
      assert.equal(status.state, 3);
      assert.equal(status.error, undefined);
      assert.equal(digestOf('/dev/cowbird120'), digestOf(image), 'also what the umount and the mount wrote');
      await fill(`${mnt}/c`, 5);
      assert.equal(digestOf('/dev/cowbird120'), digestOf(image));
      await run('umount', mnt);
      await lab.mount(lab.link('volume'));
      assert.equal((await lab.status(MINOR)).state, 3, 'umount and mount after a reload');
    });
  }

  it('reload-incremental goes on, and the next image is right', async (t) => {
    const { lab, mnt, image } = await bench(t);
    await cowbird.transitionToIncremental(MINOR, lab.client);
    await run('umount', mnt);
    await cowbird.stopDaemon({}, lab.client);
    await cowbird.reloadIncremental(lab.link('volume'), '/.cow', MINOR, {}, lab.client);
    await lab.mount(lab.link('volume'));
    await fill(`${mnt}/c`, 5);
    assert.equal((await lab.status(MINOR)).state, 2);
    // Of the usual size: that of the closed file, which has its list only, would be too small.
    const snapshot = await cowbird.transitionToSnapshot(MINOR, `${mnt}/.cow2`, {}, lab.client);
    await cowbird.updateImageFromSnapshot({ snapshot, cowFile: `${mnt}/.cow`, image, client: lab.client });
    assert.equal(digestOf(image), digestOf(snapshot));
  });

  for (const fsType of ['ext4', 'xfs']) {
    it(`direct use of the origin is noticed, on ${fsType}`, async (t) => {
      const { lab, mnt } = await bench(t, fsType);
      await cowbird.transitionToIncremental(MINOR, lab.client);
      await run('umount', mnt);
      await cowbird.stopDaemon({}, lab.client);
      const direct = await lab.mount(lab.path('volume'), 'direct', '-o', 'loop');
      await run('touch', `${direct}/x`);
      await run('umount', direct);
      await cowbird.reloadIncremental(lab.link('volume'), '/.cow', MINOR, {}, lab.client);
      const status = await lab.status(MINOR);
      assert.equal(status.error, -22);
      assert.equal(status.state, 4);
      assert.match(status.error_reason ?? '', /used without Cowbird/);
      await lab.mount(lab.link('volume'));
      await assert.rejects(cowbird.transitionToSnapshot(MINOR, `${mnt}/.cow2`, {}, lab.client), { code: 'EINVAL' });
    });
  }

  it('direct use of a partition is noticed, though the partition table stays as it is', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 300 * MIB);
    const part = await partitioned(lab, node);
    await lab.mkfs(part, 'ext4');
    const mnt = await lab.mount(part);
    await fill(`${mnt}/a`, 4);
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { storeBytes: 40 * MIB }, lab.client);
    await cowbird.transitionToIncremental(MINOR, lab.client);
    await run('umount', mnt);
    for (const isUsed of [false, true]) {
      // At once: what was made clean is what the partition had then.
      await run('delpart', node, '1').catch(() => '');
      await cowbird.stopDaemon({}, lab.client);
      if (isUsed) {
        const direct = await lab.mount(lab.path('volume'), 'direct', '-o', `loop,offset=${MIB}`);
        await run('touch', `${direct}/x`);
        await run('umount', direct);
      }
      await cowbird.reloadIncremental(lab.link('volume'), '/.cow', MINOR, {}, lab.client);
      assert.equal((await lab.status(MINOR)).error, isUsed ? -22 : undefined);
    }
    assert.match((await lab.status(MINOR)).error_reason ?? '', /used without Cowbird/);
  });

  it('what another series has tracked meanwhile is not missing from the first one, which is refused', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 64 * MIB);
    await cowbird.setupSnapshot(node, lab.path('first'), MINOR, { storeBytes: 20 * MIB }, lab.client);
    await cowbird.transitionToIncremental(MINOR, lab.client);
    await cowbird.stopDaemon({}, lab.client);
    await cowbird.startDaemon(lab.client);
    await cowbird.setupSnapshot(lab.link('volume'), lab.path('second'), MINOR, { storeBytes: 20 * MIB }, lab.client);
    await fill(lab.link('volume'), 1, 'seek=20', 'oflag=direct');
    await cowbird.destroy(MINOR, lab.client);
    await cowbird.reloadIncremental(lab.link('volume'), lab.path('first'), MINOR, {}, lab.client);
    assert.match((await lab.status(MINOR)).error_reason ?? '', /written before it was reloaded/);
  });

  it('a file that does not exist shows as -2 after the mount, an unknown one as -22', async (t) => {
    const { lab, mnt } = await bench(t);
    await cowbird.destroy(MINOR, lab.client);
    await run('umount', mnt);
    await cowbird.reloadSnapshot(lab.link('volume'), '/nothing', MINOR, {}, lab.client);
    assert.equal((await lab.status(MINOR)).state, 5);
    await lab.mount(lab.link('volume'));
    assert.equal((await lab.status(MINOR)).error, -2);
    await cowbird.destroy(MINOR, lab.client);
    await run('umount', mnt);
    await cowbird.reloadSnapshot(lab.link('volume'), '/a', MINOR, {}, lab.client);
    await lab.mount(lab.link('volume'));
    assert.equal((await lab.status(MINOR)).error, -22);
  });
});
