/** Snapshots that know what was free: every file as it was at T0, zeros elsewhere, and nothing saved for new files. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { describe, it, type TestContext } from 'node:test';
import * as cowbird from '../src/index.js';
import { traces } from './harness.js';
import { armFailPoint, killEngine, restarts, untilRestarted, WITH_FAIL_POINTS } from './killing.js';
import { CANNOT, copy, digestOf, fill, Lab, MIB, run, succeeds, until } from './lab.js';

const STORE = { storeBytes: 32 * MIB, freeAware: true };

/** A mounted file system with a file, and with the remains of another one in its free blocks. */
async function used(t: TestContext, fsType: string): Promise<{ lab: Lab; node: string; mnt: string }> {
  const lab = new Lab(t, WITH_FAIL_POINTS);
  const node = await lab.attached('volume', 120 * MIB);
  await lab.mkfs(node, fsType);
  const mnt = await lab.mount(node);
  await fill(`${mnt}/gone`, 30);
  await fill(`${mnt}/payload`, 6);
  await run('cp', `${mnt}/payload`, lab.path('payload'));
  await run('rm', `${mnt}/gone`);
  await run('sync', '-f', mnt);
  return { lab, node, mnt };
}

async function requirePayload(lab: Lab, device: string, fsType: string): Promise<void> {
  const options = fsType === 'xfs' ? 'ro,norecovery,nouuid' : 'ro,noload';
  const at = await lab.mount(device, 'look', '-o', options);
  await run('cmp', `${at}/payload`, lab.path('payload'));
  await run('umount', at);
}

/** Replay on a throw-away copy, then the file system's own check. */
async function requireSoundCopy(lab: Lab, image: string, fsType: string): Promise<void> {
  const replayed = lab.path('replayed');
  await run('cp', '--sparse=always', image, replayed);
  const node = (await run('losetup', '-f', '--show', replayed)).trim();
  try {
    await run('umount', await lab.mount(node, 'check', ...(fsType === 'xfs' ? ['-o', 'nouuid'] : [])));
    if (fsType === 'xfs') await run('xfs_repair', '-n', node);
    else await run('e2fsck', '-fn', node);
  } finally {
    await run('losetup', '-d', node);
  }
}

async function lifeOf(t: TestContext, fsType: string, minor: number): Promise<void> {
  const { lab, node, mnt } = await used(t, fsType);
  const device = await cowbird.setupSnapshot(node, `${mnt}/.cow1`, minor, STORE, lab.client);
  const image = lab.path('image');
  await copy(device, image);
  const { free_aware: isAware, free_blocks: freeBlocks = 0, cow_used: usedAtFirst = 0 } = await lab.status(minor);
  assert.ok(isAware === true && freeBlocks > (30 * MIB) / 4096, `${freeBlocks} free blocks`);
  await fill(`${mnt}/new`, 24);
  const { cow_used: usedNow = 0 } = await lab.status(minor);
  assert.ok(usedNow - usedAtFirst < 4 * MIB, `24 MiB of new files took ${usedNow - usedAtFirst} bytes of the store`);
  assert.equal(digestOf(device), digestOf(image), 'what is free reads the same before and after it is overwritten');
  await requirePayload(lab, device, fsType);
  const before = await restarts(lab);
  await killEngine(lab);
  await untilRestarted(lab, before, 'a kill');
  assert.equal(digestOf(device), digestOf(image), 'and after a kill');
  await cowbird.expandCowFile(minor, 4 * MIB, lab.client);
  assert.equal(digestOf(device), digestOf(image), 'and when the store has grown over it');

  // The next one knows its own, the one after that none: each image follows from the one before.
  for (const [sequence, freeAware] of [
    [2, true],
    [3, false],
  ] as const) {
    await cowbird.transitionToIncremental(minor, lab.client);
    await fill(`${mnt}/new`, 3);
    await run('rm', '-f', `${mnt}/more`);
    await fill(`${mnt}/more`, 3);
    const cowFile = `${mnt}/.cow${sequence - 1}`;
    await cowbird.transitionToSnapshot(minor, `${mnt}/.cow${sequence}`, { ...STORE, freeAware }, lab.client);
    await cowbird.updateImageFromSnapshot({ snapshot: device, cowFile, image, client: lab.client });
    assert.equal(digestOf(image), digestOf(device), `image ${sequence} follows from the one before`);
    assert.equal((await lab.status(minor)).free_aware, freeAware ? true : undefined);
    if (freeAware) await requireSoundCopy(lab, image, fsType);
  }
  await cowbird.destroy(minor, lab.client);
  assert.deepEqual(readdirSync(lab.path('state/series')), []);
}

describe('a snapshot that knows free blocks', { skip: CANNOT, concurrency: 3 }, () => {
  it('saves nothing for new files, and goes on over a kill, growth and transitions, on ext4', (t) =>
    lifeOf(t, 'ext4', 226));
  it('saves nothing for new files, and goes on over a kill, growth and transitions, on xfs', (t) =>
    lifeOf(t, 'xfs', 227));

  it('goes on after a clean stop; without its list of free blocks, or with a damaged one, it fails', async (t) => {
    const { lab, node, mnt } = await used(t, 'ext4');
    const image = lab.path('image');
    await copy(await cowbird.setupSnapshot(node, `${mnt}/.cow`, 240, STORE, lab.client), image);
    await fill(`${mnt}/new`, 8);
    const again = async (damage: () => Promise<void>): Promise<void> => {
      await run('umount', mnt);
      await cowbird.stopDaemon({}, lab.client);
      await damage();
      await cowbird.startDaemon(lab.client);
      await cowbird.reloadSnapshot(lab.link('volume'), '/.cow', 240, {}, lab.client);
      await lab.mount(lab.link('volume'));
    };
    await again(async () => undefined);
    await until('the snapshot is verified', () => existsSync('/dev/cowbird240'));
    await fill(`${mnt}/newer`, 8);
    assert.equal(digestOf('/dev/cowbird240'), digestOf(image));
    const status = await lab.status(240);
    assert.ok(status.free_aware === true && (status.free_blocks ?? 0) > 0 && status.state === 3);
    const [free = ''] = readdirSync(lab.path('state/series')).filter((name) => name.endsWith('.free'));
    await again(async () => writeFileSync(lab.path(`state/series/${free}`), 'damaged'));
    await until('the snapshot has failed', async () => (await lab.status(240)).error !== undefined);
    assert.deepEqual(await lab.status(240).then(({ error, state }) => ({ error, state })), { error: -22, state: 5 });
    assert.match((await lab.status(240)).error_reason ?? '', /free blocks/);
  });

  it('is begun again or finished when the engine ends in the middle', async (t) => {
    const { lab, node, mnt } = await used(t, 'ext4');
    const stop = await lab.writer(mnt);
    for (const point of ['described', 'frozen', 'switched', 'finished']) {
      const before = await restarts(lab);
      await armFailPoint(lab, point);
      const device = await cowbird.setupSnapshot(node, `${mnt}/.cow`, 241, STORE, lab.client);
      assert.ok((await restarts(lab)) > before, point);
      await copy(device, lab.path('image'));
      await fill(`${mnt}/new`, 4);
      assert.equal(digestOf(device), digestOf(lab.path('image')), point);
      await requirePayload(lab, device, 'ext4');
      await cowbird.destroy(241, lab.client);
    }
    assert.ok(await stop());
  });

  it('is refused where nobody can say what is free, and leaves nothing', async (t) => {
    const lab = new Lab(t);
    const raw = await lab.attached('raw', 20 * MIB);
    const btrfs = await lab.attached('btrfs', 128 * MIB);
    // It looks at all loop devices that are mounted on the machine, and fails where one of them has gone.
    const isMade = await succeeds('mkfs.btrfs', '-q', btrfs);
    if (isMade) await lab.mount(btrfs);
    else t.diagnostic('NOT TRIED on btrfs: mkfs.btrfs fails here now');
    const before = await traces(lab);
    for (const node of isMade ? [raw, btrfs] : [raw]) {
      const taken = cowbird.setupSnapshot(node, lab.path('store'), 242, STORE, lab.client);
      await assert.rejects(taken, { code: 'EINVAL', outcome: 'refused', message: /free/ });
      assert.deepEqual(await traces(lab), before);
    }
  });

  it('saves nothing for new files, which any other snapshot does', async (t) => {
    const { lab, node, mnt } = await used(t, 'ext4');
    const usedBytesBy = new Map<boolean, number>();
    for (const freeAware of [false, true]) {
      const events: cowbird.EventRecord[] = [];
      const controller = new AbortController();
      const listening = (async () => {
        for await (const event of cowbird.events({ ...lab.client, signal: controller.signal })) events.push(event);
      })();
      await cowbird.setupSnapshot(node, `${mnt}/.cow`, 243, { ...STORE, freeAware }, lab.client);
      const startedAt = performance.now();
      await run('dd', 'if=/dev/zero', `of=${mnt}/new`, 'bs=1M', 'count=24', 'oflag=direct', 'status=none');
      const writeMs = Math.round(performance.now() - startedAt);
      const { cow_used: usedBytes } = await lab.status(243);
      usedBytesBy.set(freeAware, usedBytes ?? 0);
      controller.abort();
      await listening.catch(() => undefined);
      const freezeMs = events.find(({ event }) => event === 'volume.frozen')?.['freezeMs'];
      const mapMs = events.find(({ event }) => event === 'free.mapped')?.['durationMs'] ?? '-';
      t.diagnostic(
        `freeAware ${freeAware}: frozen ${freezeMs} ms, looked up in ${mapMs} ms, 24 MiB new ${writeMs} ms, used ${usedBytes}`,
      );
      await cowbird.destroy(243, lab.client);
      await run('rm', `${mnt}/new`);
      await run('sync', '-f', mnt);
    }
    const [plain = 0, aware = 0] = [usedBytesBy.get(false), usedBytesBy.get(true)];
    // The new file took 24 MiB of free blocks; what is left is metadata.
    assert.ok(plain - aware > 20 * MIB, `${plain} and ${aware} bytes were saved`);
  });
});
