/** The main job on real file systems, each with a busy writer. */
import assert from 'node:assert/strict';
import { describe, it, type TestContext } from 'node:test';
import * as cowbird from '../src/index.js';
import { CANNOT, copy, digestOf, fill, Lab, MIB, run } from './lab.js';

/** Two stores, the files and some room. */
const VOLUME_BYTES = 144 * MIB;
const SECTOR_BYTES = 512;
/** Of those that are written one by one: each costs a request. */
const MANY_SECTORS = 200;

async function nineSteps(t: TestContext, options: { fsType: string; minor: number; trim: boolean }): Promise<void> {
  const lab = new Lab(t);
  const { fsType, minor } = options;
  const node = await lab.attached('volume', VOLUME_BYTES);
  await lab.mkfs(node, fsType);
  const mnt = await lab.mount(node);
  await fill(`${mnt}/payload`, 20);
  const stopWriter = await lab.writer(mnt);
  const storeBytes = 40 * MIB;
  const snapshot = await cowbird.setupSnapshot(node, `${mnt}/.cow1`, minor, { storeBytes }, lab.client);
  const image = lab.path('image');
  await copy(snapshot, image);
  assert.equal(digestOf(snapshot), digestOf(image), 'two reads of one snapshot are equal');
  if (options.trim) await run('fstrim', mnt);
  assert.equal(digestOf(snapshot), digestOf(image), 'a trim changes nothing in the snapshot');
  await cowbird.transitionToIncremental(minor, lab.client);
  await fill(`${mnt}/more`, 5);
  if (options.trim) await run('fstrim', mnt);
  await cowbird.transitionToSnapshot(minor, `${mnt}/.cow2`, { storeBytes }, lab.client);
  const result = await cowbird.updateImageFromSnapshot({
    snapshot,
    cowFile: `${mnt}/.cow1`,
    image,
    client: lab.client,
  });
  assert.equal(result.errors, 0);
  assert.ok(result.changedBlocks < result.totalBlocks, 'not everything was copied');
  assert.equal(digestOf(image), digestOf(snapshot), 'the updated image is the second snapshot');
  const status = await lab.status(minor);
  assert.equal(status.seq_id, 2);
  assert.equal(status.error, undefined);
  await cowbird.destroy(minor, lab.client);
  await stopWriter();
  await checkCopy(lab, image, fsType);
}

/** Replay on a throw-away copy, then the file system's own check. */
async function checkCopy(lab: Lab, image: string, fsType: string): Promise<void> {
  const node = (await run('losetup', '-f', '--show', image)).trim();
  try {
    const at = await lab.mount(node, 'check', ...(fsType === 'xfs' ? ['-o', 'nouuid'] : []));
    await run('cmp', `${at}/payload`, `${lab.path('mnt')}/payload`);
    await run('umount', at);
    if (fsType === 'xfs') await run('xfs_repair', '-n', node);
    else await run('e2fsck', '-fn', node);
  } finally {
    await run('losetup', '-d', node);
  }
}

/** Most of it in large writes; its beginning, a part of its middle and its end in sectors, which are less than a block. */
async function overwriteAll(node: string, sizeBytes: number): Promise<void> {
  await fill(node, Math.floor(sizeBytes / MIB), 'oflag=direct');
  const sectors = sizeBytes / SECTOR_BYTES;
  for (const seek of [0, Math.floor(sectors / 2) - 3, sectors - MANY_SECTORS])
    await run(
      'dd',
      'if=/dev/urandom',
      `of=${node}`,
      `bs=${SECTOR_BYTES}`,
      `count=${MANY_SECTORS}`,
      `seek=${seek}`,
      'status=none',
      'oflag=direct',
    );
}

describe('the nine steps with a busy writer', { skip: CANNOT }, () => {
  it('on ext4, with fstrim in between', (t) => nineSteps(t, { fsType: 'ext4', minor: 100, trim: true }));
  it('on xfs, with fstrim in between', (t) => nineSteps(t, { fsType: 'xfs', minor: 100, trim: true }));
  it('on ext3', (t) => nineSteps(t, { fsType: 'ext3', minor: 100, trim: false }));
  it('on ext2', (t) => nineSteps(t, { fsType: 'ext2', minor: 100, trim: false }));
});

describe('a snapshot', { skip: CANNOT }, () => {
  it('equals a copy of the origin that was taken while the file system was frozen', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', VOLUME_BYTES);
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    await fill(`${mnt}/payload`, 10);
    await lab.writer(mnt);
    await new Promise((resolve) => setTimeout(resolve, 300));
    await run('fsfreeze', '-f', mnt);
    try {
      await copy(lab.path('volume'), lab.path('frozen'));
      await cowbird.setupSnapshot(node, `/dev/shm/cowbird-test-${process.pid}`, 101, {}, lab.client);
    } finally {
      await run('fsfreeze', '-u', mnt);
    }
    await fill(`${mnt}/payload`, 5);
    assert.equal(digestOf('/dev/cowbird101'), digestOf(lab.path('frozen')));
  });

  it('of a volume without a file system works with its store elsewhere, to the last sector of an odd size', async (t) => {
    const lab = new Lab(t);
    const sizeBytes = 20 * MIB + SECTOR_BYTES * 3;
    const node = await lab.attached('volume', sizeBytes);
    await overwriteAll(node, sizeBytes);
    const before = digestOf(lab.path('volume'));
    await cowbird.setupSnapshot(node, lab.path('store'), 102, { storeBytes: 30 * MIB }, lab.client);
    await overwriteAll(node, sizeBytes);
    assert.equal(digestOf('/dev/cowbird102'), before);
    assert.notEqual(digestOf(lab.path('volume')), before);
    assert.equal((await lab.status(102)).state, 3);
    const changes = await cowbird.changes(102, lab.client);
    assert.equal(changes.bytes, sizeBytes);
  });
});
