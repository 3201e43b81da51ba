/**
 * Snapshots of attached volumes for engine `driver`: taken, one or several at one instant, and ended.
 *
 * What a run finds, and how each volume comes to its next snapshot:
 *
 *   not tracked                     first snapshot of a new series
 *   active incremental              the next of its series
 *   active snapshot                 a run was killed: to incremental mode first
 *   an error                        destroyed; first snapshot of a new series
 *   its minor's name is taken       as an error: another daemon has taken the minor while there was no device of it
 *
 * Several at one instant are first snapshots all of them, or next ones all of them. Where some volumes are not tracked and
 * others are, those that are not get a first snapshot of their own before, and then all get their next one together.
 *
 * A run that fails goes back to incremental mode and keeps the closed files: the next one joins their lists.
 */
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { type ClientOptions, call } from '../control/client.js';
import { pathsFrom } from '../control/paths.js';
import type { SnapshotStatus, TakenTogether } from '../control/schema.js';
import { requireGoingOn } from '../repository/runner.js';
import { boundLoops } from '../sys/blkdev.js';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { type AttachedSource, isMinorTaken, ownTracking, unusedMinors } from './attached-volume.js';
import { type CowPlaces, placeCowFile, removeCowFiles, removeSurplus, type Sequence } from './cow-files.js';

const ACTIVE_INCREMENTAL = 2;
const ACTIVE_SNAPSHOT = 3;
/** The daemon itself waits for 2 s each time. */
const FREE_WAIT_MS = 6_000;
const LOOK_AGAIN_MS = 50;
/** Other daemons take minors at the same time. */
const MINOR_ATTEMPTS = 5;

/** Of a snapshot that was taken, whose post-thaw hook failed (`refuseHookProblem` in src/engine/taking.ts). */
const HOOK_FAILED = 'ECANCELED';

/** Commands around a freeze, run by `sh -c`. `postThaw` is run whatever became of `preFreeze`. */
export interface Hooks {
  preFreeze?: string;
  postThaw?: string;
  /** How long each of them may take. @default 30 */
  hookTimeoutSeconds?: number;
}

/** A volume of which a snapshot is to be taken. */
export interface SnapshotRequest {
  attached: AttachedSource;
  places: CowPlaces;
}

export interface TakenSnapshot extends Sequence {
  minor: number;
  cowFile: string;
  /** Why nothing is known of the time before this snapshot; undefined where the series went on. */
  begunAnew: string | undefined;
}

export interface TakenSnapshots {
  /** In the order of the requests. */
  snapshots: TakenSnapshot[];
  /** When they were taken. */
  instant: Date;
  /** How long the file systems stood still; null where the daemon could not say. */
  freezeMs: number | null;
  /** Whether `postThaw` did not do its work; the words are among the warnings. */
  hookFailed: boolean;
  /** What of it did not succeed, in words. */
  warnings: string[];
}

/**
 * Takes the next snapshots of volumes, at one instant.
 *
 * @throws {CowbirdError} EBUSY for a volume that a user tracks himself; ENOSPC without room for a COW file; what the daemon
 * says. There is no snapshot then.
 */
export async function takeSnapshots(
  requests: readonly SnapshotRequest[],
  hooks: Hooks,
  client: ClientOptions,
): Promise<TakenSnapshots> {
  const ready: Ready[] = [];
  for (const request of requests) ready.push(await makeReady(request, client));
  const fresh = ready.filter(({ status }) => status === undefined);
  // The daemon takes them whether or not anybody waits for its answer: an interruption is heard when they are there.
  const { signal, ...unhurried } = client;
  let times: Times;
  if (fresh.length === ready.length) times = await firstSnapshots(fresh, hooks, unhurried);
  else {
    if (fresh.length > 0) await beginTracking(fresh, unhurried);
    times = await nextSnapshots(ready, hooks, unhurried);
  }
  try {
    requireGoingOn(signal);
    const snapshots: TakenSnapshot[] = [];
    for (const { request, begunAnew } of ready) {
      const status = await ownTracking(request.attached.volume, unhurried);
      if (status === undefined) throw ended(request.attached.volume.name);
      const { minor, cow_file: cowFile, uuid = '', seq_id: sequenceId = 0 } = status;
      snapshots.push({ minor, cowFile, begunAnew, uuid, sequenceId });
    }
    return { snapshots, ...times };
  } catch (error) {
    throw await givenUp(ready, error, unhurried);
  }
}

/** Snapshots that were taken and nobody will copy go on to incremental mode. Returns the error to be thrown. */
async function givenUp(ready: readonly Ready[], error: unknown, client: ClientOptions): Promise<unknown> {
  const problems: string[] = [];
  for (const { request } of ready) {
    try {
      const status = await ownTracking(request.attached.volume, client);
      if (status?.state !== ACTIVE_SNAPSHOT) continue;
      await whenFree(() => call('transitionToIncremental', { minor: status.minor }, client));
    } catch (second) {
      problems.push(`the snapshot of ${request.attached.volume.name} is still there (${messageOf(second)})`);
    }
  }
  if (problems.length === 0) return error;
  return new CowbirdError(codeOf(errnoOfError(error)), `${messageOf(error)}; ${problems.join('; ')}`, {
    outcome: 'failed',
    cause: error,
  });
}

interface Ready {
  request: SnapshotRequest;
  /** In incremental mode; undefined where a series is to begin. */
  status: SnapshotStatus | undefined;
  begunAnew: string | undefined;
}

type Times = Omit<TakenSnapshots, 'snapshots'>;

async function makeReady(request: SnapshotRequest, client: ClientOptions): Promise<Ready> {
  const status = await ownTracking(request.attached.volume, client);
  if (status === undefined) return { request, status, begunAnew: 'the volume was not tracked' };
  const { minor } = status;
  const isTaken = isMinorTaken(minor) && snapshotNode(minor, client) === undefined;
  if (status.error !== undefined || isTaken) {
    await whenFree(() => call('destroy', { minor }, client));
    const why = isTaken
      ? `another daemon has taken minor ${minor}`
      : `tracking had failed (${status.error_reason ?? status.error})`;
    return { request, status: undefined, begunAnew: why };
  }
  if (status.state === ACTIVE_SNAPSHOT) await whenFree(() => call('transitionToIncremental', { minor }, client));
  return { request, status, begunAnew: undefined };
}

/** What a run that was killed has started, or udev, may have its snapshot open for a moment. */
async function whenFree(action: () => Promise<unknown>): Promise<void> {
  const deadline = Date.now() + FREE_WAIT_MS;
  for (;;) {
    try {
      await action();
      return;
    } catch (error) {
      const isBusy = error instanceof CowbirdError && error.code === 'EBUSY';
      if (!isBusy || Date.now() > deadline) throw error;
      await pause(LOOK_AGAIN_MS);
    }
  }
}

async function firstSnapshots(fresh: readonly Ready[], hooks: Hooks, client: ClientOptions): Promise<Times> {
  for (const { request } of fresh) {
    // Whatever these were of, no series needs them any more.
    removeCowFiles(request.places, undefined, 0);
  }
  for (let attempt = 1; ; attempt++) {
    const minors = await unusedMinors(fresh.length, client);
    const snapshots = fresh.map(({ request: { attached, places } }, i) => {
      const { path: cowFile, storeBytes } = placeCowFile(places, 1);
      return { device: attached.volume.device, cowFile, storeBytes, minor: minors[i] ?? 0 };
    });
    try {
      return await timesOf(() => call('setupTogether', { snapshots, ...hooks }, client));
    } catch (error) {
      const isBusy = error instanceof CowbirdError && error.code === 'EBUSY' && error.outcome !== 'partial';
      if (!isBusy || attempt === MINOR_ATTEMPTS || !minors.some(isMinorTaken)) throw error;
    }
  }
}

/** First snapshots that nobody copies: what comes next is to be one instant with volumes that are tracked already. */
async function beginTracking(fresh: readonly Ready[], client: ClientOptions): Promise<void> {
  for (const one of fresh) {
    await firstSnapshots([one], {}, client);
    const { volume } = one.request.attached;
    one.status = await ownTracking(volume, client);
    const minor = one.status?.minor;
    if (minor === undefined) throw ended(volume.name);
    await whenFree(() => call('transitionToIncremental', { minor }, client));
  }
}

function nextSnapshots(ready: readonly Ready[], hooks: Hooks, client: ClientOptions): Promise<Times> {
  const snapshots = ready.map(({ request, status }) => {
    if (status === undefined) throw ended(request.attached.volume.name);
    const { path: cowFile, storeBytes } = placeCowFile(request.places, (status.seq_id ?? 0) + 1);
    return { minor: status.minor, cowFile, storeBytes };
  });
  return timesOf(() => call('transitionTogether', { snapshots, ...hooks }, client));
}

async function timesOf(action: () => Promise<TakenTogether>): Promise<Times> {
  try {
    const { freezeMs } = await action();
    return { instant: new Date(), freezeMs, hookFailed: false, warnings: [] };
  } catch (error) {
    // The snapshots are there. That a list of changes could not be written shows again when it is read.
    if (!(error instanceof CowbirdError) || error.outcome !== 'partial') throw error;
    const hookFailed = error.code === HOOK_FAILED;
    return { instant: new Date(), freezeMs: null, hookFailed, warnings: [error.message] };
  }
}

function ended(what: string): CowbirdError {
  return new CowbirdError('ENOENT', `The tracking of ${what} has ended meanwhile: run this again`, {
    outcome: 'failed',
  });
}

/** The node of this daemon's snapshot, whatever has its name: that may be another daemon's. Undefined where there is none. */
export function snapshotNode(minor: number, client: ClientOptions): string | undefined {
  const file = join(pathsFrom(client.env ?? process.env).fuseDir, `snapshot-${minor}`);
  return boundLoops().find(({ backingFile }) => backingFile === file)?.node;
}

async function statusOf(minor: number, client: ClientOptions): Promise<SnapshotStatus> {
  const [status] = (await call('info', { minor }, client)).devices;
  if (status !== undefined) return status;
  throw ended(`minor ${minor}`);
}

/** @throws {CowbirdError} EIO when the snapshot is not there any more, or has failed. */
export async function requireSnapshot(taken: TakenSnapshot, client: ClientOptions): Promise<void> {
  const { minor, state, uuid, seq_id, error, error_reason } = await statusOf(taken.minor, client);
  const isSame = uuid === taken.uuid && seq_id === taken.sequenceId && state % 2 === 1;
  if (isSame && error === undefined) return;
  const what =
    error === undefined ? 'somebody else went on with it' : `it has failed: ${error_reason ?? `error ${error}`}`;
  throw new CowbirdError(
    'EIO',
    `The snapshot, minor ${minor}, cannot be used (${what}): no version was made. Run this again; a COW file that is too small gets more room with --cow DIRECTORY`,
    { outcome: 'failed' },
  );
}

/**
 * After the version, or instead of it: on to incremental mode. `committed`: a version was made. Returns what did not succeed,
 * in words; never throws.
 */
export async function endSnapshot(
  taken: TakenSnapshot,
  places: CowPlaces,
  committed: boolean,
  client: ClientOptions,
): Promise<string[]> {
  try {
    const status = await statusOf(taken.minor, client);
    const isOurs = status.uuid === taken.uuid && status.seq_id === taken.sequenceId;
    if (isOurs && status.error === undefined && status.state !== ACTIVE_INCREMENTAL)
      await whenFree(() => call('transitionToIncremental', { minor: taken.minor }, client));
    if (!isOurs) return [];
    return committed ? removeCowFiles(places, taken.sequenceId, 0) : removeSurplus(places, taken.sequenceId);
  } catch (error) {
    return [
      `the snapshot, minor ${taken.minor}, is still there (${messageOf(error)}): the next backup goes on from it, \`cowbird transition-to-incremental ${taken.minor}\` now`,
    ];
  }
}
