/**
 * Where tracking keeps things, and who may touch them.
 *
 * - Pins: `/sys/fs/bpf/cowbird/<run directory>/<disk>/`. They go with the kernel, or with an unmount of bpffs.
 * - What users took: `<run directory>/tracking/<disk>/<user>/`, on a tmpfs. It must outlive processes, not the machine; and it is
 *   written while file systems are frozen, so it cannot be on one of them. Where the run directory is on a disk, a tmpfs of its own
 *   is mounted on `tracking`.
 * - Locks (flock, so that they end with their process): `<disk>.lock` is held for milliseconds while bits are moved, pins made
 *   or removed; `<disk>/<user>/lock` for as long as a process makes a version.
 */
import { createHash } from 'node:crypto';
import {
  closeSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  rmdirSync,
  rmSync,
  statfsSync,
  statSync,
  unlinkSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { CowbirdError, errnoOfError } from '../sys/errors.js';
import { LOCK_EX, mount, tryFlock, umount } from '../sys/libc.js';
import { pause } from './pause.js';

const BPFFS = '/sys/fs/bpf';
/** statfs(2) */
const BPFFS_MAGIC = 0xcafe4a11;
const TMPFS_MAGIC = 0x01021994;
const LOCK_TIMEOUT_MS = 3000;
/** Of the lock of an instance, under which programs are loaded: seconds on a busy machine. */
export const INSTANCE_TIMEOUT_MS = 60_000;
const EBUSY = 16;
const ENOENT = 2;

/** Folder of one instance's pins. */
export function pinFolder(runDir: string): string {
  const name = runDir
    .replace(/^\//, '')
    .replace(/[^A-Za-z0-9]/g, '_')
    .slice(-60);
  const digest = createHash('sha256').update(runDir).digest('hex').slice(0, 8);
  return join(BPFFS, 'cowbird', runDir === '/run/cowbird' ? 'run_cowbird' : `${name}_${digest}`);
}

/** Ends tracking: removes pins, links first. What is not there is no error. */
export function removePins(folder: string): void {
  let names: string[];
  try {
    names = readdirSync(folder);
  } catch (error) {
    if (errnoOfError(error) === ENOENT) return;
    throw error;
  }
  const isLink = (name: string): boolean => name.startsWith('link_');
  for (const name of [...names.filter(isLink), ...names.filter((other) => !isLink(other))])
    unlinkSync(join(folder, name));
  rmdirSync(folder);
}

export function trackingFolder(runDir: string): string {
  return join(runDir, 'tracking');
}

/** Mounts bpffs where systemd would have; readable by root alone. @throws {CowbirdError} ENOTSUP */
export function ensureBpffs(): void {
  if (!isThere(BPFFS)) throw new CowbirdError('ENOTSUP', `${BPFFS} is not there: the kernel is built without eBPF`);
  if (statfsSync(BPFFS).type === BPFFS_MAGIC) return;
  try {
    mount('bpf', BPFFS, 'bpf', 0, 'mode=700');
  } catch (error) {
    throw new CowbirdError('ENOTSUP', `bpffs cannot be mounted on ${BPFFS}: ${String(error)}`, { cause: error });
  }
}

export function ensureTrackingFolder(runDir: string): string {
  const folder = trackingFolder(runDir);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  if (statfsSync(folder).type !== TMPFS_MAGIC) mount('cowbird-tracking', folder, 'tmpfs', 0, 'mode=700');
  return folder;
}

/** Removes the folders, and the mount, of an instance that tracks nothing any more. Whoever uses them keeps them. */
export function removeEmptyPlaces(runDir: string): void {
  const folder = trackingFolder(runDir);
  removeFolderIfEmpty(pinFolder(runDir));
  removeFolderIfEmpty(dirname(pinFolder(runDir)));
  if (!isThere(folder) || readdirSync(folder).some((name) => !name.endsWith('.lock'))) return;
  for (const name of readdirSync(folder))
    withLock(join(folder, name), () => rmSync(join(folder, name), { force: true }));
  if (statSync(folder).dev !== statSync(dirname(folder)).dev) {
    try {
      umount(folder);
    } catch (error) {
      if (errnoOfError(error) !== EBUSY) throw error;
      return;
    }
  }
  removeFolderIfEmpty(folder);
}

function removeFolderIfEmpty(folder: string): void {
  if (isThere(folder) && readdirSync(folder).length === 0) rmSync(folder, { recursive: true });
}

export function isThere(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false }) !== undefined;
}

/** Does something while holding the lock file; waits for others a short time. @throws {CowbirdError} EBUSY */
export function withLock<T>(path: string, action: () => T, timeoutMs = LOCK_TIMEOUT_MS): T {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const fd = tryLockFile(path);
    if (fd !== undefined) {
      try {
        return action();
      } finally {
        closeSync(fd);
      }
    }
    if (performance.now() > deadline)
      throw new CowbirdError('EBUSY', `${path} is held by another process for more than ${timeoutMs} ms`, {
        outcome: 'failed',
      });
    pause(1);
  }
}

/** Takes a lock file without waiting: its descriptor, to be closed; undefined when another process has it. */
export function tryLockFile(path: string): number | undefined {
  for (;;) {
    const fd = openSync(path, 'a', 0o600);
    if (!tryFlock(fd, LOCK_EX)) {
      closeSync(fd);
      return undefined;
    }
    // One that was removed meanwhile locks nothing.
    const now = statSync(path, { throwIfNoEntry: false });
    if (now !== undefined && now.ino === fstatSync(fd).ino) return fd;
    closeSync(fd);
  }
}

/** Removes a file that may be gone already. */
export function removeFile(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (errnoOfError(error) !== ENOENT) throw error;
  }
}
