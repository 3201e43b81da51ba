/**
 * Cowbird as a library: the operations of the command line as typed async functions. The command line uses nothing else.
 *
 * `backup` of what is not attached, `listVersions`, `verify`, `restore`, `prune` and `versionChanges` work in this process, on a
 * repository, with no daemon and, but for disks in use, no root; `track`, `untrack` and `listTracking` in this process too, as root.
 * Every other function talks to the daemon of `COWBIRD_RUN_DIR` (`/run/cowbird`) and starts it when it is not running. They throw
 * {@link CowbirdError}: `code` and `errno` as the field's tools use them, and `outcome`: `refused` (nothing changed),
 * `failed` or `partial`.
 */
import { resolve } from 'node:path';
import { allChanges } from './control/changes.js';
import { type ClientOptions, call, daemonStatus, events } from './control/client.js';
import { ended, launchDaemon } from './control/launch.js';
import { pathsFrom } from './control/paths.js';
import type {
  AttachedVolume,
  ChangesReport,
  DaemonStatus,
  DoctorReport,
  StatusDocument,
  TakenTogether,
  VolumeInfo,
} from './control/schema.js';
import { examineMachine } from './engine/doctor.js';
import * as live from './live/tracker.js';
import type { TrackingInfo } from './live/tracking.js';
import { CowbirdError } from './sys/errors.js';
import { VERSION } from './version.js';

export { type BackupOptions, type BackupSummary, backup } from './backup/backup.js';
export {
  type DeviceOptions,
  device,
  type MountedVersion,
  mount,
  umount,
  type VersionDevice,
} from './backup/device.js';
export type { LiveOptions } from './backup/live-backup.js';
export { type Progress, parseVersionName, parseVersionRange, type RepositoryOptions } from './backup/repository-at.js';
export {
  listVersions,
  type PruneSummary,
  prune,
  type RepositoryVersions,
  type VersionChanges,
  verify,
  versionChanges,
} from './backup/repository-commands.js';
export { type RestoreSummary, type RestoreToOptions, restore } from './backup/restore.js';
export { type BackupPair, backupTogether, type TogetherSummary } from './backup/together.js';
export {
  type UpdateImageOptions,
  type UpdateImageResult,
  updateImageFromSnapshot,
} from './backup/update-from-snapshot.js';
export type { ClientOptions } from './control/client.js';
export type {
  AttachedVolume,
  ChangesReport,
  DaemonStatus,
  DoctorCheck,
  DoctorReport,
  EventRecord,
  SnapshotStatus,
  StatusDocument,
  TakenTogether,
  VolumeInfo,
} from './control/schema.js';
export type { TrackingInfo } from './live/tracking.js';
export type { SkippedRange, VersionRecord } from './repository/manifest.js';
export type { RetentionPolicy } from './repository/retention.js';
export type { Damage, VerifyReport } from './repository/verify.js';
export { CowbirdError } from './sys/errors.js';
export { VERSION } from './version.js';

export interface AttachOptions {
  /** Name of the volume and of its link `/dev/cowbird/NAME`. @default the base name of the origin */
  name?: string;
  /** How many worker threads may serve at once. @default the daemon's pool */
  workers?: number;
  readOnly?: boolean;
  /** Attach a file whose contents look like another image format (qcow2) as raw bytes. */
  raw?: boolean;
}

export type DeviceAlias = 'datto' | 'elastio-snap';

/** Commands around the freeze; the daemon runs them as root, by `sh -c`, in `/`. */
export interface HookOptions {
  /** Before the file systems are frozen; when it fails nothing is taken. */
  preFreeze?: string;
  /** After they are thawed, whatever happened before; may run twice when the engine ends meanwhile. */
  postThaw?: string;
  /** Of each of them. @default 30 */
  hookTimeoutSeconds?: number;
}

/** How the first snapshot of a volume is taken. */
export interface SetupOptions {
  /** Memory for the index, in bytes, as dattobd counts it. @default 300 MiB */
  cacheBytes?: number;
  /** Size of the COW file in bytes. @default 10 % of the volume */
  storeBytes?: number;
  /** Refuse a store that is not on the volume itself (dbdctl's rule). */
  onVolumeOnly?: boolean;
  alias?: DeviceAlias;
  ignoreErrors?: boolean;
  /** Do not save blocks that are free at T0: they read as zeros, so the snapshot is not the volume bit for bit. */
  freeAware?: boolean;
}

export interface NextOptions {
  /** Size of the COW file in bytes. @default as at setup */
  storeBytes?: number;
  /** Refuse a store that is not on the volume itself (dbdctl's rule). */
  onVolumeOnly?: boolean;
  /** As {@link SetupOptions.freeAware}; not taken over from the snapshot before. */
  freeAware?: boolean;
}

export interface ReloadOptions {
  cacheBytes?: number;
  alias?: DeviceAlias;
  ignoreErrors?: boolean;
}

function given<T extends object>(options: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  const entries = Object.entries(options).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [K in keyof T]: Exclude<T[K], undefined> };
}

/** Attaches a disk, a partition or an image file; resolves when its device node serves I/O. */
export async function attach(
  origin: string,
  options: AttachOptions = {},
  client: ClientOptions = {},
): Promise<AttachedVolume> {
  return call('attach', { origin: resolve(origin), ...given(options) }, client);
}

/** Detaches a volume by name, node, link or origin; resolves when the node is free again. */
export async function detach(volume: string, client: ClientOptions = {}): Promise<void> {
  await call('detach', { volume }, client);
}

/** The attached volumes. */
export async function listVolumes(client: ClientOptions = {}): Promise<VolumeInfo[]> {
  return (await call('list', {}, client)).volumes;
}

/** The status document, of one minor or of all. */
export async function info(minor?: number, client: ClientOptions = {}): Promise<StatusDocument> {
  return call('info', minor === undefined ? {} : { minor }, client);
}

/** Takes the first snapshot of a volume; resolves to its device node's link. */
export async function setupSnapshot(
  device: string,
  cowFile: string,
  minor: number,
  options: SetupOptions & HookOptions = {},
  client: ClientOptions = {},
): Promise<string> {
  const params = { device: devicePath(device), cowFile: resolve(cowFile), minor, ...given(options) };
  return (await call('setupSnapshot', params, client)).device;
}

/** Goes on with a snapshot after a clean stop; `cowFile` is relative to the file system's root. */
export async function reloadSnapshot(
  device: string,
  cowFile: string,
  minor: number,
  options: ReloadOptions = {},
  client: ClientOptions = {},
): Promise<void> {
  await call(
    'reloadSnapshot',
    { device: devicePath(device), cowFile: fromRoot(cowFile), minor, ...given(options) },
    client,
  );
}

/** Goes on with incremental tracking after a clean stop. */
export async function reloadIncremental(
  device: string,
  cowFile: string,
  minor: number,
  options: ReloadOptions = {},
  client: ClientOptions = {},
): Promise<void> {
  await call(
    'reloadIncremental',
    { device: devicePath(device), cowFile: fromRoot(cowFile), minor, ...given(options) },
    client,
  );
}

/** Ends a snapshot or incremental tracking. */
export async function destroy(minor: number, client: ClientOptions = {}): Promise<void> {
  await call('destroy', { minor }, client);
}

/** From snapshot to incremental mode: the snapshot's device goes, changes go on being marked. */
export async function transitionToIncremental(minor: number, client: ClientOptions = {}): Promise<void> {
  await call('transitionToIncremental', { minor }, client);
}

/** From incremental mode to the next snapshot of the series; the old COW file is left with the list of changes. */
export async function transitionToSnapshot(
  minor: number,
  cowFile: string,
  options: NextOptions & HookOptions = {},
  client: ClientOptions = {},
): Promise<string> {
  return (await call('transitionToSnapshot', { minor, cowFile: resolve(cowFile), ...given(options) }, client)).device;
}

/** One volume of {@link setupTogether}. */
export interface SetupOfOne extends SetupOptions {
  device: string;
  cowFile: string;
  minor: number;
}

/** One series of {@link transitionTogether}. */
export interface NextOfOne extends NextOptions {
  minor: number;
  cowFile: string;
}

/** Takes the first snapshots of several volumes at one instant: all of them, or none. */
export async function setupTogether(
  snapshots: readonly SetupOfOne[],
  options: HookOptions = {},
  client: ClientOptions = {},
): Promise<TakenTogether> {
  const named = snapshots.map(({ device, cowFile, ...others }) => ({
    device: devicePath(device),
    cowFile: resolve(cowFile),
    ...given(others),
  }));
  return call('setupTogether', { snapshots: named, ...given(options) }, client);
}

/** Takes the next snapshots of several series at one instant: all of them, or none. */
export async function transitionTogether(
  snapshots: readonly NextOfOne[],
  options: HookOptions = {},
  client: ClientOptions = {},
): Promise<TakenTogether> {
  const named = snapshots.map(({ cowFile, ...others }) => ({ cowFile: resolve(cowFile), ...given(others) }));
  return call('transitionTogether', { snapshots: named, ...given(options) }, client);
}

/** Sets the index cache; without a size back to the default. */
export async function reconfigure(minor: number, cacheBytes?: number, client: ClientOptions = {}): Promise<void> {
  await call('reconfigure', cacheBytes === undefined ? { minor } : { minor, cacheBytes }, client);
}

/** Makes the COW file of an active snapshot larger by `bytes`; resolves to its new size. */
export async function expandCowFile(minor: number, bytes: number, client: ClientOptions = {}): Promise<number> {
  return (await call('expandCowFile', { minor, bytes }, client)).storeBytes;
}

/** Lets the COW file grow by itself in steps while `reservedBytes` stay free on its file system; a step of 0 ends that. */
export async function reconfigureAutoExpand(
  minor: number,
  stepBytes: number,
  reservedBytes?: number,
  client: ClientOptions = {},
): Promise<void> {
  await call('reconfigureAutoExpand', { minor, stepBytes, ...given({ reservedBytes }) }, client);
}

/** The lowest minor in no use. */
export async function getFreeMinor(client: ClientOptions = {}): Promise<number> {
  return (await call('getFreeMinor', {}, client)).minor;
}

/**
 * What changed since the snapshot or since the last transition, as byte extents: everything that had changed when it was called,
 * and, where the volume is written meanwhile, maybe more.
 */
export async function changes(minor: number, client: ClientOptions = {}): Promise<ChangesReport> {
  return allChanges(minor, client);
}

/**
 * Tracks what changes on a disk or partition inside the kernel, for a user; `started` is false where that is so already. In this
 * process, as root, without the daemon; it goes on when the process ends.
 */
export async function track(device: string, user: string, client: ClientOptions = {}): Promise<{ started: boolean }> {
  return { started: live.ensureTracked(devicePath(device), user, runDirOf(client)) };
}

/** Ends tracking inside the kernel, for one user or for all; resolves to how many had it. */
export async function untrack(device: string, user?: string, client: ClientOptions = {}): Promise<{ ended: number }> {
  return { ended: live.stopTracking(devicePath(device), runDirOf(client), user) };
}

/** What is tracked inside the kernel. */
export async function listTracking(client: ClientOptions = {}): Promise<TrackingInfo[]> {
  return live.listTracking(runDirOf(client));
}

function runDirOf(client: ClientOptions): string {
  return pathsFrom(client.env ?? process.env).runDir;
}

/** What this machine has and lacks for Cowbird. */
export async function doctor(client: ClientOptions = {}): Promise<DoctorReport> {
  // A machine that lacks something may have no daemon that could say so: then this process looks itself.
  if ((await daemonStatus(client)) === undefined) return { version: VERSION, checks: examineMachine() };
  return call('doctor', {}, client);
}

/** Starts the daemon and attaches again what was attached; does nothing where it runs. */
export async function startDaemon(client: ClientOptions = {}): Promise<DaemonStatus> {
  const running = await daemonStatus(client);
  if (running !== undefined) return running;
  const env = client.env ?? process.env;
  await launchDaemon(pathsFrom(env), env);
  return call('daemonStatus', {}, { ...client, autostart: false });
}

/** Makes snapshots dormant and clean, detaches, ends the daemon. Refused while a volume is mounted, unless forced. */
export async function stopDaemon(options: { force?: boolean } = {}, client: ClientOptions = {}): Promise<void> {
  const running = await daemonStatus(client);
  await call('daemonStop', given(options), { ...client, autostart: false });
  if (running !== undefined) await ended(running.keeperPid);
}

/** Starts the engine's process anew under the attached volumes. */
export async function restartDaemon(client: ClientOptions = {}): Promise<DaemonStatus> {
  return call('daemonRestart', {}, client);
}

export { daemonStatus, events };

/** A device is a path; the daemon gets an absolute one, and an empty string stays empty for its own refusal. */
function devicePath(device: string): string {
  return device === '' ? '' : resolve(device);
}

/** dattobd's reload takes the path from the file system's root, with or without the leading slash. */
function fromRoot(cowFile: string): string {
  if (cowFile === '') throw new CowbirdError('EINVAL', 'The COW file path is empty');
  return cowFile.startsWith('/') ? cowFile : `/${cowFile}`;
}
