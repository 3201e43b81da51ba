/**
 * Reading past the page cache. What Cowbird writes by address is not in the cached pages of a file or partition, so
 * everything that judges or copies is read with O_DIRECT; where a file system has none, its clean cached pages are dropped
 * before the first read.
 */
import { constants, fstatSync, type Stats } from 'node:fs';
import { blockDeviceSizeBytes } from './blkdev.js';
import { assert, CowbirdError, errnoOfError, SystemError } from './errors.js';
import * as libc from './libc.js';

const ENOTBLK = 15;
const EINVAL = 22;
/** Without O_NONBLOCK the open of a named pipe waits for somebody who writes to it. */
const FLAGS = libc.O_RDONLY + libc.O_NONBLOCK;
const SECTOR_BYTES = 512;
const PAGE_BYTES = 4096;
const BUFFER_BYTES = 1_048_576;

/** A file or device, read by position. Any offset and length; the reads below are aligned. */
export class DirectReader {
  readonly lengthBytes: number;
  readonly isDirect: boolean;
  /** The descriptor, for other transfers past the page cache beside those of `read()`; undefined where there can be none. */
  readonly directFd: number | undefined;
  readonly #fd: number;
  /** Undefined: closed. A view on memory that was given back may not be touched. */
  #memory: libc.Mapping | undefined;

  /** `own`: only a file that nobody but this process's user can have made or written, and no link to one. */
  constructor(path: string, { own = false } = {}) {
    let direct = true;
    const flags = FLAGS + (own ? constants.O_NOFOLLOW : 0);
    try {
      this.#fd = libc.open(path, flags + libc.O_DIRECT);
    } catch (error) {
      if (errnoOfError(error) !== EINVAL) throw error;
      this.#fd = libc.open(path, flags);
      direct = false;
    }
    this.isDirect = direct;
    this.directFd = direct ? this.#fd : undefined;
    const stats = fstatSync(this.#fd);
    try {
      if (!stats.isFile() && !stats.isBlockDevice())
        throw new SystemError('open', ENOTBLK, `${path}, which is neither a file nor a block device`);
      if (own) requireOwn(path, stats);
    } catch (error) {
      libc.close(this.#fd);
      throw error;
    }
    this.lengthBytes = stats.isFile() ? stats.size : blockDeviceSizeBytes(this.#fd);
    if (!direct) libc.dropCache(this.#fd);
    this.#memory = libc.mapPages(BUFFER_BYTES);
  }

  /** Reads up to the buffer's length from `offset`; 0 at the end. @throws {SystemError} */
  read(buffer: Uint8Array, offset: number): number {
    const memory = this.#memory;
    assert(memory !== undefined, 'a reader that reads is open');
    if (offset >= this.lengthBytes) return 0;
    const start = offset - (offset % PAGE_BYTES);
    const wanted = Math.min(BUFFER_BYTES, Math.ceil((offset + buffer.byteLength - start) / PAGE_BYTES) * PAGE_BYTES);
    const device = Math.ceil(this.lengthBytes / SECTOR_BYTES) * SECTOR_BYTES;
    const count = libc.fast.pread(
      this.#fd,
      memory.address,
      Math.min(wanted, Math.max(device - start, SECTOR_BYTES)),
      start,
    );
    if (count < 0) throw new SystemError('pread', libc.lastErrno(), `at ${start}`);
    const available = Math.min(count - (offset - start), buffer.byteLength);
    if (available <= 0) return 0;
    buffer.set(new Uint8Array(memory.bytes, offset - start, available));
    return available;
  }

  close(): void {
    if (this.#memory === undefined) return;
    libc.unmap(this.#memory);
    this.#memory = undefined;
    libc.close(this.#fd);
  }
}

const OTHERS_WRITE = 0o022;

function requireOwn(path: string, { uid, mode }: Stats): void {
  if (uid === process.geteuid?.() && (mode & OTHERS_WRITE) === 0) return;
  throw new CowbirdError(
    'EACCES',
    `${path} can have been written by others (user ${uid}, mode ${(mode % 0o1000).toString(8)})`,
  );
}
