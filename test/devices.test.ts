/** A volume is a real block device to everything that uses one. */
import assert from 'node:assert/strict';
import { closeSync, existsSync, mkdirSync, openSync, readlinkSync, readSync, rmSync, symlinkSync } from 'node:fs';
import { describe, it } from 'node:test';
import * as cowbird from '../src/index.js';
import { partitioned } from './harness.js';
import { armFailPoint, killEngine, restarts, untilRestarted, WITH_FAIL_POINTS } from './killing.js';
import { CANNOT, copy, digestOf, fill, Lab, MIB, run, succeeds, until } from './lab.js';

const MINOR = 140;

/** A mounted volume whose snapshot was taken, told as failed: there was no room in the state directory. */
async function failedBehindSwitch(lab: Lab): Promise<{ node: string; mnt: string }> {
  const state = lab.path('state');
  mkdirSync(state);
  await run('mount', '-t', 'tmpfs', '-o', 'size=1m,mode=700', 'none', state);
  lab.onEnd(() => succeeds('umount', '-l', state));
  const node = await lab.attached('volume', 100 * MIB);
  await lab.mkfs(node, 'ext4');
  const mnt = await lab.mount(node);
  await succeeds('dd', 'if=/dev/zero', `of=${state}/filler`, 'bs=4k', 'status=none');
  await assert.rejects(cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { storeBytes: 20 * MIB }, lab.client), {
    code: 'ENOSPC',
  });
  rmSync(`${state}/filler`);
  return { node, mnt };
}

describe('a volume', { skip: CANNOT }, () => {
  it('keeps what fio writes to it and to a file system on it, verified, with a snapshot beside', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 300 * MIB);
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    await fill(`${mnt}/a`, 20);
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { storeBytes: 100 * MIB }, lab.client);
    const before = digestOf('/dev/cowbird140');
    const fio = [
      '--ioengine=libaio',
      '--direct=1',
      '--iodepth=16',
      '--verify=crc32c',
      '--do_verify=1',
      '--verify_state_save=0',
      '--size=40M',
      '--output-format=terse',
    ];
    await run(
      'fio',
      '--name=v',
      `--directory=${mnt}`,
      '--rw=randwrite',
      '--bsrange=512-128k',
      '--bs_unaligned=0',
      '--blockalign=512',
      ...fio,
    );
    assert.equal(digestOf('/dev/cowbird140'), before);
    assert.equal((await lab.status(MINOR)).error, undefined);
  });

  it('leaves zeros on the origin after blkdiscard, in every mode', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 64 * MIB);
    const origin = lab.path('volume');
    const isZero = (offset: number, lengthBytes: number): boolean => {
      const fd = openSync(origin, 'r');
      const bytes = Buffer.alloc(lengthBytes, 1);
      readSync(fd, bytes, 0, lengthBytes, offset);
      closeSync(fd);
      return bytes.every((byte) => byte === 0);
    };
    await fill(node, 60, 'oflag=direct');
    await run('blkdiscard', '-o', String(MIB), '-l', String(MIB), node);
    assert.ok(isZero(MIB, MIB), 'passthrough');
    await cowbird.setupSnapshot(node, lab.path('store'), MINOR, { storeBytes: 40 * MIB }, lab.client);
    await copy('/dev/cowbird140', lab.path('image'));
    await run('blkdiscard', '-o', String(4 * MIB), '-l', String(2 * MIB), node);
    await run('blkdiscard', '-z', '-o', String(8 * MIB), '-l', String(2 * MIB), node);
    assert.ok(isZero(4 * MIB, 2 * MIB) && isZero(8 * MIB, 2 * MIB), 'snapshot');
    assert.equal(digestOf('/dev/cowbird140'), digestOf(lab.path('image')), 'old contents were saved first');
    assert.equal((await lab.status(MINOR)).nr_changed_blocks, 1024);
    await cowbird.transitionToIncremental(MINOR, lab.client);
    await run('blkdiscard', '-o', String(20 * MIB), '-l', String(MIB), node);
    await run('blkdiscard', '-o', String(4 * MIB), '-l', String(2 * MIB), node);
    assert.equal((await lab.status(MINOR)).nr_changed_blocks, 1024 + 256, 'what was zeros already is not marked again');
  });

  it('takes a partition table, and partitions that are added have their file systems tracked', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('disk', 300 * MIB);
    const part = await partitioned(lab, node);
    await lab.mkfs(part, 'ext4');
    const mnt = await lab.mount(part);
    await fill(`${mnt}/a`, 10);
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { storeBytes: 60 * MIB }, lab.client);
    await copy('/dev/cowbird140', lab.path('image'));
    await fill(`${mnt}/a`, 10);
    assert.equal(digestOf('/dev/cowbird140'), digestOf(lab.path('image')));
    await cowbird.destroy(MINOR, lab.client);
  });

  it('has the sectors of the disk that its image lies on, where these are larger', async (t) => {
    const lab = new Lab(t);
    const disk = (await run('losetup', '-f', '--show', '-b', '4096', lab.image('large-sectors', 96 * MIB))).trim();
    lab.onEnd(() => run('losetup', '-d', disk));
    await lab.mkfs(disk, 'ext4');
    const at = await lab.mount(disk, 'mnt-disk');
    for (const [name, bytes] of Object.entries({ odd: 32 * MIB + 512, image: 32 * MIB }))
      await run('truncate', '-s', String(bytes), `${at}/${name}`);
    await assert.rejects(cowbird.attach(`${at}/odd`, { name: `odd-${lab.tag}` }, lab.client), {
      code: 'EINVAL',
      message: /truncate -s %4096/,
    });
    const { device } = await cowbird.attach(`${at}/image`, { name: `image-${lab.tag}` }, lab.client);
    // Before what it lies on is unmounted.
    lab.onEnd(() => cowbird.detach(device, lab.client));
    assert.equal((await run('blockdev', '--getss', device)).trim(), '4096');
    await lab.mkfs(device, 'ext4');
    const mnt = await lab.mount(device);
    await fill(`${mnt}/a`, 4);
    await run('dd', `if=${device}`, 'of=/dev/null', 'bs=4096', 'iflag=direct', 'status=none');
  });

  it('whose snapshot’s device cannot be made holds up nobody else, and gets it when that can be', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 64 * MIB);
    const link = `/dev/cowbird${MINOR}`;
    const store = (name: string): string => lab.path(name);
    await cowbird.setupSnapshot(node, store('first'), MINOR, { storeBytes: 20 * MIB }, lab.client);
    await cowbird.transitionToIncremental(MINOR, lab.client);
    rmSync(link, { force: true });
    symlinkSync('/dev/null', link);
    lab.onEnd(async () => {
      if (readlinkSync(link) === '/dev/null') rmSync(link);
    });
    const next = cowbird.transitionToSnapshot(MINOR, store('second'), { storeBytes: 20 * MIB }, lab.client);
    await assert.rejects(next, { outcome: 'partial' });
    const other = await lab.attached('other', 10 * MIB);
    assert.equal((await lab.status(MINOR)).state, 3, 'the snapshot is taken');
    await cowbird.detach(other, lab.client);
    rmSync(link);
    await until('it has its device', () => existsSync(link), 10_000);
    await cowbird.destroy(MINOR, lab.client);
  });

  it('whose operation failed behind the switch is ended with nothing left of it', async (t) => {
    const lab = new Lab(t);
    const { node, mnt } = await failedBehindSwitch(lab);
    const { devices } = await cowbird.info(undefined, lab.client);
    if (devices.length > 0) await cowbird.destroy(MINOR, lab.client);
    assert.ok(!existsSync(`${mnt}/.cow`), 'the COW file is gone');
    assert.deepEqual((await cowbird.info(undefined, lab.client)).devices, []);
    // Nothing of it comes back with the next one.
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { storeBytes: 20 * MIB }, lab.client);
    await cowbird.destroy(MINOR, lab.client);
    assert.ok(!existsSync(`${mnt}/.cow`));
  });

  it('whose operation failed behind the switch keeps its COW file, wherever the engine dies in the next one', async (t) => {
    const lab = new Lab(t, WITH_FAIL_POINTS);
    const { mnt } = await failedBehindSwitch(lab);
    const before = await restarts(lab);
    await armFailPoint(lab, 'word-reset');
    await cowbird.transitionToIncremental(MINOR, lab.client);
    assert.ok((await restarts(lab)) > before, 'the engine ended');
    assert.ok(existsSync(`${mnt}/.cow`));
    const status = await lab.status(MINOR);
    assert.deepEqual([status.state, status.error], [2, undefined]);
    await cowbird.destroy(MINOR, lab.client);
  });

  it('can be frozen, and is read-only when its origin is', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 100 * MIB);
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    await run('fsfreeze', '-f', mnt);
    await run('fsfreeze', '-u', mnt);
    const readOnly = await cowbird.attach(
      lab.image('ro', 10 * MIB),
      { readOnly: true, name: `ro-${process.pid}` },
      lab.client,
    );
    assert.equal((await run('blockdev', '--getro', readOnly.device)).trim(), '1');
    await assert.rejects(run('dd', 'if=/dev/zero', `of=${readOnly.device}`, 'bs=4096', 'count=1', 'oflag=direct'));
  });

  it('is one of eight that have snapshots at once, and go on when the engine is killed under them', async (t) => {
    const lab = new Lab(t);
    const nodes: string[] = [];
    for (let i = 0; i < 8; i++) nodes.push(await lab.attached(`v${i}`, 16 * MIB));
    await Promise.all(nodes.map((node) => fill(node, 8, 'oflag=direct')));
    const before = nodes.map((node) => digestOf(node));
    for (const [i, node] of nodes.entries()) {
      await cowbird.setupSnapshot(node, lab.path(`s${i}`), MINOR + i, { storeBytes: 20 * MIB }, lab.client);
    }
    const restarted = await restarts(lab);
    const writing = nodes.map((node) => fill(node, 8, 'oflag=direct'));
    await killEngine(lab);
    await Promise.all(writing);
    await untilRestarted(lab, restarted, 'the kill');
    assert.deepEqual(
      nodes.map((_, i) => digestOf(`/dev/cowbird${MINOR + i}`)),
      before,
    );
    assert.equal(await cowbird.getFreeMinor(lab.client), 0);
    assert.equal((await cowbird.info(undefined, lab.client)).devices.length, 8);
  });
});
