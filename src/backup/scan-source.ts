/**
 * The source of engine `scan`: an image file, or a disk that nobody uses. Claimed while it is read, so that it stays as it is.
 */
import { closeSync, constants, fstatSync, openSync, readFileSync, realpathSync, type Stats, statSync } from 'node:fs';
import { basename } from 'node:path';
import { HEAD_BYTES, signatureOf } from '../block/signature.js';
import { readPadded } from '../repository/files.js';
import type { SourceIdentity } from '../repository/manifest.js';
import type { BackupSource } from '../repository/source.js';
import { isBackedBy } from '../sys/below.js';
import { boundLoops, deviceNumber, deviceNumbersOn, sysfsName } from '../sys/blkdev.js';
import { CowbirdError, codeOf, errnoOfError } from '../sys/errors.js';
import { tryLockImage } from '../sys/fsfile.js';
import { allMounts, fuseFiles } from '../sys/mounts.js';
import { allocatePages, PageFile } from '../sys/page-file.js';
import { contentOf } from './node-signature.js';

/** For what a disk begins with: O_DIRECT takes whole pages only. Made once, for it is never given back. */
let headPages: Buffer | undefined;

export interface OpenSource extends BackupSource {
  close(): void;
}

/**
 * Opens a source for engine `scan`.
 *
 * @throws {CowbirdError} ENOENT; ENOTBLK for what is neither file nor disk; EBUSY for what is mounted, claimed or locked;
 * EINVAL for an empty file, and for another image format.
 */
export function openScanSource(path: string): OpenSource {
  const real = realPathOf(path);
  const stats = statSync(real);
  if (!stats.isFile() && !stats.isBlockDevice())
    throw new CowbirdError('ENOTBLK', `${path} is neither a block device nor an image file`);
  const release = stats.isFile() ? lockImage(real) : (): void => undefined;
  let file: PageFile | undefined;
  try {
    file = stats.isFile() ? PageFile.open(real, 'read') : claimDevice(real, stats.rdev);
    const sizeBytes = file.sizeBytes();
    if (sizeBytes === 0) throw new CowbirdError('EINVAL', `${path} is empty: there is nothing to back up`);
    headPages ??= allocatePages(HEAD_BYTES);
    readPadded(file, headPages, 0);
    const signature = signatureOf(headPages);
    if (signature?.name === 'a qcow2 image')
      throw new CowbirdError(
        'EINVAL',
        `${path} is a qcow2 image, whose bytes are not those of a disk: convert it to raw first (qemu-img convert)`,
      );
    const identity: SourceIdentity = {
      kind: stats.isFile() ? 'file' : 'device',
      path: real,
      place: stats.isFile() ? real : placeOfDevice(real, stats.rdev),
      content: contentOf(signature),
    };
    const opened = file;
    const mark = writeMark(stats, opened.handle.fd);
    return {
      sizeBytes,
      identity,
      file: opened,
      confirm: () => {
        if (writeMark(stats, opened.handle.fd) !== mark) throw writtenMeanwhile(path);
      },
      close: () => {
        // What was read in small pieces came through the page cache.
        if (stats.isFile()) opened.dropCache();
        opened.close();
        release();
      },
    };
  } catch (error) {
    file?.close();
    release();
    throw error;
  }
}

/** Changes whenever somebody writes: a file's times and length, a disk's counters of writes and discards. */
function writeMark(stats: Stats, fd: number): string {
  if (stats.isFile()) {
    const { size, mtimeNs, ctimeNs } = fstatSync(fd, { bigint: true });
    return `${size} ${mtimeNs} ${ctimeNs}`;
  }
  const counters = readLine(`/sys/dev/block/${deviceNumber(stats.rdev)}/stat`)?.split(/\s+/) ?? [];
  return [4, 6, 11, 13].map((field) => counters[field] ?? '').join(' ');
}

function writtenMeanwhile(path: string): CowbirdError {
  return new CowbirdError(
    'EBUSY',
    `${path} was written while it was read, so that no moment of it was seen: no version was made. Stop whoever writes to it, and run this again`,
    { outcome: 'failed' },
  );
}

/** @throws {CowbirdError} ENOENT, with the path as it was given. */
export function realPathOf(path: string): string {
  try {
    return realpathSync(path);
  } catch (error) {
    const code = codeOf(errnoOfError(error));
    throw new CowbirdError(code, code === 'ENOENT' ? `${path} does not exist` : `${path} cannot be found (${code})`);
  }
}

/** Whether a source has a user that does not go by itself: it is mounted, or behind a loop device. */
export function isUsedForLong(named: string): boolean {
  const real = realPathOf(named);
  const stats = statSync(real);
  if (!stats.isBlockDevice()) return loopOn(real) !== undefined;
  const numbers = deviceNumbersOn(real).map(({ number }) => number);
  return allMounts().some(({ device }) => numbers.includes(device));
}

/** Keeps QEMU, another Cowbird and loop devices away from an image. Returns how to let them in again. */
export function lockImage(path: string): () => void {
  const loop = loopOn(path);
  if (loop !== undefined)
    throw new CowbirdError(
      'EBUSY',
      `${path} is behind ${loop.node}: end that first (losetup -d ${loop.node}), or name it as the source or target`,
    );
  const { fd, writable } = openForLock(path);
  if (tryLockImage(fd, writable)) return () => closeSync(fd);
  closeSync(fd);
  throw new CowbirdError(
    'EBUSY',
    `${path} is locked by another program, such as QEMU or another Cowbird: end that first`,
  );
}

/** By the file: it may have several names, and be reached through several mounts. */
function loopOn(path: string): { node: string } | undefined {
  const file = statSync(path);
  const served = fuseFiles();
  return boundLoops().find(({ backingFile }) => backingFile === path || isBackedBy(backingFile, file, served));
}

/** The lock that stands against all others wants a descriptor for writing; nothing is written. */
function openForLock(path: string): { fd: number; writable: boolean } {
  try {
    return { fd: openSync(path, constants.O_RDWR), writable: true };
  } catch (error) {
    if (!['EACCES', 'EROFS', 'EPERM'].includes(codeOf(errnoOfError(error)))) throw error;
    return { fd: openSync(path, constants.O_RDONLY), writable: false };
  }
}

/**
 * What the page cache has of a disk may be older than what is on it: a file system that was mounted meanwhile has written past it, and
 * whoever has the node open has kept it. So nothing is read from there.
 */
function claimDevice(path: string, rdev: number): PageFile {
  try {
    return PageFile.openUncached(path, true);
  } catch (error) {
    throw claimError(
      path,
      error,
      'engine scan wants it unmounted; in use, engine live takes it (and engine driver, once it is attached)',
      rdev,
    );
  }
}

/** EBUSY in words: who has the device. Any other error as it is. */
export function claimError(path: string, error: unknown, advice: string, rdev: number): unknown {
  if (codeOf(errnoOfError(error)) !== 'EBUSY') return error;
  const numbers = sysfsName(rdev) === undefined ? [] : deviceNumbersOn(path).map(({ number }) => number);
  const mounted = [
    ...new Set(
      allMounts()
        .filter(({ device }) => numbers.includes(device))
        .map(({ mountPoint }) => mountPoint),
    ),
  ];
  const how =
    mounted.length > 0 ? `mounted on ${mounted.join(', ')}` : 'claimed by somebody else (mount, swap, RAID, LVM)';
  return new CowbirdError('EBUSY', `${path} is ${how}: ${advice}`);
}

/** What stays the same when a disk gets another name: backing file, device-mapper uuid, or serial number and start. */
export function placeOfDevice(path: string, rdev: number): string {
  const base = `/sys/dev/block/${deviceNumber(rdev)}`;
  const backing = readLine(`${base}/loop/backing_file`);
  if (backing !== undefined) return backing;
  const dm = readLine(`${base}/dm/uuid`);
  if (dm !== undefined) return `dm ${dm}`;
  const start = readLine(`${base}/start`);
  const disk = start === undefined ? base : `${base}/..`;
  const wholeBacking = readLine(`${disk}/loop/backing_file`);
  if (wholeBacking !== undefined) return `${wholeBacking} ${start ?? 'whole'}`;
  for (const name of ['wwid', 'device/wwid', 'serial', 'device/serial']) {
    const serial = readLine(`${disk}/${name}`);
    if (serial !== undefined) return `${serial} ${start ?? 'whole'}`;
  }
  return basename(path);
}

function readLine(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim() || undefined;
  } catch (error) {
    if (error instanceof Error && 'code' in error) return undefined;
    throw error;
  }
}

/**
 * Whether two identities are of one source: the same place, or the same contents by uuid. A disk that was formatted anew is
 * still the same disk, and an image that was moved the same image. Of a disk without a serial number no more is known than its
 * name, which the next disk has too: one with other contents by uuid is another one.
 */
export function isSameSource(a: SourceIdentity, b: SourceIdentity): boolean {
  if (a.content !== null && a.content === b.content) return true;
  if (a.place !== b.place) return hadMereName(a, b) && (a.content ?? b.content) === null;
  return !(isMereName(a) && a.content !== null && b.content !== null);
}

/** Whether {@link placeOfDevice} found nothing better than the node's name. */
export function isMereName({ kind, place }: SourceIdentity): boolean {
  return kind !== 'file' && !/[/ ]/.test(place);
}

/** Earlier versions gave a partition of a loop device no more than its name, which now is the file and where it begins there. */
function hadMereName(known: SourceIdentity, now: SourceIdentity): boolean {
  return /^loop\d+p\d+$/.test(known.place) && known.place === basename(now.path);
}
