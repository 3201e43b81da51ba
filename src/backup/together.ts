/**
 * Backups of several sources at one instant: every one of them gets a version, or none does.
 *
 * Attached volumes that are in use are snapshotted together by the daemon; or disks in use are read together by engine `live`
 * and frozen at one moment (standstill.ts). Everything else (image files, unused disks, attached volumes that are not mounted)
 * is claimed before that instant and until the end, and so is the same at it.
 */
import { randomBytes } from 'node:crypto';
import { SharedStandstill } from '../live/standstill.js';
import { DiskFiles } from '../repository/disk-files.js';
import { Repository } from '../repository/repository.js';
import { WorkerPool } from '../repository/runner.js';
import type { BackupSource } from '../repository/source.js';
import { newestOf } from '../repository/state.js';
import { abortTogether, commitTogether } from '../repository/together.js';
import { type PreparedVersion, prepareVersion } from '../repository/update.js';
import { assert, CowbirdError } from '../sys/errors.js';
import { realPathOfNew, requireApart, requireSameSource } from './apart.js';
import {
  type AttachedSource,
  attachedAgain,
  cowPlaces,
  driverVolume,
  lockVolume,
  ownTracking,
  requireOffVolume,
} from './attached-volume.js';
import {
  type BackupOptions,
  type BackupSummary,
  type Chosen,
  holdsFileSystem,
  lockRepositoryImage,
  patiently,
  versionOptions,
  withDeadline,
} from './backup.js';
import { type DriverSource, openDriverSources } from './driver-source.js';
import { finishVersion } from './finish-version.js';
import { LiveDisk, type LiveSource, openLiveSource, startFreezer } from './live-backup.js';
import { isForLive, liveOptionsOf, liveRequest, withLive } from './live-choice.js';
import { openOptions } from './repository-at.js';
import { type OpenSource, openScanSource } from './scan-source.js';
import { openUnmountedSource } from './unmounted-source.js';

const ID_BYTES = 16;

/** A source and the repository that its version goes to. */
export interface BackupPair {
  source: string;
  repository: string;
}

export interface TogetherSummary {
  /** The manifests have it as `togetherId`. */
  id: string;
  /** In the order of the pairs. */
  backups: Array<BackupPair & BackupSummary>;
}

/** What is known of a pair, more with every step. */
interface Work {
  pair: BackupPair;
  /** What the pair's source is read from, unless it is a volume to be snapshotted. */
  node: string;
  /** Real path of the repository. */
  path: string;
  attached: AttachedSource | undefined;
  /** It is a disk in use, for engine live. */
  isLive: boolean;
  scanned: OpenSource | undefined;
  held: Repository | undefined;
  driver: DriverSource | undefined;
  live: LiveSource | undefined;
  source: BackupSource | undefined;
  chosen: Chosen | undefined;
}

/** Undone in reverse order, on every path. */
type Cleanups = Array<() => unknown>;

/**
 * Makes a version of each source in its repository, all of one instant: all of them, or none.
 *
 * @throws {CowbirdError} EINVAL for a source or repository that is named twice; else as `backup`.
 */
export async function backupTogether(
  pairs: readonly BackupPair[],
  given: BackupOptions = {},
): Promise<TogetherSummary> {
  const options = withDeadline(given);
  const client = options.client ?? {};
  const cleanups: Cleanups = [];
  const attempt = async (): Promise<TogetherSummary> => {
    const works: Work[] = [];
    for (const pair of pairs) works.push(await lookUp(pair, options));
    refuseTwice('repository', works, ({ path }) => path);
    refuseTwice('source', works, ({ attached, pair }) => attached?.volume.device ?? realPathOfNew(pair.source).real);
    refuseMixture(works);
    // In one order for everybody, so that two of these never wait for each other: volumes, then repositories.
    const byVolume = [...works].sort((a, b) => (volumeOf(a) < volumeOf(b) ? -1 : 1));
    for (const { attached } of byVolume)
      if (attached !== undefined) cleanups.push(await lockVolume(attached, client, openOptions(options)));
    if (options.waitMs === 0) for (const work of works) await claim(work, options, cleanups);
    const byPath = [...works].sort((a, b) => (a.path < b.path ? -1 : 1));
    for (const work of byPath) await openRepository(work, options, cleanups);
    for (const work of works) await claim(work, options, cleanups);
    for (const work of works) requireKnown(work);
    const pool = new WorkerPool();
    cleanups.push(() => pool.close());
    return makeVersions(works, pool, options, cleanups);
  };
  const [outcome] = await Promise.allSettled([attempt()]);
  const problems = await undoAll(cleanups);
  if (outcome.status === 'rejected') throw outcome.reason;
  if (problems.length > 0) throw problems[0];
  return outcome.value;
}

/** Every one of them, whatever becomes of the others. Returns what failed. */
async function undoAll(cleanups: Cleanups): Promise<unknown[]> {
  const problems: unknown[] = [];
  for (const undo of cleanups.reverse()) {
    try {
      await undo();
    } catch (error) {
      problems.push(error);
    }
  }
  return problems;
}

async function lookUp(pair: BackupPair, options: BackupOptions): Promise<Work> {
  const { engine = 'auto', client = {} } = options;
  const { attached, source } = await driverVolume(pair.source, engine, client);
  const { real, existing } = realPathOfNew(pair.repository);
  if (attached !== undefined) {
    requireOffVolume(attached, pair.repository, existing);
    await ownTracking(attached.volume, client);
  }
  const isLive = attached === undefined && (await patiently(source, options, () => isForLive(source, real, options)));
  const none = { scanned: undefined, held: undefined, driver: undefined, live: undefined };
  return { pair, node: source, path: real, attached, isLive, ...none, source: undefined, chosen: undefined };
}

/** The daemon's freeze and that of engine live are two. */
function refuseMixture(works: readonly Work[]): void {
  const live = works.find(({ isLive }) => isLive);
  const snapshotted = works.find(({ attached }) => attached !== undefined && isSnapshotted(attached));
  if (live === undefined || snapshotted === undefined) return;
  throw new CowbirdError(
    'EINVAL',
    `${snapshotted.pair.source} is an attached volume in use, ${live.pair.source} a disk in use that is not attached: these cannot be of one instant. With \`--engine live\` both are read as disks; or attach ${live.pair.source} too`,
  );
}

function isSnapshotted(attached: AttachedSource): boolean {
  return attached.isMounted || !holdsFileSystem(attached);
}

function refuseTwice(what: string, works: readonly Work[], nameOf: (work: Work) => string): void {
  const names = works.map(nameOf);
  const twice = names.find((name, i) => names.indexOf(name) < i);
  if (twice !== undefined)
    throw new CowbirdError('EINVAL', `The ${what} ${twice} is named twice: every source has a repository of its own`);
}

function volumeOf({ attached }: Work): string {
  return attached?.volume.name ?? '';
}

/** Keeps everybody from a source that is neither attached nor in use. Where repositories are waited for, whoever has one has it too. */
async function claim(work: Work, options: BackupOptions, cleanups: Cleanups): Promise<void> {
  if (work.attached !== undefined || work.isLive || work.scanned !== undefined) return;
  const scanned = await patiently(work.node, options, () => openScanSource(work.node));
  cleanups.push(() => scanned.close());
  requireApart(scanned.identity, work.path);
  work.scanned = scanned;
}

async function openRepository(work: Work, options: BackupOptions, cleanups: Cleanups): Promise<void> {
  const files = new DiskFiles(work.path);
  const isNew = files.create();
  const held = await Repository.open(files, 'write', { ...openOptions(options), mayBegin: true });
  cleanups.push(() => held.close());
  if (isNew) cleanups.push(() => files.removeEmpty());
  cleanups.push(lockRepositoryImage(work.path));
  // It may have been waited for: a volume may be mounted now, or not any more.
  if (work.attached !== undefined) work.attached = await attachedAgain(work.attached, options.client ?? {});
  work.held = held;
}

function requireKnown(work: Work): void {
  if (work.isLive || work.held === undefined) return;
  const identity = work.attached?.identity ?? work.scanned?.identity;
  const sizeBytes = work.attached?.volume.sizeBytes ?? work.scanned?.sizeBytes;
  assert(identity !== undefined && sizeBytes !== undefined, 'what is not live is attached or scanned');
  requireSameSource(work.held, identity, sizeBytes);
}

/** Claims what is not in use, and takes the snapshots of the rest at one instant. */
async function openSources(works: readonly Work[], options: BackupOptions, cleanups: Cleanups): Promise<void> {
  const client = options.client ?? {};
  const inUse: Work[] = [];
  for (const work of works) {
    const { attached, scanned, isLive } = work;
    if (isLive) continue;
    if (attached === undefined) {
      work.source = scanned;
      const reason = options.engine === 'scan' ? 'scan was asked for' : 'nothing tracks the changes of this source';
      work.chosen = { engine: 'scan', reason, token: null, freezeMs: 0 };
    } else if (!isSnapshotted(attached)) {
      const opened = await openUnmountedSource(attached, newestIn(work), options.whole === true, client);
      cleanups.push(() => opened.source.close());
      const engine = opened.source.candidates === undefined ? 'scan' : 'driver';
      work.source = opened.source;
      work.chosen = { engine, reason: opened.reason, token: opened.token, freezeMs: 0 };
    } else inUse.push(work);
  }
  if (inUse.length > 0) await openSnapshots(inUse, options);
}

/** Opens disks in use, and what freezes them together. */
async function openLive(
  works: readonly Work[],
  options: BackupOptions,
  cleanups: Cleanups,
): Promise<SharedStandstill | undefined> {
  const disks = new Map<Work, LiveDisk>();
  for (const work of works) {
    if (!work.isLive) continue;
    const disk = LiveDisk.open(work.node, liveOptionsOf(options));
    cleanups.push(() => disk.close());
    // What is frozen must hold no repository of any of them.
    for (const { path } of works) requireApart(disk.identity, path);
    if (work.held !== undefined) requireSameSource(work.held, disk.identity, disk.sizeBytes);
    disks.set(work, disk);
  }
  if (disks.size === 0) return undefined;
  const freezer = await startFreezer([...disks.values()], liveOptionsOf(options));
  cleanups.push(() => freezer.close());
  const standstill = new SharedStandstill(freezer, disks.size);
  for (const [work, disk] of disks) {
    assert(work.held !== undefined, 'its repository is open');
    const live = openLiveSource(liveRequest(disk, work.held, standstill.member(), options));
    cleanups.push(() => live.close());
    const { source, reason, token, committed } = live;
    work.live = live;
    work.source = source;
    work.chosen = { engine: 'live', reason, token, freezeMs: 0, committed };
  }
  return standstill;
}

function newestIn({ held }: Work): ReturnType<typeof newestOf> | undefined {
  return held?.manifest === undefined ? undefined : newestOf(held.manifest);
}

async function openSnapshots(works: readonly Work[], options: BackupOptions): Promise<void> {
  const client = options.client ?? {};
  const requests = [];
  for (const work of works) {
    const { attached } = work;
    assert(attached !== undefined, 'only attached volumes are snapshotted');
    const current = (await ownTracking(attached.volume, client))?.cow_file;
    const places = cowPlaces(attached, options.cow, current, client);
    requests.push({ attached, places, newest: newestIn(work), whole: options.whole === true });
  }
  const drivers = await openDriverSources(requests, options.hooks ?? {}, client);
  for (const [i, work] of works.entries()) {
    const driver = drivers[i];
    assert(driver !== undefined, 'every request has its source');
    const { source, reason, token, freezeMs } = driver;
    work.driver = driver;
    work.source = source;
    work.chosen = { engine: 'driver', reason, token, freezeMs };
  }
}

async function makeVersions(
  works: readonly Work[],
  pool: WorkerPool,
  options: BackupOptions,
  cleanups: Cleanups,
): Promise<TogetherSummary> {
  const id = randomBytes(ID_BYTES).toString('hex');
  const problems = new Map<Work, string[]>();
  const backups: TogetherSummary['backups'] = [];
  let isMade = false;
  try {
    await openSources(works, options, cleanups);
    const standstill = await openLive(works, options, cleanups);
    for (const { driver } of works) if (driver !== undefined) await options.onSnapshot?.(driver.node);
    const parts = await prepareAll(works, { pool, standstill }, id, options);
    const results = await commitTogether(id, parts);
    isMade = true;
    for (const [i, { pair, held, chosen, live }] of works.entries()) {
      const result = results[i];
      assert(held !== undefined && chosen !== undefined && result !== undefined, 'every pair has its version');
      const summary = await finishVersion(held, result, chosen, options);
      backups.push({ ...pair, ...(live === undefined ? summary : withLive(summary, live)) });
    }
  } finally {
    for (const work of works) problems.set(work, (await work.driver?.end(isMade)) ?? []);
  }
  for (const [i, work] of works.entries()) {
    const made = backups[i];
    assert(made !== undefined, 'every pair has its version');
    made.warnings.push(...(work.driver?.warnings ?? []), ...(problems.get(work) ?? []));
    made.hookFailed ||= work.driver?.hookFailed === true;
  }
  return { id, backups };
}

async function prepareAll(
  works: readonly Work[],
  { pool, standstill }: { pool: WorkerPool; standstill: SharedStandstill | undefined },
  id: string,
  options: BackupOptions,
): Promise<PreparedVersion[]> {
  const parts = new Map<Work, PreparedVersion>();
  try {
    // What stands still anyway is first: the disks in use are the later the less is written meanwhile.
    for (const work of works) if (!work.isLive) parts.set(work, await prepare(work, pool, id, options));
    if (standstill !== undefined) await prepareLive(works, standstill, id, options, parts);
    return works.map((work) => {
      const part = parts.get(work);
      assert(part !== undefined, 'every pair has its version');
      return part;
    });
  } catch (error) {
    throw abortTogether([...parts.values()], error);
  }
}

/** All at the same time: each waits for the others before the freeze. Adds to `parts` what was prepared, whatever happens. */
async function prepareLive(
  works: readonly Work[],
  standstill: SharedStandstill,
  id: string,
  options: BackupOptions,
  parts: Map<Work, PreparedVersion>,
): Promise<void> {
  const outcomes = await Promise.allSettled(
    works.map(async (work) => {
      if (!work.isLive) return;
      // A pool runs one job at a time.
      const pool = new WorkerPool();
      try {
        parts.set(work, await prepare(work, pool, id, options));
      } catch (error) {
        standstill.abort(error);
        throw error;
      } finally {
        await pool.close();
      }
    }),
  );
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw standstill.error ?? outcome.reason;
}

async function prepare(
  { held, source, chosen }: Work,
  pool: WorkerPool,
  id: string,
  options: BackupOptions,
): Promise<PreparedVersion> {
  assert(held !== undefined && source !== undefined && chosen !== undefined, 'every pair has its source');
  return prepareVersion(held, source, { ...versionOptions(held, pool, chosen, options), togetherId: id });
}
