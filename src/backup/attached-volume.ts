/** Attached volumes as sources of a backup: which one is meant, what is on it, and whether engine `driver` may have it. */
import { closeSync, lstatSync, mkdirSync, openSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import type { Signature } from '../block/signature.js';
import { type ClientOptions, call, daemonStatus } from '../control/client.js';
import { pathsFrom } from '../control/paths.js';
import type { SnapshotStatus, VolumeInfo } from '../control/schema.js';
import { isMountedWritable, mountsOn } from '../engine/lookup.js';
import { isDeadLink } from '../engine/stale.js';
import type { SourceIdentity } from '../repository/manifest.js';
import type { OpenOptions } from '../repository/repository.js';
import { requireGoingOn } from '../repository/runner.js';
import { belowPath } from '../sys/below.js';
import { deviceNumbersOn } from '../sys/blkdev.js';
import { CowbirdError, codeOf, errnoOfError } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { lockHolders } from '../sys/lock-holders.js';
import { allMounts, isReachable } from '../sys/mounts.js';
import { type CowPlaces, isOwnCowFile } from './cow-files.js';
import { contentOf, signatureOfNode } from './node-signature.js';
import { placeOfDevice } from './scan-source.js';

const LAST_MINOR = 255;
const POLL_MS = 100;
/** File systems whose files can be written by address. */
const HOLDS_STORE = new Set(['ext2', 'ext3', 'ext4', 'xfs']);

export interface AttachedSource {
  volume: VolumeInfo;
  identity: SourceIdentity;
  signature: Signature | undefined;
  /** Some file system on it is mounted read-write: it can be frozen. */
  isMounted: boolean;
  /** It is mounted, read-only everywhere: there is nothing to freeze, and it cannot be claimed. */
  isReadOnly: boolean;
}

/** The attached volume that a path names: its node, its link, or its origin. Undefined where it names none. */
export async function attachedSource(source: string, client: ClientOptions): Promise<AttachedSource | undefined> {
  if (!(await isDaemonThere(client))) return undefined;
  const real = realPathOrGiven(source);
  const { volumes } = await call('list', {}, client);
  const volume = volumes.find(({ device, origin }) => device === real || origin === real);
  if (volume === undefined) return undefined;
  const signature = signatureOfNode(volume.device);
  const stats = statSync(volume.origin);
  const identity: SourceIdentity = {
    kind: 'volume',
    path: volume.origin,
    place: stats.isFile() ? volume.origin : placeOfDevice(volume.origin, stats.rdev),
    content: contentOf(signature),
  };
  const mounts = mountsOn(volume.device);
  const isMounted = isMountedWritable(mounts);
  return { volume, identity, signature, isMounted, isReadOnly: mounts.length > 0 && !isMounted };
}

/**
 * A volume that was looked up before something was waited for, as it is now.
 *
 * @throws {CowbirdError} ENODEV where it was detached meanwhile: its node may be another disk's by now.
 */
export async function attachedAgain(found: AttachedSource, client: ClientOptions): Promise<AttachedSource> {
  const { name, device, origin } = found.volume;
  const now = await attachedSource(device, client);
  if (now !== undefined && now.volume.name === name && now.volume.origin === origin) return now;
  throw new CowbirdError('ENODEV', `${name} was detached meanwhile: no version was made`, { outcome: 'failed' });
}

/** What an engine is to take: an attached volume (engine `driver`), or what a path names (the others). */
export interface TakenSource {
  attached: AttachedSource | undefined;
  source: string;
}

/**
 * The attached volume that engine `driver` is to take, where it is the one.
 *
 * @throws {CowbirdError} EINVAL when engine `driver` was asked for and cannot.
 */
export async function driverVolume(
  source: string,
  engine: 'auto' | 'driver' | 'live' | 'scan',
  client: ClientOptions,
): Promise<TakenSource> {
  if (engine === 'scan' || engine === 'live') return { attached: undefined, source };
  const attached = await attachedSource(source, client);
  if (attached !== undefined && !attached.isReadOnly) return { attached, source };
  if (engine === 'auto') return { attached: undefined, source: attached?.volume.device ?? source };
  throw new CowbirdError(
    'EINVAL',
    attached === undefined
      ? `${source} is not an attached volume, which engine driver wants: \`cowbird attach ${source}\` makes it one`
      : `${source} is mounted read-only, and so cannot be frozen for a snapshot: engine live takes it as it is`,
  );
}

/** Whoever may not talk to the daemon has no volumes that he could name. */
async function isDaemonThere(client: ClientOptions): Promise<boolean> {
  try {
    return (await daemonStatus(client)) !== undefined;
  } catch (error) {
    if (['EACCES', 'EPERM'].includes(codeOf(errnoOfError(error)))) return false;
    throw error;
  }
}

function realPathOrGiven(path: string): string {
  try {
    return realpathSync(path);
  } catch (error) {
    if (codeOf(errnoOfError(error)) === 'ENOENT') return resolve(path);
    throw error;
  }
}

/** A repository on the volume would change what is backed up while it is written. @throws {CowbirdError} EINVAL */
export function requireOffVolume({ volume }: AttachedSource, repository: string, existing: string): void {
  const below = belowPath(existing, { withFiles: true });
  const origin = statSync(volume.origin);
  const isOnVolume = deviceNumbersOn(volume.device).some(({ number }) => below.numbers.has(number));
  const isOnOrigin = below.files.some((file) => origin.isFile() && file.ino === origin.ino && file.dev === origin.dev);
  if (!isOnVolume && !isOnOrigin) return;
  throw new CowbirdError(
    'EINVAL',
    `${repository} lies on ${volume.name} (${volume.device}), which is to be backed up: put it on another disk`,
  );
}

/** The status of the volume's tracking. @throws {CowbirdError} EBUSY for tracking of a user's own. */
export async function ownTracking(volume: VolumeInfo, client: ClientOptions): Promise<SnapshotStatus | undefined> {
  const { devices } = await call('info', {}, client);
  const status = devices.find(({ block_device }) => block_device === volume.device);
  if (status === undefined || isOwnCowFile(status.cow_file)) return status;
  throw new CowbirdError(
    'EBUSY',
    `${volume.name} is tracked as minor ${status.minor} with the COW file ${status.cow_file}, which no backup made: end that first with \`cowbird destroy ${status.minor}\`, or copy from its snapshot with update-img`,
  );
}

/**
 * The highest minors in no use, by this daemon or another one.
 *
 * @throws {CowbirdError} EBUSY where there are not that many.
 */
export async function unusedMinors(count: number, client: ClientOptions): Promise<number[]> {
  const { devices } = await call('info', {}, client);
  const used = new Set(devices.map(({ minor }) => minor));
  const unused: number[] = [];
  for (let minor = LAST_MINOR; minor >= 0 && unused.length < count; minor--)
    if (!used.has(minor) && !isMinorTaken(minor)) unused.push(minor);
  if (unused.length === count) return unused;
  throw new CowbirdError('EBUSY', `All ${LAST_MINOR + 1} minors are in use: \`cowbird info\` shows by what`);
}

/** Whether some daemon has a device of this minor. */
export function isMinorTaken(minor: number): boolean {
  const link = `/dev/cowbird${minor}`;
  return lstatSync(link, { throwIfNoEntry: false }) !== undefined && !isDeadLink(link);
}

/** Where the volume's COW files are, and are to go. `cow`: a directory that the user named; `current`: the one in use. */
export function cowPlaces(
  { volume }: AttachedSource,
  cow: string | undefined,
  current: string | undefined,
  client: ClientOptions,
): CowPlaces {
  const mounts = allMounts();
  // Of several file systems the same one each time, whichever was mounted first.
  const byNumber = mountsOn(volume.device, mounts).sort((a, b) =>
    a.device.localeCompare(b.device, 'en', { numeric: true }),
  );
  const mount = byNumber.find(
    (entry) =>
      entry.pid === 0 &&
      entry.root === '/' &&
      HOLDS_STORE.has(entry.fsType) &&
      !entry.readOnlySuper &&
      !entry.readOnlyMount &&
      isReachable(entry, mounts),
  );
  const usual = join(pathsFrom(client.env ?? process.env).stateDir, 'cow');
  const elsewhere = cow === undefined ? usual : resolve(cow);
  const earlier = [usual, ...(current === undefined || dirname(current) === '/' ? [] : [dirname(current)])];
  if (cow === undefined) mkdirSync(elsewhere, { recursive: true, mode: 0o700 });
  else if (statSync(elsewhere, { throwIfNoEntry: false })?.isDirectory() !== true)
    throw new CowbirdError('ENOTDIR', `${cow} is no directory: --cow names one for the COW files`);
  const { name, sizeBytes } = volume;
  return { name, sizeBytes, root: mount?.mountPoint, elsewhere, earlier, mustElsewhere: cow !== undefined };
}

/**
 * Keeps other backups from the volume until the returned function is called, or this process ends. Waits for another one as long as
 * for a repository: it is nearly always one to the same.
 *
 * @throws {CowbirdError} EBUSY, with who has it; EINTR.
 */
export async function lockVolume(
  { volume }: AttachedSource,
  client: ClientOptions,
  { waitMs = 0, signal }: OpenOptions,
): Promise<() => void> {
  const { runDir } = pathsFrom(client.env ?? process.env);
  const path = join(runDir, `backup-${volume.name}.lock`);
  const fd = openSync(path, 'a', 0o600);
  try {
    for (const deadline = Date.now() + waitMs; !libc.tryFlock(fd, libc.LOCK_EX); await pause(POLL_MS)) {
      requireGoingOn(signal);
      if (Date.now() < deadline) continue;
      const wait = waitMs > 0 ? '' : ', or wait for it with --wait';
      throw new CowbirdError(
        'EBUSY',
        `${volume.name} is being backed up already${holderOf(path)}: try again later${wait}`,
      );
    }
    return () => closeSync(fd);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function holderOf(path: string): string {
  const [holder] = lockHolders(String(statSync(path).ino), readFileSync('/proc/locks', 'utf8'));
  return holder === undefined ? '' : `, by process ${holder.pid} (${holder.command}, started ${holder.started})`;
}
