/** Opening what the keeper holds for life: origins, claimed, and stores of their own. */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { blockDeviceSizeBytes, isReadOnlyDevice, logicalSectorBytes } from '../sys/blkdev.js';
import { directAlignment } from '../sys/direct-alignment.js';
import { CowbirdError, errnoOfError } from '../sys/errors.js';
import { tryLockImage } from '../sys/fsfile.js';
import * as libc from '../sys/libc.js';
import { BLOCK_BYTES, layoutFor, MAX_BLOCKS } from '../tracer/layout.js';
import type { OpenedOrigin } from './records.js';

const EBUSY = 16;
const EINVAL = 22;
const EROFS = 30;
const SECTOR_BYTES = 512;

/** Opens an origin for the write path and claims it, or says who has it. */
export function openOrigin(path: string, readOnly: boolean, raw: boolean): OpenedOrigin {
  const probe = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  let isFile: boolean;
  let deviceReadOnly = false;
  try {
    const stats = fstatSync(probe);
    isFile = stats.isFile();
    if (!isFile && !stats.isBlockDevice()) {
      throw new CowbirdError('ENOTBLK', `${path} is neither a block device nor an image file`);
    }
    if (!raw) refuseOtherFormats(probe, path);
    deviceReadOnly = !isFile && isReadOnlyDevice(probe);
  } finally {
    closeSync(probe);
  }
  const flags = libc.O_DIRECT + (isFile ? 0 : libc.O_EXCL);
  let writable = !readOnly && !deviceReadOnly;
  let fd: number;
  try {
    fd = openClaimed(path, flags, writable);
  } catch (error) {
    if (!writable || errnoOfError(error) !== EROFS) throw error;
    writable = false;
    fd = openClaimed(path, flags, false);
  }
  try {
    return describeOrigin(path, fd, isFile, writable);
  } catch (error) {
    libc.close(fd);
    throw error;
  }
}

function openClaimed(path: string, flags: number, writable: boolean): number {
  try {
    return libc.open(path, flags + (writable ? libc.O_RDWR : libc.O_RDONLY));
  } catch (error) {
    const errno = errnoOfError(error);
    if (errno === EBUSY)
      throw new CowbirdError('EBUSY', `${path} is mounted or claimed by somebody else: unmount or release it first`);
    if (errno === EINVAL)
      throw new CowbirdError('EINVAL', `${path} lies on a file system without O_DIRECT, which the write path needs`);
    throw error;
  }
}

function describeOrigin(path: string, fd: number, isFile: boolean, writable: boolean): OpenedOrigin {
  const bytes = isFile ? fstatSync(fd).size : blockDeviceSizeBytes(fd);
  const sectorBytes = isFile ? transferBytes(fd) : logicalSectorBytes(fd);
  if (isFile && sectorBytes > SECTOR_BYTES && bytes % sectorBytes !== 0)
    throw new CowbirdError(
      'EINVAL',
      `${path} has ${bytes} bytes, and lies on a disk that is read and written in ${sectorBytes}: make it longer with truncate -s %${sectorBytes}`,
    );
  const sizeBytes = bytes - (bytes % SECTOR_BYTES);
  const blockCount = Math.ceil(sizeBytes / BLOCK_BYTES);
  if (blockCount === 0) throw new CowbirdError('EINVAL', `${path} has ${bytes} bytes, which is less than one sector`);
  if (blockCount > MAX_BLOCKS)
    throw new CowbirdError('EFBIG', `${path} has ${bytes} bytes; volumes have 16 TiB at most`);
  if (isFile && !tryLockImage(fd, writable)) {
    throw new CowbirdError(
      'EBUSY',
      `${path} is locked by another program, such as QEMU or another Cowbird: end that first`,
    );
  }
  return {
    originFd: fd,
    memoryFd: libc.memfdCreate('cowbird-volume', layoutFor(blockCount).totalBytes),
    sizeBytes,
    logicalSectorBytes: sectorBytes,
    isFile,
    readOnly: !writable,
  };
}

/**
 * The least that can be read past the page cache of a file: its file system's disk may have larger sectors than 512 bytes. A kernel that
 * does not say it refuses to read less, unless it is of a hole.
 */
function transferBytes(fd: number): number {
  const told = directAlignment(fd);
  if (told !== undefined && told > 0) return told > SECTOR_BYTES ? BLOCK_BYTES : SECTOR_BYTES;
  const memory = libc.mapPages(BLOCK_BYTES);
  try {
    const isRefused = libc.fast.pread(fd, memory.address, SECTOR_BYTES, 0) < 0 && libc.lastErrno() === EINVAL;
    return isRefused ? BLOCK_BYTES : SECTOR_BYTES;
  } finally {
    libc.unmap(memory);
  }
}

function refuseOtherFormats(fd: number, path: string): void {
  const magic = Buffer.alloc(4);
  readSync(fd, magic, 0, 4, 0);
  if (magic.toString('latin1') === 'QFI\xfb') {
    throw new CowbirdError(
      'EINVAL',
      `${path} begins like a qcow2 image, not like a disk: convert it, or attach its bytes as they are with --raw`,
    );
  }
}

/** A store of its own: a file on another file system, or a disk. Nobody's link to something else. */
export function openStore(path: string): { storeFd: number; sizeBytes: number } {
  const flags = libc.O_RDWR + constants.O_NOFOLLOW;
  let fd: number;
  try {
    fd = libc.open(path, flags + libc.O_DIRECT);
  } catch (error) {
    // tmpfs before Linux 6.6 has no O_DIRECT; there is no writeback on it that could wait for us.
    if (errnoOfError(error) !== EINVAL) throw error;
    fd = libc.open(path, flags);
  }
  const stats = fstatSync(fd);
  return { storeFd: fd, sizeBytes: stats.isFile() ? stats.size : blockDeviceSizeBytes(fd) };
}
