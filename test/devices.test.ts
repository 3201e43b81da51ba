/** A volume is a real block device to everything that uses one. */
import assert from 'node:assert/strict';
import { closeSync, openSync, readSync } from 'node:fs';
import { describe, it } from 'node:test';
import * as cowbird from '../src/index.js';
import { killEngine, restarts, untilRestarted } from './killing.js';
import { CANNOT, copy, digestOf, fill, Lab, MIB, run } from './lab.js';

const MINOR = 140;

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
    await run(
      'sh',
      '-c',
      `printf 'label: gpt\\nstart=2048,size=520192\\n' | sfdisk -q --no-reread --no-tell-kernel ${node}`,
    );
    await run('partx', '-d', node).catch(() => '');
    await run('addpart', node, '1', '2048', '520192');
    const part = `${node}p1`;
    lab.onEnd(() => run('delpart', node, '1'));
    await lab.mkfs(part, 'ext4');
    const mnt = await lab.mount(part);
    await fill(`${mnt}/a`, 10);
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { storeBytes: 60 * MIB }, lab.client);
    await copy('/dev/cowbird140', lab.path('image'));
    await fill(`${mnt}/a`, 10);
    assert.equal(digestOf('/dev/cowbird140'), digestOf(lab.path('image')));
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
