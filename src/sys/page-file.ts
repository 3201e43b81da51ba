/**
 * A file or disk for large transfers, read and written by position, that leaves little behind in the page cache.
 *
 * Large aligned transfers go past the cache (O_DIRECT) where the file system can do that; small ones go through it, so that
 * the kernel sorts and joins them, and are dropped from it by {@link PageFile.dropCache}. The kernel keeps both views of
 * one file coherent. Interrupted and short transfers are gone on with.
 */
import { closeSync, constants, fstatSync, fsyncSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { blockDeviceSizeBytes } from './blkdev.js';
import { assert, CowbirdError, errnoOfError, SystemError } from './errors.js';
import * as libc from './libc.js';

const PAGE_BYTES = 4096;
const DIRECT_READ_BYTES_MIN = 65_536;
const DIRECT_WRITE_BYTES_MIN = 262_144;
const EINTR = 4;
const EINVAL = 22;
const EOPNOTSUPP = 95;

const pageMemory = new WeakSet<ArrayBufferLike>();

/** Memory that O_DIRECT takes, in whole pages, all zeros. It is never given back: keep it for the life of a thread. */
export function allocatePages(lengthBytes: number): Buffer {
  const { bytes } = libc.mapPages(Math.ceil(lengthBytes / PAGE_BYTES) * PAGE_BYTES);
  pageMemory.add(bytes);
  return Buffer.from(bytes, 0, lengthBytes);
}

function isAligned(bytes: Uint8Array, offset: number): boolean {
  return (
    offset % PAGE_BYTES === 0 &&
    bytes.byteLength % PAGE_BYTES === 0 &&
    bytes.byteOffset % PAGE_BYTES === 0 &&
    pageMemory.has(bytes.buffer)
  );
}

/** What another thread of this process needs to use the same file. */
export interface PageFileHandle {
  fd: number;
  /** -1 where the file system has no O_DIRECT. */
  directFd: number;
  /** A regular file: it has holes, a length that can change, and clean pages that can be dropped. */
  isFile: boolean;
  /** Nothing of it may come from the page cache, nor go there. */
  isUncached?: boolean;
}

export type PageFileMode = 'read' | 'write' | 'create' | 'create-new';

const FLAGS: Readonly<Record<PageFileMode, number>> = {
  read: constants.O_RDONLY,
  write: constants.O_RDWR,
  create: constants.O_RDWR + constants.O_CREAT + constants.O_TRUNC,
  'create-new': constants.O_RDWR + constants.O_CREAT + constants.O_EXCL,
};

type Transfer = (fd: number, bytes: Uint8Array, from: number, lengthBytes: number, offset: number) => number;

export class PageFile {
  readonly handle: PageFileHandle;
  #punches = true;
  #zeroes = true;
  #direct = true;
  #isRandom = false;

  constructor(handle: PageFileHandle) {
    this.handle = handle;
  }

  /**
   * Opens a file or disk. `claim`: a disk is opened exclusively (EBUSY when it is mounted or claimed).
   *
   * @throws Node's error of open(2); {@link SystemError} ENOTBLK for what is neither file nor disk.
   */
  static open(path: string, mode: PageFileMode, claim = false): PageFile {
    // Without O_NONBLOCK the open of a named pipe waits for somebody at its other end.
    const flags = FLAGS[mode] + constants.O_NONBLOCK + (claim ? constants.O_EXCL : 0);
    const fd = openSync(path, flags, 0o600);
    const stats = fstatSync(fd);
    if (!stats.isFile() && !stats.isBlockDevice()) {
      closeSync(fd);
      throw new SystemError('open', 15, `${path}, which is neither a file nor a block device`);
    }
    const access = mode === 'read' ? constants.O_RDONLY : constants.O_RDWR;
    return new PageFile({ fd, directFd: openDirect(`/proc/self/fd/${fd}`, access), isFile: stats.isFile() });
  }

  /**
   * Opens a disk to read it past the page cache only: what is cached of a disk that is in use is not what is on it. Transfers
   * that are not aligned fail (EINVAL).
   */
  static openUncached(path: string, claim: boolean): PageFile {
    const flags = constants.O_RDONLY + constants.O_NONBLOCK + libc.O_DIRECT + (claim ? constants.O_EXCL : 0);
    return new PageFile({ fd: openSync(path, flags), directFd: -1, isFile: false, isUncached: true });
  }

  sizeBytes(): number {
    return this.handle.isFile ? fstatSync(this.handle.fd).size : blockDeviceSizeBytes(this.handle.fd);
  }

  /** Reads up to the buffer's length from `offset`; returns how many bytes came, fewer only at the end. */
  pread(bytes: Uint8Array, offset: number): number {
    let done = 0;
    while (done < bytes.byteLength) {
      const piece = bytes.subarray(done);
      const count = this.#transfer(readSync, piece, offset + done, DIRECT_READ_BYTES_MIN);
      if (count === 0) return done;
      done += count;
    }
    return done;
  }

  /**
   * Begins to read a range into the page cache, for a {@link pread} of just that range soon; advice only. Ranges that go past
   * the cache are left out. From then on short reads take what they ask for and no more: those that are told come from anywhere.
   */
  prefetch(offset: number, lengthBytes: number): void {
    const { fd, isUncached } = this.handle;
    if (isUncached === true || lengthBytes >= DIRECT_READ_BYTES_MIN) return;
    if (!this.#isRandom) libc.expectRandomReads(fd);
    this.#isRandom = true;
    libc.prefetch(fd, offset, lengthBytes);
  }

  /** Writes all bytes or throws; a failed write may have written any part. */
  pwrite(bytes: Uint8Array, offset: number): void {
    let done = 0;
    while (done < bytes.byteLength) {
      const piece = bytes.subarray(done);
      const count = this.#transfer(writeSync, piece, offset + done, DIRECT_WRITE_BYTES_MIN);
      if (count <= 0) throw new CowbirdError('EIO', `Nothing was written at ${offset + done}`, { outcome: 'failed' });
      done += count;
    }
  }

  /** One transfer, past the page cache where it is large enough and aligned. */
  #transfer(call: Transfer, bytes: Uint8Array, offset: number, directBytesMin: number): number {
    const { fd, directFd } = this.handle;
    const once = (use: number): number => retried(() => call(use, bytes, 0, bytes.byteLength, offset));
    if (!this.#direct || directFd < 0 || bytes.byteLength < directBytesMin || !isAligned(bytes, offset))
      return once(fd);
    try {
      return once(directFd);
    } catch (error) {
      // Some file systems take the flag and refuse the transfer: their alignment is another.
      if (errnoOfError(error) !== EINVAL) throw error;
      this.#direct = false;
      return once(fd);
    }
  }

  /** Makes a range read as zeros, and keeps its space, where the file system can do that; else as {@link punch}. */
  zero(offset: number, lengthBytes: number): void {
    if (this.#zeroes) this.#zeroes = this.#fallocate(libc.FALLOC_FL_ZERO_RANGE, offset, lengthBytes);
    if (!this.#zeroes) this.punch(offset, lengthBytes);
  }

  /** False where the file system does not know this kind of it. */
  #fallocate(kind: number, offset: number, lengthBytes: number): boolean {
    assert(lengthBytes > 0, `zeros for ${lengthBytes} bytes`);
    for (;;) {
      if (!this.handle.isFile) return false;
      if (libc.fast.fallocate(this.handle.fd, libc.FALLOC_FL_KEEP_SIZE + kind, offset, lengthBytes) === 0) return true;
      const errno = libc.lastErrno();
      if (errno === EOPNOTSUPP) return false;
      if (errno !== EINTR) throw new SystemError('fallocate', errno, `${offset}+${lengthBytes}`);
    }
  }

  /** Makes a range read as zeros; its space is given back where the file system can do that. */
  punch(offset: number, lengthBytes: number): void {
    if (this.#punches) this.#punches = this.#fallocate(libc.FALLOC_FL_PUNCH_HOLE, offset, lengthBytes);
    if (this.#punches) return;
    const zeros = Buffer.alloc(Math.min(lengthBytes, 1_048_576));
    for (let at = 0; at < lengthBytes; at += zeros.byteLength)
      this.pwrite(zeros.subarray(0, Math.min(zeros.byteLength, lengthBytes - at)), offset + at);
  }

  /** First offset in `[offset, end)` that may hold data; `end` when the whole range is known to be a hole. */
  nextData(offset: number, end: number): number {
    return this.handle.isFile ? libc.nextData(this.handle.fd, offset, end) : offset;
  }

  truncate(lengthBytes: number): void {
    ftruncateSync(this.handle.fd, lengthBytes);
  }

  fsync(): void {
    retried(() => {
      fsyncSync(this.handle.fd);
      return 0;
    });
  }

  /** Takes the file's clean pages out of the page cache. */
  dropCache(): void {
    libc.dropCache(this.handle.fd);
  }

  close(): void {
    if (this.handle.directFd >= 0) closeSync(this.handle.directFd);
    closeSync(this.handle.fd);
  }
}

/** A second descriptor on the same file, past the page cache; -1 where there is none. */
function openDirect(path: string, access: number): number {
  try {
    return openSync(path, access + libc.O_DIRECT);
  } catch (error) {
    // EINVAL: this file system has no O_DIRECT. EACCES, ENOENT: /proc is not there or not ours; the cache serves as well.
    if ([EINVAL, 13, 2].includes(errnoOfError(error))) return -1;
    throw error;
  }
}

function retried(call: () => number): number {
  for (;;) {
    try {
      return call();
    } catch (error) {
      if (errnoOfError(error) !== EINTR) throw error;
    }
  }
}
