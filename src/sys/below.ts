/**
 * What a file or a disk stands on, all the way down: the disk of a partition, the disks of a device mapper or RAID device, the
 * file behind a loop device and the file system that this one lies on, the disks of a btrfs, the upper layer of an overlay.
 *
 * From sysfs and mountinfo alone: no call here asks a file system, unless the files behind loop devices are wanted.
 */
import { readdirSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { deviceNumber } from './blkdev.js';
import { errnoOfError } from './errors.js';
import { type MountEntry, mountOf, ownMounts } from './mounts.js';

const ENOENT = 2;
const ENOTDIR = 20;

export interface FileIdentity {
  dev: number;
  ino: number;
}

export interface Below {
  /** Of all disks, `major:minor`. */
  numbers: Set<string>;
  /** Behind loop devices; empty where they were not asked for. */
  files: FileIdentity[];
}

export interface BelowOptions {
  /** Look at the files behind loop devices, which asks their file systems. Those of FUSE are passed over in any case. */
  withFiles: boolean;
}

/** Whether the file behind a loop device is this one, by whatever name. One that is served through FUSE, or cannot be looked at, is not. */
export function isBackedBy(backingFile: string, file: FileIdentity, served: ReadonlySet<string>): boolean {
  if (served.has(backingFile)) return false;
  try {
    const { dev, ino } = statSync(backingFile);
    return dev === file.dev && ino === file.ino;
  } catch {
    return false;
  }
}

/** What a path, given as a real one, lies on. */
export function belowPath(path: string, options: BelowOptions): Below {
  const search = new Search(options);
  search.path(path);
  return search.found;
}

/** A disk, and what it stands on. */
export function belowDisk(number: string, options: BelowOptions): Below {
  const search = new Search(options);
  search.disk(number);
  return search.found;
}

class Search {
  readonly found: Below = { numbers: new Set(), files: [] };
  readonly #mounts = ownMounts();
  readonly #seen = new Set<MountEntry>();
  readonly #withFiles: boolean;

  constructor({ withFiles }: BelowOptions) {
    this.#withFiles = withFiles;
  }

  path(path: string): void {
    const mount = mountOf(path, this.#mounts);
    // The upper layer of an overlay is named by its path at the time of the mount, which may be one in the overlay itself by now.
    if (this.#seen.has(mount)) return;
    this.#seen.add(mount);
    if (folderOf(mount.device) !== undefined) this.disk(mount.device);
    else for (const each of disksOfAnonymous(mount)) this.disk(each);
    const upper = mount.fsType === 'overlay' ? optionOf(mount, 'upperdir') : undefined;
    if (upper !== undefined) this.path(upper);
  }

  disk(number: string): void {
    if (this.found.numbers.has(number)) return;
    this.found.numbers.add(number);
    const folder = folderOf(number);
    if (folder === undefined) return;
    for (const slave of optional(() => readdirSync(`${folder}/slaves`)) ?? []) this.disk(numberOf(slave));
    if (optional(() => readFileSync(`${folder}/partition`)) !== undefined)
      this.disk(numberOf(basename(dirname(folder))));
    const backing = optional(() => readFileSync(`${folder}/loop/backing_file`, 'utf8'))?.replace(/\n$/, '');
    if (backing?.startsWith('/') === true) this.#backing(backing);
  }

  #backing(path: string): void {
    this.path(path);
    // A FUSE file may be served by somebody who hangs.
    const isFuse = this.#mounts.some(({ fsType, mountPoint }) => fsType.startsWith('fuse') && mountPoint === path);
    if (!this.#withFiles || isFuse) return;
    const stats = optional(() => statSync(path));
    if (stats !== undefined) this.found.files.push({ dev: stats.dev, ino: stats.ino });
  }
}

/** Disks of a file system whose own number is that of no disk, as of a btrfs. */
function disksOfAnonymous({ fsType, source }: MountEntry): string[] {
  if (!source.startsWith('/dev/')) return [];
  if (fsType === 'btrfs') {
    const name = basename(source);
    for (const uuid of optional(() => readdirSync('/sys/fs/btrfs')) ?? []) {
      const devices = optional(() => readdirSync(`/sys/fs/btrfs/${uuid}/devices`)) ?? [];
      if (devices.includes(name)) return devices.map(numberOf);
    }
  }
  const stats = optional(() => statSync(source));
  return stats?.isBlockDevice() === true ? [deviceNumber(stats.rdev)] : [];
}

function optionOf({ superOptions }: MountEntry, name: string): string | undefined {
  return superOptions.find((option) => option.startsWith(`${name}=`))?.slice(name.length + 1);
}

/** A disk in sysfs; undefined for a number that is none's: tmpfs, a network file system. */
function folderOf(number: string): string | undefined {
  return optional(() => realpathSync(`/sys/dev/block/${number}`));
}

function numberOf(name: string): string {
  return readFileSync(`/sys/class/block/${name}/dev`, 'utf8').trim();
}

function optional<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if ([ENOENT, ENOTDIR].includes(errnoOfError(error))) return undefined;
    throw error;
  }
}
