/** Several volumes at one instant. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, it, type TestContext } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import * as cowbird from '../src/index.js';
import { DirectReader } from '../src/sys/direct-reader.js';
import { traces } from './harness.js';
import { armFailPoint, restarts, WITH_FAIL_POINTS } from './killing.js';
import { CANNOT, Lab, MIB, run } from './lab.js';
import { lastRecordIn, orderedWriter, RECORD_BYTES, RECORDS } from './ordered-writer.js';

const STORE = { storeBytes: 24 * MIB };

function lastOnDevice(path: string): number {
  const reader = new DirectReader(path);
  try {
    const bytes = Buffer.alloc(RECORDS * RECORD_BYTES);
    for (let at = 0; at < bytes.byteLength; at += MIB)
      reader.read(bytes.subarray(at, Math.min(at + MIB, bytes.byteLength)), at);
    return lastRecordIn(bytes);
  } finally {
    reader.close();
  }
}

/** Each record has its predecessor: so the last ones of both follow each other. */
function requireOrdered(first: number, second: number): void {
  assert.ok(first > 0 && second > 0, `both have records (${first}, ${second})`);
  assert.equal(Math.abs(first - second), 1, `record ${first} in one snapshot, record ${second} in the other`);
}

async function mountedPair(t: TestContext): Promise<{ lab: Lab; nodes: [string, string]; mounts: [string, string] }> {
  const lab = new Lab(t, WITH_FAIL_POINTS);
  const nodes: [string, string] = [await lab.attached('a', 80 * MIB), await lab.attached('b', 96 * MIB)];
  await lab.mkfs(nodes[0], 'ext4');
  await lab.mkfs(nodes[1], 'xfs');
  const mounts: [string, string] = [await lab.mount(nodes[0], 'mnt-a'), await lab.mount(nodes[1], 'mnt-b')];
  return { lab, nodes, mounts };
}

/** A snapshot's file, past journals that a frozen file system has no need of. */
async function fileInSnapshot(lab: Lab, device: string, name: string, fsType: string): Promise<Uint8Array> {
  const options = fsType === 'xfs' ? 'ro,norecovery,nouuid' : 'ro,noload';
  const at = await lab.mount(device, `look-${device.replaceAll('/', '-')}`, '-o', options);
  const bytes = readFileSync(`${at}/${name}`);
  await run('umount', at);
  return bytes;
}

describe('several volumes at one instant', { skip: CANNOT, concurrency: 3 }, () => {
  it('have no record without its predecessor, on ext4 and xfs, at setup and at the next transition', async (t) => {
    const { lab, nodes, mounts } = await mountedPair(t);
    const stop = await orderedWriter(lab, [`${mounts[0]}/records`, `${mounts[1]}/records`]);
    const taken = await cowbird.setupTogether(
      nodes.map((device, i) => ({ device, cowFile: `${mounts[i]}/.cow1`, minor: 220 + i, ...STORE })),
      {},
      lab.client,
    );
    assert.deepEqual(taken.devices, ['/dev/cowbird220', '/dev/cowbird221']);
    t.diagnostic(`setup: windowMs ${taken.windowMs}, freezeMs ${taken.freezeMs}`);
    assert.ok(taken.windowMs !== null && taken.freezeMs !== null && taken.windowMs <= taken.freezeMs);
    const look = async (): Promise<void> =>
      requireOrdered(
        lastRecordIn(await fileInSnapshot(lab, '/dev/cowbird220', 'records', 'ext4')),
        lastRecordIn(await fileInSnapshot(lab, '/dev/cowbird221', 'records', 'xfs')),
      );
    await look();
    for (let round = 2; round < 3; round++) {
      for (const minor of [220, 221]) await cowbird.transitionToIncremental(minor, lab.client);
      await pause(100);
      const next = [220, 221].map((minor, i) => ({ cowFile: `${mounts[i]}/.cow${round}`, minor, ...STORE }));
      const again = await cowbird.transitionTogether(next, {}, lab.client);
      t.diagnostic(`transition: windowMs ${again.windowMs}, freezeMs ${again.freezeMs}`);
      await look();
      for (const mount of mounts) await run('rm', `${mount}/.cow${round - 1}`);
    }
    await stop();
  });

  it('have no record without its predecessor where no file system is', async (t) => {
    const lab = new Lab(t);
    const nodes = [await lab.attached('a', 40 * MIB), await lab.attached('b', 40 * MIB)];
    const stop = await orderedWriter(lab, nodes);
    for (let round = 0; round < 3; round++) {
      await pause(100 + Math.random() * 100);
      const taken = await cowbird.setupTogether(
        nodes.map((device, i) => ({ device, cowFile: lab.path(`store${i}`), minor: 222 + i, ...STORE })),
        {},
        lab.client,
      );
      t.diagnostic(`windowMs ${taken.windowMs}`);
      requireOrdered(lastOnDevice('/dev/cowbird222'), lastOnDevice('/dev/cowbird223'));
      for (const minor of [222, 223]) await cowbird.destroy(minor, lab.client);
    }
    // Taken one after the other they do have a gap: the records are dense enough to show it.
    for (const [i, device] of nodes.entries())
      await cowbird.setupSnapshot(device, lab.path(`store${i}`), 222 + i, STORE, lab.client);
    assert.ok(lastOnDevice('/dev/cowbird223') - lastOnDevice('/dev/cowbird222') > 1, 'two instants are told apart');
    await stop();
  });

  it('are snapshotted all or none: what is refused for one leaves nothing of the others', async (t) => {
    const { lab, nodes, mounts } = await mountedPair(t);
    writeFileSync(`${mounts[1]}/mine`, 'precious');
    const one = { device: nodes[0], cowFile: `${mounts[0]}/.cow`, minor: 224, ...STORE };
    const two = { device: nodes[1], cowFile: `${mounts[1]}/.cow`, minor: 225, ...STORE };
    const before = await traces(lab);
    const refusals = [
      ['EEXIST', { ...two, cowFile: `${mounts[1]}/mine` }],
      ['ENOSPC', { ...two, storeBytes: 2000 * MIB }],
      ['EINVAL', { ...two, minor: one.minor }],
      ['EINVAL', { ...two, device: one.device }],
      ['EINVAL', { ...two, cowFile: one.cowFile }],
      ['ENOENT', { ...two, device: '/dev/no-such-device' }],
      ['EINVAL', { ...two, storeBytes: 4096 }],
    ] as const;
    for (const [code, second] of refusals) {
      await assert.rejects(cowbird.setupTogether([one, second], {}, lab.client), { code, outcome: 'refused' });
      assert.deepEqual(await traces(lab), before, code);
    }
    await cowbird.setupTogether([one, two], {}, lab.client);
    await cowbird.transitionToIncremental(224, lab.client);
    const next = [224, 225].map((minor, i) => ({ cowFile: `${mounts[i]}/.next`, minor }));
    await assert.rejects(cowbird.transitionTogether(next, {}, lab.client), { code: 'EINVAL', outcome: 'refused' });
    assert.ok(!existsSync(`${mounts[0]}/.next`));
    assert.equal((await lab.status(224)).state, 2);
  });

  it('cannot stand on each other: an origin on a served volume is refused', async (t) => {
    const lab = new Lab(t);
    const below = await lab.attached('below', 200 * MIB);
    await lab.mkfs(below, 'ext4');
    const mnt = await lab.mount(below);
    await run('truncate', '-s', '40M', `${mnt}/image`, `${mnt}/behind`);
    const loop = (await run('losetup', '-f', '--show', `${mnt}/behind`)).trim();
    lab.onEnd(() => run('losetup', '-d', loop));
    const before = await traces(lab);
    // By its path alone: nothing was asked of the file system, or it would have said that there is no such file.
    for (const origin of [`${mnt}/image`, loop, `${mnt}/nothing`]) {
      await assert.rejects(cowbird.attach(origin, { name: `above-${lab.tag}` }, lab.client), {
        code: 'EINVAL',
        message: /which Cowbird serves itself and would wait for: attach it in a daemon of its own/,
      });
    }
    assert.deepEqual(await traces(lab), before);
  });

  it('have no COW file on each other', async (t) => {
    const lab = new Lab(t);
    const nodes = [await lab.attached('a', 20 * MIB), await lab.attached('b', 200 * MIB)];
    await lab.mkfs(nodes[1] ?? '', 'ext4');
    const mnt = await lab.mount(nodes[1] ?? '');
    const before = await traces(lab);
    const cowFiles = [`${mnt}/store`, lab.path('store')];
    const snapshots = nodes.map((device, i) => ({ device, cowFile: cowFiles[i] ?? '', minor: 226 + i, ...STORE }));
    await assert.rejects(cowbird.setupTogether(snapshots, {}, lab.client), {
      code: 'EINVAL',
      message: /a volume that Cowbird serves itself/,
    });
    assert.deepEqual(await traces(lab), before);
    assert.ok(!existsSync(`${mnt}/store`));
  });

  // The point, and how often it is passed before: with two volumes those of the switch are passed twice.
  const POINTS = [
    ['announced', 1],
    ['described', 0],
    ['switched', 0],
    ['paused', 1],
    ['switched', 1],
    ['committed', 0],
    ['finished', 1],
    ['concluded', 0],
  ] as const;

  it('are finished or begun again all of them, wherever the engine ends in the middle', async (t) => {
    const lab = new Lab(t, WITH_FAIL_POINTS);
    const nodes = [await lab.attached('a', 20 * MIB), await lab.attached('b', 20 * MIB)];
    const stop = await orderedWriter(lab, nodes);
    const minors = [228, 229];
    const store = { storeBytes: 12 * MIB };
    for (const [i, [point, passes]] of POINTS.entries()) {
      const isSetup = i % 2 === 0;
      const taken = await cutOff(lab, point, passes, () =>
        isSetup
          ? cowbird.setupTogether(
              nodes.map((device, n) => ({
                device,
                cowFile: lab.path(`cow${i}-${n}`),
                minor: minors[n] ?? 0,
                ...store,
              })),
              {},
              lab.client,
            )
          : cowbird.transitionTogether(
              minors.map((minor, n) => ({ cowFile: lab.path(`cow${i}-${n}`), minor, ...store })),
              {},
              lab.client,
            ),
      );
      assert.deepEqual(taken.devices, ['/dev/cowbird228', '/dev/cowbird229']);
      requireOrdered(lastOnDevice('/dev/cowbird228'), lastOnDevice('/dev/cowbird229'));
      for (const minor of minors) assert.equal((await lab.status(minor)).error, undefined);
      for (const minor of minors) {
        if (isSetup) await cowbird.transitionToIncremental(minor, lab.client);
        else await cowbird.destroy(minor, lab.client);
      }
    }
    await stop();
    // The old COW file of a transition stays, with its list of changes; of what was undone nothing does.
    const left = readdirSync(lab.folder).filter((name) => name.startsWith('cow'));
    assert.deepEqual(left.sort(), POINTS.flatMap((_, i) => (i % 2 === 0 ? [`cow${i}-0`, `cow${i}-1`] : [])).sort());
  });

  it('are thawed, all of them, when the engine ends while they are frozen', async (t) => {
    const { lab, nodes, mounts } = await mountedPair(t);
    const stop = await orderedWriter(lab, [`${mounts[0]}/records`, `${mounts[1]}/records`]);
    for (const [point, passes] of [
      ['frozen', 0],
      ['switched', 0],
    ] as const) {
      await cutOff(lab, point, passes, () =>
        cowbird.setupTogether(
          nodes.map((device, n) => ({ device, cowFile: `${mounts[n]}/.cow`, minor: 230 + n, ...STORE })),
          {},
          lab.client,
        ),
      );
      requireOrdered(
        lastRecordIn(await fileInSnapshot(lab, '/dev/cowbird230', 'records', 'ext4')),
        lastRecordIn(await fileInSnapshot(lab, '/dev/cowbird231', 'records', 'xfs')),
      );
      for (const minor of [230, 231]) await cowbird.destroy(minor, lab.client);
    }
    await stop();
    for (const mount of mounts) await run('sh', '-c', `! ls -A ${mount} | grep -q cow`);
  });
});

/** Runs an operation whose engine ends at a point of it; it must succeed all the same. */
async function cutOff<T>(lab: Lab, point: string, passes: number, operation: () => Promise<T>): Promise<T> {
  const before = await restarts(lab);
  await armFailPoint(lab, point, passes);
  const result = await operation();
  assert.ok((await restarts(lab)) > before, `the engine ended at ${point} ${passes}`);
  return result;
}
