/**
 * Who has a device mounted or open, read from /proc alone: no call here waits for a file system.
 *
 * Mounts are looked up in every mount namespace that some process lives in, because a container may keep mounted what this
 * namespace no longer shows.
 */
import { fstatSync, readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { relative } from 'node:path';
import { deviceNumber } from './blkdev.js';
import { assert, CowbirdError } from './errors.js';

export interface MountEntry {
  /** Of the mount, in all namespaces. */
  id: number;
  /** Of the mount that this one lies on. */
  parentId: number;
  /** `major:minor` of the file system. */
  device: string;
  /** Path inside the file system that is mounted (`/` unless it is a bind mount of a directory). */
  root: string;
  mountPoint: string;
  /** Per mount, as `mount -o remount,bind,ro` sets it. */
  readOnlyMount: boolean;
  fsType: string;
  source: string;
  /** Of the whole file system. */
  readOnlySuper: boolean;
  superOptions: string[];
  /** A process of the mount's namespace; 0 for our own. Its root is `/proc/<pid>/root`. */
  pid: number;
}

/** Decodes mountinfo's octal escapes of space, tab, newline and backslash. */
function unescapeField(field: string): string {
  return field.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}

/** Parses one mountinfo document (proc_pid_mountinfo(5)). */
export function parseMountInfo(text: string, pid: number): MountEntry[] {
  const entries: MountEntry[] = [];
  for (const line of text.split('\n')) {
    const fields = line.split(' ');
    const separator = fields.indexOf('-', 6);
    const [device, root, mountPoint, options] = fields.slice(2, 6);
    const [fsType, source, superOptions] = fields.slice(separator + 1);
    if (separator < 0 || device === undefined || root === undefined || mountPoint === undefined) continue;
    entries.push({
      id: Number(fields[0]),
      parentId: Number(fields[1]),
      device,
      root: unescapeField(root),
      mountPoint: unescapeField(mountPoint),
      readOnlyMount: (options ?? '').split(',').includes('ro'),
      fsType: fsType ?? '',
      source: unescapeField(source ?? ''),
      readOnlySuper: (superOptions ?? '').split(',').includes('ro'),
      superOptions: (superOptions ?? '').split(','),
      pid,
    });
  }
  return entries;
}

/** The mounts of this process's namespace. */
export function ownMounts(): MountEntry[] {
  return parseMountInfo(readFileSync('/proc/self/mountinfo', 'utf8'), 0);
}

/** The mounts of every namespace that a process lives in, our own first. */
export function allMounts(): MountEntry[] {
  const seen = new Set<string>([readlinkSync('/proc/self/ns/mnt')]);
  const entries = ownMounts();
  for (const pid of readdirSync('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    const namespace = attempt(() => readlinkSync(`/proc/${pid}/ns/mnt`));
    if (namespace === undefined || seen.has(namespace)) continue;
    const text = attempt(() => readFileSync(`/proc/${pid}/mountinfo`, 'utf8'));
    if (text === undefined) continue;
    seen.add(namespace);
    entries.push(...parseMountInfo(text, Number(pid)));
  }
  return entries;
}

/** The mount of our namespace that a real path lies on: the longest mount point above it, the last one where several are stacked. */
export function mountOf(path: string, mounts: readonly MountEntry[]): MountEntry {
  let best: MountEntry | undefined;
  for (const entry of mounts.filter(({ pid }) => pid === 0)) {
    const inside = relative(entry.mountPoint, path);
    const covers = inside === '' || (!inside.startsWith('..') && !inside.startsWith('/'));
    if (covers && (best === undefined || entry.mountPoint.length >= best.mountPoint.length)) best = entry;
  }
  assert(best !== undefined, `${path} lies on a mounted file system`);
  return best;
}

/**
 * Mount points of FUSE file systems. A file there may be served by somebody who hangs, or by none any more: whoever must not wait does not
 * look at it.
 */
export function fuseFiles(): Set<string> {
  const fuse = ownMounts().filter(({ fsType }) => fsType.startsWith('fuse'));
  return new Set(fuse.map(({ mountPoint }) => mountPoint));
}

/**
 * Whether a mount's own path leads to it: nothing is mounted over it, nor over a directory above it. `mounts`: all those of its
 * namespace, and maybe others.
 */
export function isReachable(entry: MountEntry, mounts: readonly MountEntry[]): boolean {
  const own = mounts.filter(({ pid }) => pid === entry.pid);
  const ids = new Set(own.map(({ id }) => id));
  // The root of the processes there; what is mounted over that is seen by nobody.
  let at = own.find(({ mountPoint, parentId, id }) => mountPoint === '/' && (parentId === id || !ids.has(parentId)));
  const names = entry.mountPoint.split('/').filter((name) => name !== '');
  for (let count = 1; at !== undefined && count <= names.length; count++) {
    const path = `/${names.slice(0, count).join('/')}`;
    for (let over: MountEntry | undefined = at; over !== undefined; ) {
      at = over;
      const below: number = over.id;
      over = own.findLast(({ parentId, mountPoint }) => parentId === below && mountPoint === path);
    }
  }
  return at === undefined || at.id === entry.id;
}

/** What tells a mount from others that its path may lead to. */
export type MountIdentity = Pick<MountEntry, 'device' | 'id'>;

/** Whether an open descriptor is in the file system of a mount, or on that mount. */
export function isOnMount(fd: number, { device, id }: MountIdentity): boolean {
  // The root of a btrfs has a device number of its own, of no disk: there it is the mount that tells.
  return deviceNumber(fstatSync(fd).dev) === device || mountIdOf(fd) === id;
}

/** proc_pid_fdinfo(5). */
function mountIdOf(fd: number): number {
  const [, id] = /^mnt_id:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8')) ?? [];
  return Number(id);
}

/** Of a file system that none of its mount points leads to. */
export function coveredError(mountPoints: readonly string[]): CowbirdError {
  return new CowbirdError(
    'EBUSY',
    `The file system mounted on ${mountPoints.join(', ')} cannot be reached there: something else is mounted over it`,
  );
}

/** A path of ours to a mount of any namespace. */
export function pathOfMount(entry: MountEntry): string {
  return entry.pid === 0 ? entry.mountPoint : `/proc/${entry.pid}/root${entry.mountPoint}`;
}

export interface Opener {
  pid: number;
  command: string;
}

/** The processes that have the device node open, by device number; a process that ends meanwhile is no opener. */
export function openersOf(rdev: number, ignorePids: ReadonlySet<number> = new Set()): Opener[] {
  const openers: Opener[] = [];
  for (const pid of readdirSync('/proc')) {
    if (!/^\d+$/.test(pid) || ignorePids.has(Number(pid))) continue;
    const fds = attempt(() => readdirSync(`/proc/${pid}/fd`)) ?? [];
    if (!fds.some((fd) => isDevice(`/proc/${pid}/fd/${fd}`, rdev))) continue;
    const command = attempt(() => readFileSync(`/proc/${pid}/comm`, 'utf8'))?.trim() ?? '?';
    openers.push({ pid: Number(pid), command });
  }
  return openers;
}

function isDevice(path: string, rdev: number): boolean {
  const target = attempt(() => readlinkSync(path));
  // Only names under /dev are asked for their number: a stat of anything else could wait for a file system.
  if (target === undefined || !target.startsWith('/dev/')) return false;
  const stats = attempt(() => statSync(path));
  return stats?.isBlockDevice() === true && stats.rdev === rdev;
}

/** Undefined where the process or file has gone or may not be read: both are ordinary while walking /proc. */
function attempt<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (error instanceof Error && 'code' in error) return undefined;
    throw error;
  }
}
