/** The store: full, grown, trimmed around, written by others. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import * as cowbird from '../src/index.js';
import { CANNOT, copy, digestOf, fill, Lab, MIB, run, until } from './lab.js';

interface Bench {
  lab: Lab;
  node: string;
  mnt: string;
  image: string;
}

/** A mounted ext4 with a file of 30 MiB and a snapshot with a store of so many MiB, copied to an image. */
async function bench(t: TestContext, minor: number, storeMib: number, volumeMib = 160): Promise<Bench> {
  const lab = new Lab(t);
  const node = await lab.attached('volume', volumeMib * MIB);
  await lab.mkfs(node, 'ext4');
  const mnt = await lab.mount(node);
  await fill(`${mnt}/a`, 30);
  const snapshot = await cowbird.setupSnapshot(node, `${mnt}/.cow`, minor, { storeBytes: storeMib * MIB }, lab.client);
  const image = lab.path('image');
  await copy(snapshot, image);
  return { lab, node, mnt, image };
}

describe('the store', { skip: CANNOT }, () => {
  it('full: the snapshot fails with -27 and gives EIO, the volume goes on, and the chain is not lost', async (t) => {
    const { lab, mnt, image } = await bench(t, 110, 10);
    await fill(`${mnt}/a`, 20);
    await fill(`${mnt}/b`, 20);
    await until('the failure is reported', async () => (await lab.status(110)).error === -27);
    const status = await lab.status(110);
    assert.equal(status.state, 3);
    assert.match(status.error_reason ?? '', /full/);
    await assert.rejects(
      run('dd', 'if=/dev/cowbird110', 'of=/dev/null', 'bs=4096', 'count=1', 'iflag=direct'),
      /Input\/output error/,
    );
    await run('cmp', '-n', '1000', `${mnt}/b`, `${mnt}/b`);
    await assert.rejects(cowbird.transitionToIncremental(110, lab.client), { code: 'EINVAL' });
    const snapshot = await cowbird.transitionToSnapshot(110, `${mnt}/.cow2`, { storeBytes: 40 * MIB }, lab.client);
    const result = await cowbird.updateImageFromSnapshot({
      snapshot,
      cowFile: `${mnt}/.cow`,
      image,
      client: lab.client,
    });
    assert.equal(result.errors, 0);
    assert.equal(digestOf(image), digestOf(snapshot), 'the failed snapshot’s file lists every change');
  });

  it('elsewhere: goes with its snapshot when that is destroyed while dormant, and its path can be used again', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 64 * MIB);
    await lab.mkfs(node, 'ext4');
    const elsewhere = lab.path('elsewhere');
    mkdirSync(elsewhere);
    await run('mount', '-t', 'tmpfs', '-o', 'size=40m', 'tmpfs', elsewhere);
    lab.onEnd(() => run('umount', elsewhere));
    const store = join(elsewhere, 'cow');
    for (let round = 0; round < 2; round++) {
      const mnt = await lab.mount(node);
      await cowbird.setupSnapshot(node, store, 110, { storeBytes: 20 * MIB }, lab.client);
      await run('umount', mnt);
      await until('it is dormant', async () => (await lab.status(110)).state === 1);
      await cowbird.destroy(110, lab.client);
      assert.equal(existsSync(store), false, 'the file is left behind');
    }
  });

  it('elsewhere: is gone on with, and goes in the end, when its file system has come back as another device', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 64 * MIB);
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    await fill(`${mnt}/a`, 10);
    const [disk, other] = [lab.image('disk', 64 * MIB), lab.image('other', MIB)];
    const loop = (await run('losetup', '-f', '--show', disk)).trim();
    lab.onEnd(() => run('losetup', '-d', loop));
    await lab.mkfs(loop, 'ext4');
    const store = `${await lab.mount(loop, 'elsewhere')}/cow`;
    const snapshot = await cowbird.setupSnapshot(node, store, 110, { storeBytes: 20 * MIB }, lab.client);
    const before = digestOf(snapshot);
    await run('umount', mnt);
    await cowbird.stopDaemon({}, lab.client);
    const { dev } = statSync(store);
    await run('umount', lab.path('elsewhere'));
    await run('losetup', '-d', loop);
    await run('losetup', loop, other);
    const again = (await run('losetup', '-f', '--show', disk)).trim();
    lab.onEnd(() => run('losetup', '-d', again));
    await lab.mount(again, 'elsewhere');
    assert.notEqual(statSync(store).dev, dev);
    await cowbird.reloadSnapshot(lab.link('volume'), store, 110, {}, lab.client);
    await lab.mount(lab.link('volume'));
    await fill(`${mnt}/a`, 5);
    const { state, error } = await lab.status(110);
    assert.deepEqual({ state, error }, { state: 3, error: undefined });
    assert.equal(digestOf(snapshot), before);
    await cowbird.destroy(110, lab.client);
    assert.equal(existsSync(store), false, 'the file is left behind');
  });

  it('named through a bind mount of a folder is found where it lies in its file system, mounted or not', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 64 * MIB);
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    mkdirSync(`${mnt}/data`);
    const bound = lab.path('bound');
    mkdirSync(bound);
    await run('mount', '--bind', `${mnt}/data`, bound);
    lab.onEnd(() => run('umount', bound));
    await cowbird.setupSnapshot(node, `${bound}/cow`, 110, { storeBytes: 20 * MIB }, lab.client);
    assert.equal((await lab.status(110)).cow_file, '/data/cow');
    await run('umount', bound);
    await run('umount', mnt);
    await until('it is dormant', async () => (await lab.status(110)).state === 1);
    await lab.mount(node);
    const { state, error } = await lab.status(110);
    assert.deepEqual({ state, error }, { state: 3, error: undefined });
    await run('umount', mnt);
    await cowbird.destroy(110, lab.client);
    await lab.mount(node);
    await run('rm', `${mnt}/data/cow`);
  });

  it('grows by expand-cow-file, and the snapshot is what it was', async (t) => {
    const { lab, mnt, image } = await bench(t, 110, 20);
    // Deleted, not trimmed: blocks that the store may get hold what the snapshot must still show.
    await run('rm', `${mnt}/a`);
    await run('sync', '-f', mnt);
    const bytes = await cowbird.expandCowFile(110, 60 * MIB, lab.client);
    assert.equal(bytes, 80 * MIB);
    assert.equal(digestOf('/dev/cowbird110'), digestOf(image), 'after growing');
    await fill(`${mnt}/c`, 40);
    assert.equal(digestOf('/dev/cowbird110'), digestOf(image), 'after the new space was used');
    assert.equal((await lab.status(110)).error, undefined);
  });

  it('grows by itself when it may, and keeps the reserved space free', async (t) => {
    const { lab, mnt, image } = await bench(t, 110, 20);
    await cowbird.reconfigureAutoExpand(110, 20 * MIB, 10 * MIB, lab.client);
    for (let round = 0; round < 6; round++) {
      await run(
        'dd',
        'if=/dev/urandom',
        `of=${mnt}/a`,
        'bs=1M',
        'count=5',
        `seek=${round * 5}`,
        'conv=notrunc,fsync',
        'status=none',
      );
      await new Promise((resolve) => setTimeout(resolve, 400));
    }
    const status = await lab.status(110);
    assert.equal(status.error, undefined);
    assert.ok((status.cow_size_current ?? 0) > 20 * MIB, `${status.cow_size_current} bytes`);
    assert.deepEqual(status.auto_expand, { step_size_mib: 20, reserved_space_mib: 10 });
    assert.equal(digestOf('/dev/cowbird110'), digestOf(image));
  });

  it('of 40 MiB does not overflow when 300 MB of never-written space are trimmed', async (t) => {
    const { lab, mnt, image } = await bench(t, 110, 40, 400);
    const before = (await lab.status(110)).cow_used ?? 0;
    assert.match(await run('fstrim', '-v', mnt), /trimmed/);
    const status = await lab.status(110);
    assert.equal(status.error, undefined);
    assert.ok(
      (status.cow_used ?? 0) - before < 2 * MIB,
      `a trim of free space saved ${(status.cow_used ?? 0) - before} bytes`,
    );
    assert.equal(digestOf('/dev/cowbird110'), digestOf(image));
  });

  it('written by somebody else fails the snapshot loudly, and never the volume', async (t) => {
    const { lab, mnt } = await bench(t, 110, 40);
    await run('chattr', '-i', `${mnt}/.cow`);
    await run(
      'dd',
      'if=/dev/urandom',
      `of=${mnt}/.cow`,
      'bs=1M',
      'count=1',
      'conv=notrunc,fsync',
      'oflag=direct',
      'status=none',
    );
    await until('the failure is reported', async () => (await lab.status(110)).error === -117);
    await fill(`${mnt}/b`, 5);
  });

  it('reads as zeros in its own snapshot', async (t) => {
    const { lab, mnt, image } = await bench(t, 110, 40);
    const extents = (await run('filefrag', '-e', '-b4096', `${mnt}/.cow`)).matchAll(
      /^\s*\d+:\s*\d+\.\.\s*\d+:\s*(\d+)\.\.\s*(\d+):/gm,
    );
    const bytes = readFileSync(image);
    let seen = 0;
    for (const [, first, last] of extents) {
      const part = bytes.subarray(Number(first) * 4096, (Number(last) + 1) * 4096);
      assert.ok(part.every((byte) => byte === 0));
      seen += part.byteLength;
    }
    assert.ok(seen >= 40 * MIB, `${seen} bytes looked at`);
    assert.equal((await lab.status(110)).error, undefined);
  });
});
