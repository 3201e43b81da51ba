/** When a source is read by engine `live`, and how it is asked and answers. */
import { realpathSync, statSync } from 'node:fs';
import type { Standstill } from '../live/standstill.js';
import { examineTracking } from '../live/support.js';
import { DiskFiles } from '../repository/disk-files.js';
import { loadManifest } from '../repository/manifest.js';
import type { Repository } from '../repository/repository.js';
import { newestOf } from '../repository/state.js';
import { requireApart } from './apart.js';
import type { BackupOptions, BackupSummary } from './backup.js';
import { decodeToken, LiveDisk, type LiveOptions, type LiveRequest, type LiveSource } from './live-backup.js';
import type { Hooks } from './snapshots.js';

/**
 * Whether engine live is to take a source that is no attached volume, or was asked to. That it can is looked at, too, as long as
 * nothing is changed.
 */
export function isForLive(source: string, repository: string, options: BackupOptions): boolean {
  const { engine = 'auto' } = options;
  if (engine !== 'live' && (engine !== 'auto' || !isDisk(source))) return false;
  const disk = LiveDisk.open(source, liveOptionsOf(options));
  try {
    if (engine !== 'live' && disk.isFree && !isTrackedIn(repository)) return false;
    requireApart(disk.identity, repository);
    return true;
  } finally {
    disk.close();
  }
}

/** Follows links; what is not there is for the engine to say. */
function isDisk(source: string): boolean {
  return statSync(source, { throwIfNoEntry: false })?.isBlockDevice() === true;
}

/** Whether the newest version of a repository was made by engine live, and its map can go on. */
function isTrackedIn(path: string): boolean {
  const manifest = loadManifest(new DiskFiles(path))?.manifest;
  if (manifest === undefined || decodeToken(newestOf(manifest).continuityToken) === undefined) return false;
  return examineTracking().every(({ status }) => status === 'ok');
}

/** For engine live, whose helper runs the hooks. */
export function liveOptionsOf({ live, hooks }: BackupOptions): LiveOptions & Hooks {
  return { ...live, ...hooks };
}

export function liveRequest(
  disk: LiveDisk,
  held: Repository,
  standstill: Standstill,
  options: BackupOptions,
): LiveRequest {
  return {
    disk,
    newest: held.manifest === undefined ? undefined : newestOf(held.manifest),
    user: realpathSync(held.files.path),
    whole: options.whole === true,
    options: liveOptionsOf(options),
    env: options.client?.env ?? process.env,
    standstill,
  };
}

/** A summary with what engine live has to tell. */
export function withLive(summary: BackupSummary, { passes, warnings }: LiveSource): BackupSummary {
  const { freezeMs, count, restBytes, problems } = passes;
  return {
    ...summary,
    freezeMs,
    passes: count,
    restBytes,
    hookFailed: problems.length > 0,
    warnings: [...summary.warnings, ...warnings, ...problems],
  };
}
