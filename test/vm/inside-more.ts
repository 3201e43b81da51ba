/** What else is tried in a guest: other file systems and disks, live backups. By `npm run test:vm`, not by `npm test`. */
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { release } from 'node:os';
import { basename, join } from 'node:path';
import { test } from 'node:test';
import * as cowbird from '../../src/index.js';
import { BLOCK_BYTES } from '../../src/live/bitmap.js';
import { whyNotContinued } from '../../src/live/device-view.js';
import { BlockBitmap, startTracking } from '../../src/live/tracking.js';
import { CANNOT, copy, digestOf, fill, Lab, MIB, run, succeeds } from '../lab.js';
import { loopDevice, plantBio, trackerPlace, zramDevice } from '../tracking-lab.js';
import { requireNineSteps } from './nine-steps.js';
import { passBlock, passZeroes } from './nvme-commands.js';

const FILES = 120;
const FILE_BYTES = 65_536;
/** Before, writes to a zram disk pass the block layer by. */
const ZRAM_KERNEL = [6, 3] as const;

function isZramSeen(): boolean {
  const [major = 0, minor = 0] = release().split('.').map(Number);
  return major > ZRAM_KERNEL[0] || (major === ZRAM_KERNEL[0] && minor >= ZRAM_KERNEL[1]);
}

test('more on this kernel', { skip: CANNOT }, async (t) => {
  await t.test('the nine steps on xfs', async (st) => {
    const lab = new Lab(st);
    await requireNineSteps(lab, await lab.attached('disk', 320 * MIB), 'xfs');
  });

  await t.test('a disk of the device mapper is attached, and has the nine steps too', async (st) => {
    const lab = new Lab(st);
    const loop = await loopDevice(lab, 112 * MIB);
    const name = basename(lab.folder);
    await run('dmsetup', 'create', name, '--table', `0 ${(112 * MIB) / 512} linear ${loop} 0`);
    lab.onEnd(() => run('dmsetup', 'remove', '--retry', name));
    await run('dmsetup', 'mknodes', name);
    const { device } = await cowbird.attach(`/dev/mapper/${name}`, { name: `mapped-${lab.tag}` }, lab.client);
    await requireNineSteps(lab, device, 'ext4');
  });

  await t.test('a discard of several ranges, as NVMe disks take them, counts with all of them', async (st) => {
    const lab = new Lab(st);
    const runDir = trackerPlace(lab);
    const disk = '/dev/nvme0n1';
    await run('mkfs.xfs', '-q', '-f', disk);
    const at = lab.path('mnt');
    mkdirSync(at);
    const mounted = async (action: () => Promise<unknown>): Promise<void> => {
      await run('mount', '-o', 'discard', disk, at);
      await action();
      await run('umount', at);
    };
    lab.onEnd(() => succeeds('umount', at));
    const file = (i: number): string => join(at, `file${i}`);
    await mounted(async () => {
      for (let i = 0; i < FILES; i++) writeFileSync(file(i), Buffer.alloc(FILE_BYTES, i + 1));
    });
    const before = lab.path('before');
    await copy(disk, before);
    const tracking = startTracking(disk, 'user', runDir);
    await mounted(async () => {
      for (let i = 0; i < FILES; i += 2) rmSync(file(i));
      // The log goes to the disk, then what it has freed is discarded.
      for (let i = 0; i < 3; i++) await run('sync', '-f', at);
    });
    const [, merged = 0] = readFileSync('/sys/block/nvme0n1/stat', 'utf8').trim().split(/\s+/).slice(11).map(Number);
    assert.ok(merged > 0, 'the kernel gathered discards');
    const listed = new BlockBitmap(tracking.blockCount);
    tracking.take(listed);
    assert.equal(tracking.doubt(), undefined);
    tracking.close();
    const after = lab.path('after');
    await copy(disk, after);
    const [old, now] = [readFileSync(before), readFileSync(after)];
    let differ = 0;
    for (let block = 0; block < tracking.blockCount; block++) {
      const [start, end] = [block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES];
      if (old.compare(now, start, end, start, end) === 0) continue;
      differ++;
      assert.ok(listed.has(block), `block ${block} differs, and is not listed`);
    }
    assert.ok(differ >= (FILES / 4) * (FILE_BYTES / BLOCK_BYTES), `discarded blocks read as zeros: ${differ} differ`);
    assert.ok(listed.count() < differ * 2, `${listed.count()} are listed, ${differ} differ`);
  });

  await t.test('a command passed through to a disk ends its tracking if it may have written', async (st) => {
    const lab = new Lab(st);
    const runDir = trackerPlace(lab);
    const disk = '/dev/nvme0n1';
    /** What the tracker thinks after a command; a new tracking begins each time. */
    const doubtAfter = (command: () => void): string | undefined => {
      const tracking = startTracking(disk, 'user', runDir);
      try {
        command();
        return tracking.doubt();
      } finally {
        tracking.close();
      }
    };
    assert.equal(
      doubtAfter(() => passBlock(disk, 'read', 3)),
      undefined,
    );
    assert.match(doubtAfter(() => passBlock(disk, 'write', 3)) ?? '', /passed through/);
    assert.match(doubtAfter(() => passZeroes(disk, 3)) ?? '', /passed through/);
    assert.equal(
      doubtAfter(() => passBlock(disk, 'read', 3)),
      undefined,
      'one that begins after it knows of none',
    );
  });

  await t.test('a disk that can be mapped into memory is refused, and compared', async (st) => {
    const lab = new Lab(st);
    const runDir = trackerPlace(lab);
    const disk = '/dev/pmem0';
    await run('mkfs.ext4', '-q', '-F', '-b', '4096', disk);
    const at = lab.path('mnt');
    mkdirSync(at);
    await run('mount', '-o', 'dax', disk, at);
    lab.onEnd(() => succeeds('umount', at));
    writeFileSync(join(at, 'file'), Buffer.alloc(FILE_BYTES, 7));
    assert.throws(() => startTracking(disk, 'user', runDir), { code: 'ENOTSUP', message: /DAX/ });
    const repository = lab.path('repository');
    await assert.rejects(cowbird.backup(disk, repository, { client: lab.client }), { code: 'ENOTSUP', message: /DAX/ });
    await run('umount', at);
    const { engine, version } = await cowbird.backup(disk, repository, { client: lab.client });
    assert.deepEqual([engine, version], ['scan', 1]);
    assert.deepEqual((await cowbird.verify(repository)).damage, []);
  });

  await t.test('a disk of the device mapper is backed up live, and compared each time', async (st) => {
    const lab = new Lab(st);
    const loop = await loopDevice(lab, 96 * MIB);
    const name = basename(lab.folder);
    await run('dmsetup', 'create', name, '--table', `0 ${(96 * MIB) / 512} linear ${loop} 0`);
    lab.onEnd(() => run('dmsetup', 'remove', '--retry', name));
    await run('dmsetup', 'mknodes', name);
    const runDir = trackerPlace(lab);
    const disk = `/dev/mapper/${name}`;
    await run('mkfs.ext4', '-q', '-b', '4096', disk);
    const at = await lab.mount(disk);
    const stop = await lab.writer(at);
    const repository = lab.path('repository');
    const first = await cowbird.backup(disk, repository, { client: lab.client });
    const second = await cowbird.backup(disk, repository, { client: lab.client });
    assert.ok(await stop(), 'no write has failed');
    assert.deepEqual([first.engine, second.engine], ['live', 'live']);
    assert.match(second.reason, /lvconvert --merge/);
    assert.deepEqual((await cowbird.verify(repository)).damage, []);
    // A write whose end the kernel did not show is known by its beginning.
    const tracking = startTracking(disk, 'user', runDir);
    plantBio(runDir, 8n, { first: 100, count: 3 });
    for (let take = 0; take < 2; take++) {
      const bits = new BlockBitmap(tracking.blockCount);
      tracking.take(bits);
      assert.ok(
        [100, 101, 102].every((block) => bits.has(block)),
        `take ${take}`,
      );
      assert.equal(tracking.doubt(), undefined);
    }
    tracking.close();
    const third = await cowbird.backup(disk, repository, { client: lab.client });
    assert.equal(third.version, 3, 'at a standstill it is over');
  });

  for (const kind of ['loop', 'zram'])
    await t.test(`a mounted disk that was never attached is backed up live: ${kind}`, async (st) => {
      const lab = new Lab(st);
      const disk = kind === 'zram' ? await zramDevice(lab, 96 * MIB) : await loopDevice(lab, 96 * MIB);
      assert.ok(disk !== undefined, 'the module is loaded');
      trackerPlace(lab);
      await run('mkfs.ext4', '-q', '-b', '4096', disk);
      const at = await lab.mount(disk);
      await fill(join(at, 'first'), 8);
      const repository = lab.path('repository');
      if (kind === 'zram' && !isZramSeen()) {
        await assert.rejects(cowbird.backup(disk, repository, { client: lab.client }), { code: 'ENOTSUP' });
        return;
      }
      const stop = await lab.writer(at);
      const versions: cowbird.BackupSummary[] = [];
      for (let i = 0; i < 2; i++) versions.push(await cowbird.backup(disk, repository, { client: lab.client }));
      assert.ok(await stop(), 'no write has failed');
      for (const { engine, reason } of versions) assert.equal(engine, 'live', reason);
      const [first, second] = versions;
      assert.ok(second !== undefined && first !== undefined);
      const doubt = whyNotContinued({ diskName: basename(disk) });
      if (doubt === undefined) assert.ok(second.bytesRead < first.bytesRead, second.reason);
      else assert.equal(second.reason, `contents were compared: ${doubt}`);
      assert.deepEqual((await cowbird.verify(repository)).damage, []);
      mkdirSync(lab.path('look'));
      await run('mount', '-o', 'loop', join(repository, 'image'), lab.path('look'));
      lab.onEnd(() => run('umount', lab.path('look')));
      assert.equal(digestOf(join(lab.path('look'), 'first')), digestOf(join(at, 'first')));
    });
});
