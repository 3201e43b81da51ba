/**
 * Backups of several sources at one instant: every one of them gets a version, or none does.
 *
 * Attached volumes that are in use are snapshotted together by the daemon. Everything else (image files, unused disks, attached
 * volumes that are not mounted) is claimed before that instant and until the end, and so is the same at it.
 */
import { randomBytes } from 'node:crypto';
import type { ClientOptions } from '../control/client.js';
import { DiskFiles } from '../repository/disk-files.js';
import { Repository } from '../repository/repository.js';
import { WorkerPool } from '../repository/runner.js';
import type { BackupSource } from '../repository/source.js';
import { newestOf } from '../repository/state.js';
import { abortTogether, commitTogether } from '../repository/together.js';
import { type PreparedVersion, prepareVersion } from '../repository/update.js';
import { assert, CowbirdError } from '../sys/errors.js';
import {
  type AttachedSource,
  attachedSource,
  cowPlaces,
  lockVolume,
  ownTracking,
  requireOffVolume,
} from './attached-volume.js';
import {
  type BackupOptions,
  type BackupSummary,
  type Chosen,
  finishVersion,
  holdsFileSystem,
  lockRepositoryImage,
  realPathOfNew,
  requireApart,
  requireSameSource,
  versionOptions,
} from './backup.js';
import { type DriverSource, openDriverSources } from './driver-source.js';
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
  /** Real path of the repository. */
  path: string;
  attached: AttachedSource | undefined;
  scanned: OpenSource | undefined;
  held: Repository | undefined;
  driver: DriverSource | undefined;
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
  options: BackupOptions = {},
): Promise<TogetherSummary> {
  const client = options.client ?? {};
  const cleanups: Cleanups = [];
  try {
    const works: Work[] = [];
    for (const pair of pairs) works.push(await lookUp(pair, options));
    refuseTwice('repository', works, ({ path }) => path);
    refuseTwice('source', works, ({ attached, pair }) => attached?.volume.device ?? realPathOfNew(pair.source).real);
    for (const work of works) claim(work, client, cleanups);
    // In one order for everybody, so that two of these never wait for each other.
    const byPath = [...works].sort((a, b) => (a.path < b.path ? -1 : 1));
    for (const work of byPath) await openRepository(work, options, cleanups);
    const pool = new WorkerPool();
    cleanups.push(() => pool.close());
    return await makeVersions(works, pool, options, cleanups);
  } finally {
    for (const undo of cleanups.reverse()) await undo();
  }
}

async function lookUp(pair: BackupPair, options: BackupOptions): Promise<Work> {
  const { engine = 'auto', client = {} } = options;
  const attached = engine === 'scan' ? undefined : await attachedSource(pair.source, client);
  if (attached === undefined && engine === 'driver')
    throw new CowbirdError(
      'EINVAL',
      `${pair.source} is not an attached volume, which engine driver wants: \`cowbird attach ${pair.source}\` makes it one`,
    );
  const { real, existing } = realPathOfNew(pair.repository);
  if (attached !== undefined) {
    requireOffVolume(attached, pair.repository, existing);
    await ownTracking(attached.volume, client);
  }
  const none = { scanned: undefined, held: undefined, driver: undefined, source: undefined, chosen: undefined };
  return { pair, path: real, attached, ...none };
}

function refuseTwice(what: string, works: readonly Work[], nameOf: (work: Work) => string): void {
  const names = works.map(nameOf);
  const twice = names.find((name, i) => names.indexOf(name) < i);
  if (twice !== undefined)
    throw new CowbirdError('EINVAL', `The ${what} ${twice} is named twice: every source has a repository of its own`);
}

/** Keeps others from the source: volumes from other backups, everything else from everybody. */
function claim(work: Work, client: ClientOptions, cleanups: Cleanups): void {
  if (work.attached !== undefined) {
    cleanups.push(lockVolume(work.attached, client));
    return;
  }
  const scanned = openScanSource(work.pair.source);
  cleanups.push(() => scanned.close());
  requireApart(scanned.identity, work.path);
  work.scanned = scanned;
}

async function openRepository(work: Work, options: BackupOptions, cleanups: Cleanups): Promise<void> {
  const files = new DiskFiles(work.path);
  files.create();
  const held = await Repository.open(files, 'write', { ...openOptions(options), mayBegin: true });
  cleanups.push(() => held.close());
  cleanups.push(lockRepositoryImage(work.path));
  const { volume } = work.attached ?? {};
  // It may have been waited for: a volume may be mounted now, or not any more.
  if (volume !== undefined) work.attached = await attachedSource(volume.device, options.client ?? {});
  const identity = work.attached?.identity ?? work.scanned?.identity;
  if (identity === undefined) throw new CowbirdError('ENODEV', `${work.pair.source} was detached meanwhile`);
  requireSameSource(held, identity);
  work.held = held;
}

/** Claims what is not in use, and takes the snapshots of the rest at one instant. */
async function openSources(works: readonly Work[], options: BackupOptions, cleanups: Cleanups): Promise<void> {
  const client = options.client ?? {};
  const inUse: Work[] = [];
  for (const work of works) {
    const { attached, scanned } = work;
    if (attached === undefined) {
      work.source = scanned;
      const reason = options.engine === 'scan' ? 'scan was asked for' : 'nothing tracks the changes of this source';
      work.chosen = { engine: 'scan', reason, token: null, freezeMs: 0 };
    } else if (!attached.isMounted && holdsFileSystem(attached)) {
      const opened = await openUnmountedSource(attached, newestIn(work), options.whole === true, client);
      cleanups.push(() => opened.source.close());
      const engine = opened.source.candidates === undefined ? 'scan' : 'driver';
      work.source = opened.source;
      work.chosen = { engine, reason: opened.reason, token: opened.token, freezeMs: 0 };
    } else inUse.push(work);
  }
  if (inUse.length > 0) await openSnapshots(inUse, options);
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
    for (const { driver } of works) if (driver !== undefined) await options.onSnapshot?.(driver.node);
    const parts = await prepareAll(works, pool, id, options);
    const results = await commitTogether(id, parts);
    isMade = true;
    for (const [i, { pair, held, chosen }] of works.entries()) {
      const result = results[i];
      assert(held !== undefined && chosen !== undefined && result !== undefined, 'every pair has its version');
      backups.push({ ...pair, ...(await finishVersion(held, result, chosen, options)) });
    }
  } finally {
    for (const work of works) problems.set(work, (await work.driver?.end(isMade)) ?? []);
  }
  for (const [i, work] of works.entries())
    backups[i]?.warnings.push(...(work.driver?.warnings ?? []), ...(problems.get(work) ?? []));
  return { id, backups };
}

async function prepareAll(
  works: readonly Work[],
  pool: WorkerPool,
  id: string,
  options: BackupOptions,
): Promise<PreparedVersion[]> {
  const parts: PreparedVersion[] = [];
  try {
    for (const { held, source, chosen } of works) {
      assert(held !== undefined && source !== undefined && chosen !== undefined, 'every pair has its source');
      const version = { ...versionOptions(held, pool, chosen, options), togetherId: id };
      parts.push(await prepareVersion(held, source, version));
    }
    return parts;
  } catch (error) {
    abortTogether(parts);
    throw error;
  }
}
