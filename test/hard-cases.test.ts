/** Cases that are easy to pass by luck, made hard: old contents under lazy zeros, online discard, crashes, short mounts. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { describe, it, type TestContext } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import * as cowbird from '../src/index.js';
import { crash } from './harness.js';
import { CANNOT, copy, digestOf, fill, Lab, MIB, run, succeeds, until } from './lab.js';

const MINOR = 160;
const SNAPSHOT = `/dev/cowbird${MINOR}`;
const BLOCK = 4096;
/** Two stores, the files and some room; the whole of it is read many times. */
const VOLUME_MIB = 128;
const STORE_MIB = 24;

interface Bench {
  lab: Lab;
  node: string;
  mnt: string;
  /** Copy of the first snapshot, made at once. */
  image: string;
}

/** A mounted ext4 with `a` (10 MiB) and `victim` (4 MiB), and its first snapshot, copied. */
async function bench(t: TestContext, storeMib = STORE_MIB): Promise<Bench> {
  const lab = new Lab(t);
  const node = await lab.attached('volume', VOLUME_MIB * MIB);
  await lab.mkfs(node, 'ext4');
  const mnt = await lab.mount(node);
  await fill(`${mnt}/a`, 10);
  await fill(`${mnt}/victim`, 4);
  await cowbird.setupSnapshot(node, `${mnt}/.cow1`, MINOR, { storeBytes: storeMib * MIB }, lab.client);
  const image = lab.path('image');
  await copy(SNAPSHOT, image);
  return { lab, node, mnt, image };
}

async function isActive({ lab }: Bench, state: number): Promise<void> {
  const status = await lab.status(MINOR);
  assert.equal(status.error, undefined, status.error_reason);
  assert.equal(status.state, state);
}

/** The next snapshot of the series, and the image brought up to it with the changes that the old COW file lists. */
async function nextBackup({ lab, mnt, image }: Bench): Promise<cowbird.UpdateImageResult> {
  const options = { storeBytes: STORE_MIB * MIB };
  const snapshot = await cowbird.transitionToSnapshot(MINOR, `${mnt}/.cow2`, options, lab.client);
  const cowFile = `${mnt}/.cow1`;
  const result = await cowbird.updateImageFromSnapshot({ snapshot, cowFile, image, client: lab.client });
  assert.equal(result.errors, 0);
  assert.ok(result.changedBlocks < result.totalBlocks / 2, `an increment, not everything: ${result.changedBlocks}`);
  assert.equal(digestOf(image), digestOf(snapshot), 'the updated image is the second snapshot');
  return result;
}

/** Where a file lies on its volume, as byte ranges. */
async function rangesOf(path: string): Promise<Array<{ offset: number; length: number }>> {
  const listing = await run('filefrag', '-e', `-b${BLOCK}`, path);
  const rows = [...listing.matchAll(/^\s*\d+:\s*\d+\.\.\s*\d+:\s*(\d+)\.\.\s*\d+:\s*(\d+):/gm)];
  assert.ok(rows.length > 0, listing);
  return rows.map(([, first, count]) => ({ offset: Number(first) * BLOCK, length: Number(count) * BLOCK }));
}

async function areMarked(lab: Lab, ranges: Array<{ offset: number; length: number }>): Promise<void> {
  const { extents } = await cowbird.changes(MINOR, lab.client);
  for (const { offset, length } of ranges) {
    const covered = extents.some((e) => e.offset <= offset && e.offset + e.length >= offset + length);
    assert.ok(covered, `${length} bytes at ${offset} are marked`);
  }
}

/** Umount, stop, start, reload, mount. */
async function throughACleanStop(b: Bench, reload: typeof cowbird.reloadSnapshot): Promise<void> {
  const { lab, mnt } = b;
  await run('umount', mnt);
  await cowbird.stopDaemon({}, lab.client);
  await cowbird.startDaemon(lab.client);
  // The lowest free loop device, which another one may be by now.
  b.node = await onlyNode(lab);
  await reload(b.node, '/.cow1', MINOR, {}, lab.client);
  await lab.mount(b.node);
}

async function onlyNode(lab: Lab): Promise<string> {
  const [volume] = await cowbird.listVolumes(lab.client);
  assert.ok(volume !== undefined, 'attached again');
  return volume.device;
}

describe('a snapshot', { skip: CANNOT }, () => {
  it('stays what it was while ext4 zeroes its inode tables lazily over old contents', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 300 * MIB);
    // Old contents everywhere, so that the zeros of the lazy initialisation really replace something.
    await fill(node, 300, 'oflag=direct');
    await run('mkfs.ext4', '-q', '-b', '4096', '-E', 'nodiscard,lazy_itable_init=1,lazy_journal_init=1', node);
    const mnt = await lab.mount(node, 'mnt', '-o', 'noinit_itable');
    await cowbird.setupSnapshot(node, lab.path('store'), MINOR, { storeBytes: 100 * MIB }, lab.client);
    const image = lab.path('image');
    await copy(SNAPSHOT, image);
    const marked = async (): Promise<number> => (await lab.status(MINOR)).nr_changed_blocks ?? 0;
    const before = await marked();
    await run('mount', '-o', 'remount,init_itable=0', mnt);
    // One kernel thread serves all file systems of the machine: another one's long pause holds this one up too.
    const zeroed = async (): Promise<boolean> => (await marked()) > before + 1_000;
    const isZeroed = await until('zeroed', zeroed, 12_000).then(
      () => true,
      () => false,
    );
    assert.equal(digestOf(SNAPSHOT), digestOf(image));
    assert.equal((await lab.status(MINOR)).error, undefined);
    if (!isZeroed)
      t.skip(
        `the kernel did not begin to zero the inode tables in time: equal all the same (${(await marked()) - before} blocks)`,
      );
  });

  it('stays what it was while a file system mounted with discard deletes files', async (t) => {
    const b = await bench(t);
    const ranges = await rangesOf(`${b.mnt}/victim`);
    await run('mount', '-o', 'remount,discard', b.mnt);
    await run('rm', `${b.mnt}/victim`);
    await run('sync', '-f', b.mnt);
    await until('the discard arrived', () =>
      areMarked(b.lab, ranges).then(
        () => true,
        () => false,
      ),
    );
    assert.equal(digestOf(SNAPSHOT), digestOf(b.image));
    await isActive(b, 3);
    await cowbird.transitionToIncremental(MINOR, b.lab.client);
    await nextBackup(b);
  });

  it('is the same in five reads beside a busy writer, its own COW file’s blocks too', async (t) => {
    // More than is free beside it: it cannot overflow.
    const b = await bench(t, 60);
    const stop = await b.lab.writer(b.mnt);
    for (let round = 0; round < 4; round++) {
      await pause(500);
      assert.equal(digestOf(SNAPSHOT), digestOf(b.image), `read ${round + 2}`);
    }
    await stop();
    assert.ok(((await b.lab.status(MINOR)).cow_used ?? 0) > MIB, 'the store was in use meanwhile');
    await isActive(b, 3);
  });
});

describe('a chain of backups', { skip: CANNOT }, () => {
  it('brings O_DIRECT writes to the unmounted node into the next image', async (t) => {
    const b = await bench(t);
    await cowbird.transitionToIncremental(MINOR, b.lab.client);
    const ranges = await rangesOf(`${b.mnt}/victim`);
    await run('umount', b.mnt);
    const seek = (ranges[0]?.offset ?? 0) / BLOCK;
    const target = [`of=${b.node}`, `bs=${BLOCK}`, `seek=${seek}`];
    await run('dd', 'if=/dev/urandom', ...target, 'count=2', 'oflag=direct', 'status=none');
    await areMarked(b.lab, [{ offset: seek * BLOCK, length: 2 * BLOCK }]);
    await b.lab.mount(b.node);
    await isActive(b, 2);
    await nextBackup(b);
  });

  // A reloaded series that no look has verified is not made clean at the stop, although its changes were marked.
  it('goes on over a mount that was too short to be noticed, and a clean stop after it', async (t) => {
    const b = await bench(t);
    await cowbird.transitionToIncremental(MINOR, b.lab.client);
    await throughACleanStop(b, cowbird.reloadIncremental);
    await fill(`${b.mnt}/a`, 2);
    await throughACleanStop(b, cowbird.reloadIncremental);
    await isActive(b, 2);
    await nextBackup(b);
  });

  it('goes on after everything crashed while it was dormant: its COW file was clean by then', async (t) => {
    const b = await bench(t);
    await cowbird.transitionToIncremental(MINOR, b.lab.client);
    await run('umount', b.mnt);
    await pause(1_000);
    await crash(b.lab);
    await cowbird.startDaemon(b.lab.client);
    b.node = await onlyNode(b.lab);
    await cowbird.reloadIncremental(b.node, '/.cow1', MINOR, {}, b.lab.client);
    await b.lab.mount(b.node);
    await isActive(b, 2);
    await nextBackup(b);
  });

  it('is refused, with the reason, after everything crashed while it was mounted, and the files are intact', async (t) => {
    const b = await bench(t);
    await cowbird.transitionToIncremental(MINOR, b.lab.client);
    await fill(`${b.mnt}/a`, 2);
    const digest = digestOf(`${b.mnt}/victim`);
    await crash(b.lab);
    await until('unmounted', () => succeeds('umount', b.mnt));
    await cowbird.startDaemon(b.lab.client);
    b.node = await onlyNode(b.lab);
    await cowbird.reloadIncremental(b.node, '/.cow1', MINOR, {}, b.lab.client);
    await b.lab.mount(b.node);
    const status = await b.lab.status(MINOR);
    assert.equal(status.error, -22);
    assert.match(status.error_reason ?? '', /unclean|changes is whole/);
    const next = cowbird.transitionToSnapshot(MINOR, `${b.mnt}/.cow2`, {}, b.lab.client);
    await assert.rejects(next, { code: 'EINVAL' });
    assert.equal(digestOf(`${b.mnt}/victim`), digest);
  });

  it('has a device for its snapshot although the engine died in the transition', async (t) => {
    const b = await bench(t);
    const { client } = b.lab;
    await cowbird.transitionToIncremental(MINOR, client);
    const engine = (await cowbird.daemonStatus(client))?.enginePid;
    assert.ok(typeof engine === 'number');
    const options = { storeBytes: 40 * MIB };
    const outcome = cowbird.transitionToSnapshot(MINOR, `${b.mnt}/.cow2`, options, client).catch(() => undefined);
    // The switch came after 130 to 180 ms here, the device after 300.
    await pause(240);
    process.kill(engine, 'SIGKILL');
    await outcome;
    await until('info answers', () =>
      b.lab.status(MINOR).then(
        () => true,
        () => false,
      ),
    );
    const { state, seq_id: sequence } = await b.lab.status(MINOR);
    if (state === 2) return;
    assert.deepEqual({ state, sequence }, { state: 3, sequence: 2 });
    await until('the snapshot has its device', () => existsSync(SNAPSHOT), 3_000);
  });
});

describe('a volume', { skip: CANNOT }, () => {
  it('is attached although another daemon crashed and left its devices', async (t) => {
    const b = await bench(t);
    await run('umount', b.mnt);
    await crash(b.lab);
    const other = new Lab(t);
    b.lab.onEnd(() => cowbird.startDaemon(b.lab.client));
    const name = `beside-${process.pid}`;
    const volume = await cowbird.attach(other.image('beside', 20 * MIB), { name }, other.client);
    await fill(volume.device, 2, 'oflag=direct');
  });
});
