/**
 * What is tried with kills of the engine: operations that it ends in the middle of, writes that it ends in the middle of.
 * Shared by the short run (`kills.test.ts`) and the long one (`kills.long.ts`).
 */
import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import * as cowbird from '../src/index.js';
import { traces } from './harness.js';
import {
  armFailPoint,
  killEngine,
  restarts,
  untilRestarted,
  untilServed,
  type VerifiedLoad,
  verifiedLoad,
  WITH_FAIL_POINTS,
} from './killing.js';
import { copy, digestOf, fill, Lab, MIB, run } from './lab.js';
import { Prober } from './prober.js';

export type FsType = 'ext4' | 'xfs';
export type Mode = 'passthrough' | 'incremental' | 'snapshot';

export const SETUP_POINTS = [
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
] as const;
export const INCREMENTAL_POINTS = [
  'links-removed',
  'loop-released',
  'fuse-unmounted',
  'described',
  'paused',
  'switched',
  'committed',
  'finished',
] as const;
export const EXPAND_POINTS = [
  'announced',
  'store-grown',
  'described',
  'paused',
  'switched',
  'committed',
  'finished',
] as const;
const WRITE_POINTS = ['before-origin-write', 'before-reply'] as const;
const SAVE_POINTS = ['after-claim', 'after-read', 'after-append', 'after-index'] as const;

const STORE = { storeBytes: 14 * MIB };
/** Of what is read whole after each kill: two stores, the files, and some room. */
const VOLUME_BYTES = 60 * MIB;
/** With what is written meanwhile, all of it into the store. */
const WRITTEN_VOLUME_BYTES = 144 * MIB;

/** Kills so far, and the pauses that probers saw. */
export const tally = { kills: 0, pausesMs: [] as number[] };

interface Bench {
  lab: Lab;
  node: string;
  mnt: string;
  load: VerifiedLoad;
}

async function bench(t: TestContext, fsType: FsType): Promise<Bench> {
  const lab = new Lab(t, WITH_FAIL_POINTS);
  const node = await lab.attached('volume', VOLUME_BYTES);
  await lab.mkfs(node, fsType);
  const mnt = await lab.mount(node);
  await fill(`${mnt}/payload`, 4);
  const load = verifiedLoad(lab, { directory: mnt, blockBytes: 65_536, depth: 4, mib: 6, rateMib: 3 });
  return { lab, node, mnt, load };
}

/** Runs an operation whose engine ends at a point of it; the command must succeed all the same. */
async function cutOff<T>(lab: Lab, point: string, operation: () => Promise<T>): Promise<T> {
  const before = await restarts(lab);
  await armFailPoint(lab, point);
  const result = await operation();
  assert.ok((await restarts(lab)) > before, `the engine ended at ${point}`);
  tally.kills++;
  return result;
}

async function requireSound(lab: Lab, node: string, mnt: string, fsType: FsType): Promise<void> {
  await run('umount', mnt);
  if (fsType === 'xfs') await run('xfs_repair', '-n', node);
  else await run('e2fsck', '-fn', node);
  const modes = (await cowbird.listVolumes(lab.client)).map(({ mode }) => mode);
  assert.deepEqual(modes, ['passthrough']);
}

/** For each point: a setup whose engine ends there, then a destroy whose engine ends at one of its own. */
export async function setupsAndDestroys(
  t: TestContext,
  { fsType, minor, points }: { fsType: FsType; minor: number; points: readonly string[] },
): Promise<void> {
  const { lab, node, mnt, load } = await bench(t, fsType);
  for (const [i, point] of points.entries()) {
    const device = await cutOff(lab, point, () => cowbird.setupSnapshot(node, `${mnt}/.cow`, minor, STORE, lab.client));
    assert.equal(device, `/dev/cowbird${minor}`);
    assert.equal((await lab.status(minor)).seq_id, 1);
    assert.equal(digestOf(device), digestOf(device), `two reads are equal after ${point}`);
    const end = INCREMENTAL_POINTS[i];
    if (end === undefined) await cowbird.destroy(minor, lab.client);
    else await cutOff(lab, end, () => cowbird.destroy(minor, lab.client));
    assert.deepEqual((await cowbird.info(undefined, lab.client)).devices, []);
    await run('sh', '-c', `! ls -A ${mnt} | grep -q cow`);
  }
  await load.stop();
  await requireSound(lab, node, mnt, fsType);
}

/**
 * For each point: an expansion, a transition to incremental and one to a snapshot whose engines end in the middle. Each
 * image follows from the one before and the map.
 */
export async function transitions(
  t: TestContext,
  { fsType, minor, points }: { fsType: FsType; minor: number; points: readonly string[] },
): Promise<void> {
  const { lab, node, mnt, load } = await bench(t, fsType);
  const device = `/dev/cowbird${minor}`;
  await cowbird.setupSnapshot(node, `${mnt}/.cow1`, minor, STORE, lab.client);
  const image = lab.path('image');
  await copy(device, image);
  for (const [i, point] of points.entries()) {
    const sequence = i + 1;
    const expand = EXPAND_POINTS[i];
    if (expand !== undefined) {
      const before = digestOf(device);
      const bytes = await cutOff(lab, expand, () => cowbird.expandCowFile(minor, 4 * MIB, lab.client));
      assert.equal(bytes, STORE.storeBytes + 4 * MIB);
      assert.equal(digestOf(device), before, `the snapshot is what it was, after ${expand}`);
    }
    await cutOff(lab, INCREMENTAL_POINTS[i % INCREMENTAL_POINTS.length] ?? '', () =>
      cowbird.transitionToIncremental(minor, lab.client),
    );
    const next = `${mnt}/.cow${sequence + 1}`;
    await cutOff(lab, point, () => cowbird.transitionToSnapshot(minor, next, STORE, lab.client));
    const cowFile = `${mnt}/.cow${sequence}`;
    const result = await cowbird.updateImageFromSnapshot({ snapshot: device, cowFile, image, client: lab.client });
    assert.equal(result.errors, 0);
    assert.equal(digestOf(image), digestOf(device), `the image follows after ${point}`);
    await run('rm', cowFile);
    const status = await lab.status(minor);
    assert.equal(status.seq_id, sequence + 1);
    assert.equal(status.error, undefined);
  }
  await load.stop();
  await cowbird.destroy(minor, lab.client);
  await requireSound(lab, node, mnt, fsType);
}

export interface WriteKills {
  fsType: FsType;
  mode: Mode;
  minor: number;
  /** How often each named point of the write path is met. */
  rounds: number;
  /** Kills at random moments, after that. */
  randomKills: number;
  /** Times the pauses by reads past the cache. */
  isProbed?: boolean;
}

/** Kills under verified writes of 1 MiB at depth 8; then the snapshot is compared with T0, or the image with the map. */
export async function killsInWrites(t: TestContext, options: WriteKills): Promise<void> {
  const { fsType, mode, minor } = options;
  const device = `/dev/cowbird${minor}`;
  const lab = new Lab(t, WITH_FAIL_POINTS);
  const node = await lab.attached('volume', WRITTEN_VOLUME_BYTES);
  await lab.mkfs(node, fsType);
  const mnt = await lab.mount(node);
  const image = lab.path('image');
  if (mode !== 'passthrough') {
    await cowbird.setupSnapshot(node, `${mnt}/.cow1`, minor, { storeBytes: 64 * MIB }, lab.client);
    await copy(device, image);
  }
  if (mode === 'incremental') await cowbird.transitionToIncremental(minor, lab.client);
  const prober = options.isProbed === true ? new Prober(lab, node) : undefined;
  const load = verifiedLoad(lab, { directory: mnt, blockBytes: MIB, depth: 8, mib: 48, rateMib: 40 });
  await endInWrites(lab, options);
  await load.stop();
  if (prober !== undefined) tally.pausesMs.push(...(await prober.stop()));
  if (mode === 'snapshot') assert.equal(digestOf(device), digestOf(image), 'the snapshot is T0');
  if (mode === 'incremental') {
    await cowbird.transitionToSnapshot(minor, `${mnt}/.cow2`, STORE, lab.client);
    const cowFile = `${mnt}/.cow1`;
    await cowbird.updateImageFromSnapshot({ snapshot: device, cowFile, image, client: lab.client });
    assert.equal(digestOf(image), digestOf(device), 'the map covers every change');
  }
  if (mode !== 'passthrough') {
    assert.equal((await lab.status(minor)).error, undefined);
    await cowbird.destroy(minor, lab.client);
  }
  await requireSound(lab, node, mnt, fsType);
}

async function endInWrites(lab: Lab, { mode, rounds, randomKills }: WriteKills): Promise<void> {
  for (let round = 0; round < rounds; round++) {
    for (const point of [...WRITE_POINTS, ...(mode === 'snapshot' ? SAVE_POINTS : [])]) {
      const before = await restarts(lab);
      await armFailPoint(lab, point, 2);
      // Once all blocks are saved, a point of saving is not reached any more.
      const isLate = pause(1_500).then(() => killEngine(lab));
      await Promise.race([untilRestarted(lab, before, point), isLate]);
      await untilRestarted(lab, before, point);
      tally.kills++;
    }
  }
  for (let done = 0; done < randomKills; ) {
    // Now and then a kill meets an engine that is resuming.
    if (done % 4 !== 3) await untilServed(lab);
    await pause(Math.random() * 300);
    if (!(await killEngine(lab))) continue;
    tally.kills++;
    done++;
  }
}

/** Attaches and detaches whose engines end in the middle. */
export async function attachesAndDetaches(t: TestContext): Promise<void> {
  const lab = new Lab(t, WITH_FAIL_POINTS);
  await lab.attached('other', 20 * MIB);
  const empty = await traces(lab);
  const origin = lab.image('volume', 20 * MIB);
  const name = `volume-${lab.tag}`;
  const detachPoints = ['detaching', 'links-removed', 'loop-released', 'fuse-unmounted'];
  for (const [i, point] of ['fuse-mounted', 'loop-bound', 'attached', undefined].entries()) {
    if (point !== undefined) await cutOff(lab, point, () => cowbird.attach(origin, { name }, lab.client));
    else await cowbird.attach(origin, { name }, lab.client);
    await fill(lab.link('volume'), 4, 'oflag=direct');
    await cutOff(lab, detachPoints[i] ?? '', () => cowbird.detach(name, lab.client));
    const now = (await traces(lab)).filter((line) => !line.includes(`${lab.folder}/volume`));
    assert.deepEqual(now, empty, `after ${point ?? 'an attach'}`);
  }
}

/** Kills that come while the engine resumes from the one before. */
export async function killsWhileResuming(t: TestContext, minor: number): Promise<void> {
  const lab = new Lab(t);
  const node = await lab.attached('volume', 100 * MIB);
  await cowbird.setupSnapshot(node, lab.path('store'), minor, { storeBytes: 60 * MIB }, lab.client);
  await fill(node, 20, 'oflag=direct');
  const before = digestOf(`/dev/cowbird${minor}`);
  for (let kill = 0; kill < 10; kill++) {
    if (await killEngine(lab)) tally.kills++;
    await pause(20 + Math.random() * 200);
  }
  await fill(node, 20, 'oflag=direct');
  assert.equal(digestOf(`/dev/cowbird${minor}`), before);
}
