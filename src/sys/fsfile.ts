/** File-system calls that only helpers make: extents, flags, freezing, locks (linux/fiemap.h, linux/fs.h, fcntl(2)). */
import { openSync } from 'node:fs';
import { errnoOfError } from './errors.js';
import * as libc from './libc.js';

const FS_IOC_FIEMAP = 0xc020660b;
const FIEMAP_FLAG_SYNC = 1;
const EXTENTS_PER_CALL = 256;
const HEADER_BYTES = 32;
const EXTENT_BYTES = 56;

export const FIEMAP_EXTENT = {
  LAST: 0x1,
  UNKNOWN: 0x2,
  DELALLOC: 0x4,
  ENCODED: 0x8,
  DATA_ENCRYPTED: 0x80,
  NOT_ALIGNED: 0x100,
  DATA_INLINE: 0x200,
  DATA_TAIL: 0x400,
  UNWRITTEN: 0x800,
  MERGED: 0x1000,
  SHARED: 0x2000,
} as const;

export interface FileExtent {
  logicalBytes: number;
  physicalBytes: number;
  lengthBytes: number;
  flags: number;
}

/** The extents of a whole file, after the kernel has written out what was delayed. */
export function fileExtents(fd: number, lengthBytes: number): FileExtent[] {
  const extents: FileExtent[] = [];
  const buffer = Buffer.alloc(HEADER_BYTES + EXTENTS_PER_CALL * EXTENT_BYTES);
  let start = 0;
  while (start < lengthBytes) {
    buffer.fill(0);
    buffer.writeBigUInt64LE(BigInt(start), 0);
    buffer.writeBigUInt64LE(BigInt(lengthBytes - start), 8);
    buffer.writeUInt32LE(FIEMAP_FLAG_SYNC, 16);
    buffer.writeUInt32LE(EXTENTS_PER_CALL, 24);
    libc.ioctl(fd, FS_IOC_FIEMAP, buffer, 'FS_IOC_FIEMAP');
    const count = buffer.readUInt32LE(20);
    if (count === 0) break;
    for (let i = 0; i < count; i++) {
      const at = HEADER_BYTES + i * EXTENT_BYTES;
      const extent: FileExtent = {
        logicalBytes: Number(buffer.readBigUInt64LE(at)),
        physicalBytes: Number(buffer.readBigUInt64LE(at + 8)),
        lengthBytes: Number(buffer.readBigUInt64LE(at + 16)),
        flags: buffer.readUInt32LE(at + 40),
      };
      extents.push(extent);
      start = extent.logicalBytes + extent.lengthBytes;
      if ((extent.flags & FIEMAP_EXTENT.LAST) !== 0) return extents;
    }
  }
  return extents;
}

const FS_IOC_GETFLAGS = 0x80086601;
const FS_IOC_SETFLAGS = 0x40086602;
const FS_IMMUTABLE_FL = 0x10;
const FS_IOC_FSGETXATTR = 0x801c581f;
const FS_XFLAG_REALTIME = 1;

/** Sets or clears the immutable attribute. Returns false where the file system has no such attribute. */
export function setImmutable(fd: number, immutable: boolean): boolean {
  const flags = Buffer.alloc(8);
  try {
    libc.ioctl(fd, FS_IOC_GETFLAGS, flags, 'FS_IOC_GETFLAGS');
    const before = flags.readUInt32LE();
    const after = immutable ? before | FS_IMMUTABLE_FL : before & ~FS_IMMUTABLE_FL;
    flags.writeUInt32LE(after >>> 0);
    if (after !== before) libc.ioctl(fd, FS_IOC_SETFLAGS, flags, 'FS_IOC_SETFLAGS');
    return true;
  } catch (error) {
    // ENOTTY, EOPNOTSUPP, EINVAL: no such ioctl here.
    if ([25, 95, 22].includes(errnoOfError(error))) return false;
    throw error;
  }
}

/** Whether the file's data lie on an XFS realtime device, whose addresses are not the volume's. */
export function isRealtimeFile(fd: number): boolean {
  const attributes = Buffer.alloc(28);
  try {
    libc.ioctl(fd, FS_IOC_FSGETXATTR, attributes, 'FS_IOC_FSGETXATTR');
  } catch (error) {
    if ([25, 95].includes(errnoOfError(error))) return false;
    throw error;
  }
  return (attributes.readUInt32LE() & FS_XFLAG_REALTIME) !== 0;
}

const FIFREEZE = 0xc0045877;
const FITHAW = 0xc0045878;

export function freeze(fd: number): void {
  libc.ioctlNumber(fd, FIFREEZE, 0, 'FIFREEZE');
}

export function thaw(fd: number): void {
  libc.ioctlNumber(fd, FITHAW, 0, 'FITHAW');
}

const F_OFD_SETLK = 37;
const F_WRLCK = 1;
const F_RDLCK = 0;
/** QEMU's permission locks: one byte a permission from 100, one a forbidden permission from 200 (block/file-posix.c). */
const QEMU_LOCK_START = 100;
const QEMU_LOCK_LENGTH = 200;

/**
 * Takes the bytes of an image that QEMU locks, for as long as `fd` is open: two Cowbirds or a Cowbird and a QEMU never have
 * one image. Returns false when somebody else has them.
 */
export function tryLockImage(fd: number, writable: boolean): boolean {
  return tryLockRange(fd, writable ? F_WRLCK : F_RDLCK, QEMU_LOCK_START, QEMU_LOCK_LENGTH);
}

/** Locks a whole file of our own for as long as `fd` is open. False when somebody else has it. */
export function tryLockFile(fd: number): boolean {
  return tryLockRange(fd, F_WRLCK, 0, 0);
}

function tryLockRange(fd: number, type: number, start: number, lengthBytes: number): boolean {
  const flock = Buffer.alloc(32);
  flock.writeInt16LE(type, 0);
  flock.writeBigInt64LE(BigInt(start), 8);
  flock.writeBigInt64LE(BigInt(lengthBytes), 16);
  try {
    libc.fcntl(fd, F_OFD_SETLK, flock, 'F_OFD_SETLK');
    return true;
  } catch (error) {
    if ([11, 13].includes(errnoOfError(error))) return false;
    throw error;
  }
}

const O_TMPFILE = 0o20000000 + libc.O_DIRECTORY;
/** EOPNOTSUPP; EISDIR from kernels and EINVAL from file systems that do not know the flag. */
const NO_TMPFILE = [95, 21, 22];

/**
 * Opens a new file that has no name yet, in the file system of a directory: whoever dies leaves nothing (O_TMPFILE in open(2)).
 * Undefined where the file system does not have such files.
 */
export function openUnnamed(directory: string, mode: number): number | undefined {
  try {
    return openSync(directory, libc.O_RDWR + O_TMPFILE, mode);
  } catch (error) {
    if (NO_TMPFILE.includes(errnoOfError(error))) return undefined;
    throw error;
  }
}
