/** Names of disks that stay. `/dev/sdb1` may be another disk after the next boot. */
import { readdirSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { errnoOfError } from './errors.js';

/**
 * Folders with links that name the device itself, the best first. Not by-uuid and by-label, which name the contents: those are
 * the same on a volume, its origin and its snapshots.
 */
const FOLDERS = ['by-partuuid', 'by-id'] as const;
/** In by-id: names that software gave are unique; numbers of the hardware's maker come before model names. */
const PREFERRED = [/^dm-uuid-/, /^md-uuid-/, /^wwn-/, /^nvme-(eui|uuid|nvme)/];
/** Links that name the device and not its number: LVM's, device mapper's, md's, and those of `/dev/disk` but for contents. */
const LASTING = /^\/dev\/(disk\/by-(id|partuuid|partlabel|path)\/|(?!disk\/|block\/)[^/]+\/[^/]+$)/;

/**
 * The name by which a device is found again after a reboot: `path` itself where it is a lasting one, else a link of
 * `/dev/disk`; undefined where it has none.
 */
export function stablePath(path: string, diskFolder = '/dev/disk'): string | undefined {
  if (LASTING.test(path)) return path;
  const real = realpathSync(path);
  for (const folder of FOLDERS) {
    const names = namesIn(join(diskFolder, folder)).filter((name) => pointsTo(join(diskFolder, folder, name), real));
    const best = names.sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1))[0];
    if (best !== undefined) return join(diskFolder, folder, best);
  }
  return undefined;
}

function rank(name: string): number {
  const at = PREFERRED.findIndex((pattern) => pattern.test(name));
  return at < 0 ? PREFERRED.length : at;
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (error) {
    if (errnoOfError(error) === 2) return [];
    throw error;
  }
}

function pointsTo(link: string, real: string): boolean {
  try {
    return realpathSync(link) === real;
  } catch {
    // Made for a device that has just gone.
    return false;
  }
}
