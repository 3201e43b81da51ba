/** The engine is killed, at random moments and at named points, under verified load: the file system above only pauses. */
import assert from 'node:assert/strict';
import { after, describe, it, type TestContext } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import * as cowbird from '../src/index.js';
import { traces } from './harness.js';
import {
  armFailPoint,
  killEngine,
  restarts,
  untilRestarted,
  type VerifiedLoad,
  verifiedLoad,
  WITH_FAIL_POINTS,
} from './killing.js';
import { CANNOT, copy, digestOf, fill, Lab, MIB, run } from './lab.js';

const MINOR = 180;
const DEVICE = `/dev/cowbird${MINOR}`;
const STORE = { storeBytes: 60 * MIB };

let kills = 0;
after(() => console.log(`# the engine was killed ${kills} times`));

interface Bench {
  lab: Lab;
  node: string;
  mnt: string;
  load: VerifiedLoad;
}

async function bench(t: TestContext, fsType: string): Promise<Bench> {
  const lab = new Lab(t, WITH_FAIL_POINTS);
  const node = await lab.attached('volume', fsType === 'xfs' ? 320 * MIB : 240 * MIB);
  await lab.mkfs(node, fsType);
  const mnt = await lab.mount(node);
  await fill(`${mnt}/payload`, 8);
  const load = verifiedLoad(lab, { directory: mnt, blockBytes: 65_536, depth: 4, mib: 24, rateMib: 4 });
  return { lab, node, mnt, load };
}

/** Runs an operation whose engine ends at a point of it; the command must succeed all the same. */
async function cutOff<T>(lab: Lab, point: string, operation: () => Promise<T>): Promise<T> {
  const before = await restarts(lab);
  await armFailPoint(lab, point);
  const result = await operation();
  assert.ok((await restarts(lab)) > before, `the engine ended at ${point}`);
  kills++;
  return result;
}

async function check(lab: Lab, node: string, mnt: string, fsType: string): Promise<void> {
  await run('umount', mnt);
  if (fsType === 'xfs') await run('xfs_repair', '-n', node);
  else await run('e2fsck', '-fn', node);
  assert.deepEqual(await cowbird.listVolumes(lab.client).then((volumes) => volumes.map(({ mode }) => mode)), [
    'passthrough',
  ]);
}

const SETUP_POINTS = [
  'announced',
  'store-created',
  'header-written',
  'described',
  'frozen',
  'paused',
  'switched',
  'committed',
  'fuse-mounted',
  'loop-bound',
  'finished',
];
const INCREMENTAL_POINTS = [
  'links-removed',
  'loop-released',
  'fuse-unmounted',
  'described',
  'paused',
  'switched',
  'committed',
  'finished',
];
const EXPAND_POINTS = ['announced', 'store-grown', 'described', 'paused', 'switched', 'committed', 'finished'];

for (const fsType of ['ext4', 'xfs']) {
  describe(`an engine that ends in the middle of an operation, on ${fsType} under verified load`, {
    skip: CANNOT,
  }, () => {
    it('a setup is finished or begun again, and a destroy is finished', async (t) => {
      const { lab, node, mnt, load } = await bench(t, fsType);
      const ends = [...INCREMENTAL_POINTS.values()];
      for (const [i, point] of SETUP_POINTS.entries()) {
        const device = await cutOff(lab, point, () =>
          cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, STORE, lab.client),
        );
        assert.equal(device, DEVICE);
        assert.equal((await lab.status(MINOR)).seq_id, 1);
        assert.equal(digestOf(DEVICE), digestOf(DEVICE), `two reads are equal after ${point}`);
        const end = ends[i];
        if (end === undefined) await cowbird.destroy(MINOR, lab.client);
        else await cutOff(lab, end, () => cowbird.destroy(MINOR, lab.client));
        assert.deepEqual((await cowbird.info(undefined, lab.client)).devices, []);
        await run('sh', '-c', `! ls -A ${mnt} | grep -q cow`);
      }
      await load.stop();
      await check(lab, node, mnt, fsType);
    });

    it('transitions and expansions go through, and each image follows from the one before and the changes', async (t) => {
      const { lab, node, mnt, load } = await bench(t, fsType);
      await cowbird.setupSnapshot(node, `${mnt}/.cow1`, MINOR, STORE, lab.client);
      const image = lab.path('image');
      await copy(DEVICE, image);
      let sequence = 1;
      for (const [i, point] of SETUP_POINTS.entries()) {
        const before = digestOf(DEVICE);
        const expand = EXPAND_POINTS[i];
        if (expand !== undefined) {
          const bytes = await cutOff(lab, expand, () => cowbird.expandCowFile(MINOR, 4 * MIB, lab.client));
          assert.equal(bytes, STORE.storeBytes + 4 * MIB);
        }
        assert.equal(digestOf(DEVICE), before, 'the snapshot is what it was');
        await cutOff(lab, INCREMENTAL_POINTS[i % INCREMENTAL_POINTS.length] ?? '', () =>
          cowbird.transitionToIncremental(MINOR, lab.client),
        );
        await cutOff(lab, point, () =>
          cowbird.transitionToSnapshot(MINOR, `${mnt}/.cow${sequence + 1}`, STORE, lab.client),
        );
        const cowFile = `${mnt}/.cow${sequence}`;
        const result = await cowbird.updateImageFromSnapshot({ snapshot: DEVICE, cowFile, image, client: lab.client });
        assert.equal(result.errors, 0);
        assert.equal(digestOf(image), digestOf(DEVICE), `the image follows after ${point}`);
        await run('rm', cowFile);
        sequence++;
        assert.equal((await lab.status(MINOR)).seq_id, sequence);
        assert.equal((await lab.status(MINOR)).error, undefined);
      }
      await load.stop();
      await cowbird.destroy(MINOR, lab.client);
      await check(lab, node, mnt, fsType);
    });
  });

  describe(`an engine that ends in the write path, on ${fsType}`, { skip: CANNOT }, () => {
    for (const mode of ['passthrough', 'incremental', 'snapshot'] as const) {
      it(`in ${mode} mode costs a pause, no error and no byte`, async (t) => {
        const lab = new Lab(t, WITH_FAIL_POINTS);
        const node = await lab.attached('volume', fsType === 'xfs' ? 320 * MIB : 240 * MIB);
        await lab.mkfs(node, fsType);
        const mnt = await lab.mount(node);
        const image = lab.path('image');
        if (mode !== 'passthrough') {
          await cowbird.setupSnapshot(node, `${mnt}/.cow1`, MINOR, { storeBytes: 120 * MIB }, lab.client);
          await copy(DEVICE, image);
        }
        if (mode === 'incremental') await cowbird.transitionToIncremental(MINOR, lab.client);
        const load = verifiedLoad(lab, { directory: mnt, blockBytes: MIB, depth: 8, mib: 64, rateMib: 40 });
        const saving = ['after-claim', 'after-read', 'after-append', 'after-index'];
        const points = ['before-origin-write', 'before-reply', ...(mode === 'snapshot' ? saving : [])];
        for (const point of [...points, ...points]) {
          const before = await restarts(lab);
          await armFailPoint(lab, point, 2);
          // Once all blocks are saved, a point of saving is not reached any more.
          await Promise.race([untilRestarted(lab, before, point), pause(2_000).then(() => killEngine(lab))]);
          await untilRestarted(lab, before, point);
          kills++;
          await pause(Math.random() * 200);
        }
        for (let random = 0; random < 4; random++) {
          await pause(Math.random() * 300);
          if (await killEngine(lab)) kills++;
        }
        await load.stop();
        if (mode === 'snapshot') assert.equal(digestOf(DEVICE), digestOf(image), 'the snapshot is T0');
        if (mode === 'incremental') {
          await cowbird.transitionToSnapshot(MINOR, `${mnt}/.cow2`, { storeBytes: 60 * MIB }, lab.client);
          const cowFile = `${mnt}/.cow1`;
          await cowbird.updateImageFromSnapshot({ snapshot: DEVICE, cowFile, image, client: lab.client });
          assert.equal(digestOf(image), digestOf(DEVICE), 'the map covers every change');
        }
        if (mode !== 'passthrough') await cowbird.destroy(MINOR, lab.client);
        await check(lab, node, mnt, fsType);
      });
    }
  });
}

describe('an engine that ends while devices come and go', { skip: CANNOT }, () => {
  it('leaves an attach or a detach done, and no trace of a half one', async (t) => {
    const lab = new Lab(t, WITH_FAIL_POINTS);
    await lab.attached('other', 20 * MIB);
    const empty = await traces(lab);
    const origin = lab.image('volume', 20 * MIB);
    const name = `volume-${process.pid}`;
    const DETACH_POINTS = ['detaching', 'links-removed', 'loop-released', 'fuse-unmounted'];
    for (const [i, point] of ['fuse-mounted', 'loop-bound', 'attached', 'resuming'].entries()) {
      if (point !== 'resuming') await cutOff(lab, point, () => cowbird.attach(origin, { name }, lab.client));
      else await cowbird.attach(origin, { name }, lab.client);
      await run('dd', 'if=/dev/urandom', `of=${lab.link('volume')}`, 'bs=1M', 'count=4', 'status=none', 'oflag=direct');
      await cutOff(lab, DETACH_POINTS[i] ?? '', () => cowbird.detach(name, lab.client));
      const now = (await traces(lab)).filter((line) => !line.includes(`${lab.folder}/volume`));
      assert.deepEqual(now, empty, `after ${point}`);
    }
  });

  it('goes on when the next one is killed while it is resuming', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 100 * MIB);
    await cowbird.setupSnapshot(node, lab.path('store'), MINOR, { storeBytes: 60 * MIB }, lab.client);
    await fill(node, 20, 'oflag=direct');
    const before = digestOf(DEVICE);
    for (let kill = 0; kill < 10; kill++) {
      if (await killEngine(lab)) kills++;
      await pause(20 + Math.random() * 200);
    }
    await fill(node, 20, 'oflag=direct');
    assert.equal(digestOf(DEVICE), before);
  });
});
