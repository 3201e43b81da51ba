/**
 * One backup: choose the engine, open the source, make the version, drop what is no longer kept.
 *
 * An engine is whatever makes a `BackupSource`: what there is to read, which of it is in use, and, where that is proved,
 * which of it may have changed. The repository does the same with each.
 */
import { realpathSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import type { ClientOptions } from '../control/client.js';
import type { Freezer } from '../live/freezer.js';
import { aloneWith } from '../live/standstill.js';
import { DiskFiles } from '../repository/disk-files.js';
import { IMAGE, regionCount } from '../repository/layout.js';
import type { VersionRecord } from '../repository/manifest.js';
import type { Repository } from '../repository/repository.js';
import { requireGoingOn, type WorkerPool } from '../repository/runner.js';
import type { BackupSource } from '../repository/source.js';
import { newestOf } from '../repository/state.js';
import { createVersion } from '../repository/update.js';
import type { UpdateOptions } from '../repository/update-options.js';
import { assert, codeOf, errnoOfError } from '../sys/errors.js';
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
import { type DriverRequest, openDriverSources } from './driver-source.js';
import { finishVersion } from './finish-version.js';
import { LiveDisk, type LiveOptions, openLiveSource, startFreezer } from './live-backup.js';
import { isForLive, liveOptionsOf, liveRequest, withLive } from './live-choice.js';
import { openOptions, type RepositoryOptions, withRepository } from './repository-at.js';
import { isUsedForLong, lockImage, type OpenSource, openScanSource, realPathOf } from './scan-source.js';
import type { Hooks } from './snapshots.js';
import { openUnmountedSource } from './unmounted-source.js';

const CLAIM_AGAIN_MS = 250;

export interface BackupOptions extends RepositoryOptions {
  /**
   * @default 'auto': `driver` for an attached volume that is mounted, `live` for any other disk in use and for one that it
   * tracks, `scan` for everything else
   */
  engine?: 'auto' | 'driver' | 'live' | 'scan';
  /** For engine `live`. */
  live?: LiveOptions;
  /** Directory for the COW files of engine `driver`. @default the root of the volume's file system */
  cow?: string;
  /** Keep so many of the newest versions. @default all */
  keep?: number;
  /** Copy unused blocks too. */
  whole?: boolean;
  /** Make a version although some blocks cannot be read; they are recorded. */
  skipBadBlocks?: boolean;
  /** Hears the node of the snapshot that is copied (engine `driver`) as soon as it is there; waited for. */
  onSnapshot?: (device: string) => Promise<void>;
  /** Commands around the freeze: run by the daemon (engine `driver`) or by a helper (engine `live`). */
  hooks?: Hooks;
  /** Where the daemon is. */
  client?: ClientOptions;
}

export interface BackupSummary {
  version: number;
  engine: VersionRecord['engine'];
  /** Why this engine, in words. */
  reason: string;
  sizeBytes: number;
  /** Of the source. */
  bytesRead: number;
  /** To the repository. */
  bytesWritten: number;
  /** How long the file system stood still; null where that is not known. */
  freezeMs: number | null;
  /** How often something was read: more than once by engine `live` only. */
  passes: number;
  /** What engine `live` read while the file system stood still. */
  restBytes: number;
  /** Could not be read. */
  skippedBytes: number;
  /** Versions that were dropped. */
  dropped: number[];
  /** Whether `postThaw` did not do its work, though the version was made: what it was to start again may stand still. */
  hookFailed: boolean;
  /** What else the person has to know. */
  warnings: string[];
}

/**
 * Makes a version of an attached volume, an image file or an unused disk in a repository, which is made where it does not
 * exist.
 *
 * @throws {CowbirdError} with `refused` when nothing was changed; the versions that there were are untouched in any case.
 */
export async function backup(named: string, repository: string, given: BackupOptions = {}): Promise<BackupSummary> {
  const options = withDeadline(given);
  const path = resolve(repository);
  const engine = options.engine ?? 'auto';
  const { attached, source } = await driverVolume(named, engine, options.client ?? {});
  if (attached !== undefined) return backupAttached(attached, path, options);
  if (await patiently(source, options, () => isForLive(source, path, options)))
    return backupLive(source, path, options);
  return backupScanned(source, path, options);
}

/**
 * An image file, or a disk that nobody uses. It is claimed from the beginning; while others are waited for it is not, for whoever has the
 * repository has the source as well.
 */
async function backupScanned(named: string, path: string, options: BackupOptions): Promise<BackupSummary> {
  const isPatient = (options.waitMs ?? 0) > 0;
  const first = isPatient ? undefined : openApart(named, path);
  if (isPatient) requirePossible(named, path);
  try {
    return await withNewRepository(path, options, async (held, pool) => {
      const opened = first ?? (await patiently(named, options, () => openApart(named, path)));
      try {
        requireSameSource(held, opened.identity, opened.sizeBytes);
        const reason = options.engine === 'scan' ? 'scan was asked for' : 'nothing tracks the changes of this source';
        const chosen: Chosen = { engine: 'scan', reason, token: null, freezeMs: 0 };
        return await makeVersion(held, pool, opened, chosen, options);
      } finally {
        if (opened !== first) opened.close();
      }
    });
  } finally {
    first?.close();
  }
}

/** Options whose `waitMs` is what is left of the time, whenever it is asked for: several things may be waited for. */
export function withDeadline(options: BackupOptions): BackupOptions & { readonly waitMs: number } {
  const deadline = Date.now() + (options.waitMs ?? 0);
  return {
    ...options,
    get waitMs() {
      return Math.max(0, deadline - Date.now());
    },
  };
}

/** What can be told before the source is claimed. */
function requirePossible(named: string, path: string): void {
  const real = realPathOf(named);
  const stats = statSync(real);
  // It says what is wrong with it.
  if (!stats.isFile() && !stats.isBlockDevice()) openScanSource(named).close();
  requireApart({ kind: stats.isFile() ? 'file' : 'device', path: real, place: real, content: null }, path);
}

/**
 * Does something with a source that another backup may have at the moment, again and again as long as the time lasts.
 *
 * @throws {CowbirdError} EBUSY when it is still in use then; at once where it is mounted or behind a loop device.
 */
export async function patiently<T>(named: string, options: BackupOptions, attempt: () => T): Promise<T> {
  for (;;) {
    try {
      return attempt();
    } catch (error) {
      const isWaitedFor = (options.waitMs ?? 0) > 0 && codeOf(errnoOfError(error)) === 'EBUSY' && !isUsedForLong(named);
      if (!isWaitedFor) throw error;
    }
    requireGoingOn(options.signal);
    await pause(CLAIM_AGAIN_MS);
  }
}

function openApart(named: string, path: string): OpenSource {
  const opened = openScanSource(named);
  try {
    requireApart(opened.identity, path);
    return opened;
  } catch (error) {
    opened.close();
    throw error;
  }
}

/** A disk that Cowbird was never attached to, as it is used. */
async function backupLive(named: string, path: string, options: BackupOptions): Promise<BackupSummary> {
  return withNewRepository(path, options, async (held, pool) => {
    // The repository may have been waited for: how the disk is used is looked at now.
    const disk = LiveDisk.open(named, liveOptionsOf(options));
    let freezer: Freezer | undefined;
    try {
      requireSameSource(held, disk.identity, disk.sizeBytes);
      freezer = await startFreezer([disk], liveOptionsOf(options));
      const live = openLiveSource(liveRequest(disk, held, aloneWith(freezer), options));
      try {
        const { source, reason, token } = live;
        const chosen: Chosen = { engine: 'live', reason, token, freezeMs: 0, committed: live.committed };
        return withLive(await makeVersion(held, pool, source, chosen, options), live);
      } finally {
        live.close();
      }
    } finally {
      await freezer?.close();
      disk.close();
    }
  });
}

/** An attached volume: by a snapshot where it is in use, claimed where it is not. */
async function backupAttached(found: AttachedSource, path: string, options: BackupOptions): Promise<BackupSummary> {
  const client = options.client ?? {};
  requireOffVolume(found, path, realPathOfNew(path).existing);
  await ownTracking(found.volume, client);
  const unlock = await lockVolume(found, client, openOptions(options));
  try {
    return await withNewRepository(path, options, async (held, pool) => {
      // The repository may have been waited for: it may be mounted now, or not any more.
      const attached = await attachedAgain(found, client);
      requireSameSource(held, attached.identity, attached.volume.sizeBytes);
      const newest = held.manifest === undefined ? undefined : newestOf(held.manifest);
      const whole = options.whole === true;
      if (!attached.isMounted && holdsFileSystem(attached)) {
        const { source, reason, token } = await openUnmountedSource(attached, newest, whole, client);
        const engine = source.candidates === undefined ? 'scan' : 'driver';
        try {
          return await makeVersion(held, pool, source, { engine, reason, token, freezeMs: 0 }, options);
        } finally {
          source.close();
        }
      }
      return backupSnapshot(held, pool, { attached, newest, whole }, options);
    });
  } finally {
    unlock();
  }
}

async function backupSnapshot(
  held: Repository,
  pool: WorkerPool,
  request: Omit<DriverRequest, 'places'>,
  options: BackupOptions,
): Promise<BackupSummary> {
  const { attached } = request;
  const client = options.client ?? {};
  const places = cowPlaces(attached, options.cow, (await ownTracking(attached.volume, client))?.cow_file, client);
  pool.warm(regionCount(attached.volume.sizeBytes));
  const [driver] = await openDriverSources([{ ...request, places }], options.hooks ?? {}, client);
  assert(driver !== undefined, 'one request has one source');
  const { source, reason, token, freezeMs } = driver;
  let summary: BackupSummary | undefined;
  let problems: string[] = [];
  try {
    await options.onSnapshot?.(driver.node);
    summary = await makeVersion(held, pool, source, { engine: 'driver', reason, token, freezeMs }, options);
  } finally {
    problems = await driver.end(summary !== undefined);
  }
  summary.warnings.push(...driver.warnings, ...problems);
  return { ...summary, hookFailed: driver.hookFailed };
}

/** The daemon snapshots a volume with a file system only while that is mounted. */
export function holdsFileSystem({ signature }: AttachedSource): boolean {
  return signature?.kind !== undefined;
}

/** Opens a repository to write, and makes its directory where there is none. */
async function withNewRepository<T>(
  path: string,
  options: BackupOptions,
  use: (held: Repository, pool: WorkerPool) => Promise<T>,
): Promise<T> {
  const files = new DiskFiles(path);
  const isNew = files.create();
  return withRepository(path, 'write', { ...openOptions(options), mayBegin: true }, async (held, pool) => {
    const release = lockRepositoryImage(path);
    try {
      return await use(held, pool);
    } finally {
      release();
      if (isNew) files.removeEmpty();
    }
  });
}

/** What is noted of a version beside its contents. */
export interface Chosen {
  engine: VersionRecord['engine'];
  reason: string;
  token: string | null;
  freezeMs: number | null;
  /** Called when the version counts. */
  committed?: () => void;
}

/** What the repository is told of a version. */
export function versionOptions(
  held: Repository,
  pool: WorkerPool,
  { engine, reason, token }: Chosen,
  options: BackupOptions,
): UpdateOptions {
  return {
    engine,
    reason: held.manifest === undefined ? `the first version; ${reason}` : reason,
    whole: options.whole === true,
    skipBadBlocks: options.skipBadBlocks === true,
    continuityToken: token,
    time: new Date(),
    run: pool.run,
    signal: options.signal,
    onProgress: (phase, doneBytes, totalBytes) => options.onProgress?.({ phase, doneBytes, totalBytes }),
  };
}

async function makeVersion(
  held: Repository,
  pool: WorkerPool,
  source: BackupSource,
  chosen: Chosen,
  options: BackupOptions,
): Promise<BackupSummary> {
  const result = await createVersion(held, source, versionOptions(held, pool, chosen, options));
  const summary = await finishVersion(held, result, chosen, options);
  const { engine } = chosen;
  if (options.live?.freezeTimeoutSeconds !== undefined && engine !== 'live')
    summary.warnings.push(`--freeze-timeout is for engine live: engine ${engine} did not use it`);
  if (options.cow !== undefined && engine !== 'driver')
    summary.warnings.push(`--cow is for engine driver: engine ${engine} did not use it`);
  return summary;
}

/** A virtual machine or a mount that runs from the image must not have it changed underneath. */
export function lockRepositoryImage(repository: string): () => void {
  const image = join(realpathSync(repository), IMAGE);
  return statSync(image, { throwIfNoEntry: false }) === undefined ? () => undefined : lockImage(image);
}
