/**
 * Memory cgroups of a process: whether one limits it, and the way out of a version 1 hierarchy.
 *
 * Version 1 matters most: a process that allocates memory in a full group of it waits until pages are written back, also those
 * of a volume that it serves itself. Version 2 makes the writers wait instead.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type MountEntry, ownMounts } from './mounts.js';

/** 9223372036854771712 is how version 1 says "none"; nothing real comes near. */
const NO_LIMIT_BYTES = 2 ** 60;

export interface MemoryLimit {
  version: 1 | 2;
  /** The file that holds the limit. */
  file: string;
  limitBytes: number;
  /** The group that has it, as a folder. */
  group: string;
  /** The group above; undefined where that is not to be seen here, as in a container. */
  above: string | undefined;
}

export interface Hierarchy {
  version: 1 | 2;
  /** Folder of the process's own group. */
  group: string;
  /** Folder of the hierarchy's topmost group that is to be seen here. */
  top: string;
}

/** The smallest memory limit that a process is under, of its own group or of one above; undefined where there is none. */
export function memoryLimitOf(pid: number | 'self', versions: ReadonlyArray<1 | 2> = [1, 2]): MemoryLimit | undefined {
  let smallest: MemoryLimit | undefined;
  for (const { version, group, top } of hierarchiesIn(groupsOf(pid) ?? '', ownMounts())) {
    if (!versions.includes(version)) continue;
    const names = version === 1 ? ['memory.limit_in_bytes'] : ['memory.max', 'memory.high'];
    for (let folder = group; folder.length >= top.length; folder = dirname(folder)) {
      for (const name of names) {
        const limitBytes = limitIn(join(folder, name));
        if (limitBytes >= (smallest?.limitBytes ?? NO_LIMIT_BYTES)) continue;
        const above = folder === top ? undefined : dirname(folder);
        smallest = { version, file: join(folder, name), limitBytes, group: folder, above };
      }
      if (folder === top) break;
    }
  }
  return smallest;
}

/**
 * Takes a process out of every limited group of a version 1 memory hierarchy, into the group above. Returns the group that it
 * left; undefined where there was nothing to leave.
 *
 * @throws {Error} the kernel's refusal, as in a container whose hierarchy is read-only.
 */
export function leaveMemoryLimit(pid: number): MemoryLimit | undefined {
  const first = memoryLimitOf(pid, [1]);
  for (let limit = first; limit !== undefined; limit = memoryLimitOf(pid, [1])) {
    if (limit.above === undefined) throw new Error('the group above it is not to be seen from here');
    writeFileSync(join(limit.above, 'cgroup.procs'), `${pid}\n`);
  }
  return first;
}

/** The groups of a process, all of them, as the kernel lists them (cgroups(7)); undefined when it has ended. */
export function groupsOf(pid: number | 'self'): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/cgroup`, 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ESRCH'))
      return undefined;
    throw error;
  }
}

/** Where memory groups are mounted, of both versions, for a process in these groups. */
export function hierarchiesIn(groups: string, mounts: readonly MountEntry[]): Hierarchy[] {
  const found: Hierarchy[] = [];
  for (const line of groups.split('\n')) {
    const [, id, controllers = '', path = ''] = /^(\d+):([^:]*):(.*)$/.exec(line) ?? [];
    const version = id === '0' && controllers === '' ? 2 : controllers.split(',').includes('memory') ? 1 : undefined;
    if (id === undefined || version === undefined) continue;
    const mount = mounts.find((entry) => isHierarchy(entry, version));
    const inside = mount === undefined ? undefined : pathUnder(mount.root, path);
    if (mount === undefined || inside === undefined) continue;
    found.push({ version, group: join(mount.mountPoint, inside), top: mount.mountPoint });
  }
  return found;
}

function isHierarchy({ fsType, superOptions }: MountEntry, version: 1 | 2): boolean {
  return version === 2 ? fsType === 'cgroup2' : fsType === 'cgroup' && superOptions.includes('memory');
}

/** A group's path below the part of the hierarchy that is mounted; undefined where it lies outside of it. */
function pathUnder(root: string, path: string): string | undefined {
  if (path === root) return '';
  if (root === '/') return path;
  return path.startsWith(`${root}/`) ? path.slice(root.length) : undefined;
}

/** Infinity where the file says that there is none, or is not there: the topmost group has no such files. */
function limitIn(file: string): number {
  try {
    const text = readFileSync(file, 'utf8').trim();
    const bytes = Number(text);
    return text === 'max' || !Number.isFinite(bytes) ? Number.POSITIVE_INFINITY : bytes;
  } catch (error) {
    if (error instanceof Error && 'code' in error) return Number.POSITIVE_INFINITY;
    throw error;
  }
}
