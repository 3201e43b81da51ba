/**
 * The `BlockDevice` contract, and its implementation over an open file or disk.
 *
 * Every method is synchronous and runs in the calling thread: a request belongs to one thread from its first effect to its
 * reply, which is what makes it safe to execute again after the process was killed (nothing completes behind its back).
 *
 * - Ranges: `offset` and `lengthBytes` are multiples of the device's sector (512 at least), inside `sizeBytes`. Checked.
 * - Memory: an {@link IoBuffer}'s address must be aligned to 512 for a device opened O_DIRECT.
 * - Whole or error: a short transfer is retried to its end; nothing there is EIO. A failed write may have written any part.
 * - Durability: a completed write is durable after the next `flush()` that returns. `writeZeroes` leaves zeros on reading.
 * - Idempotent: repeating a write or a writeZeroes with the same arguments gives the same contents.
 */
import { assert, SystemError } from '../sys/errors.js';
import * as libc from '../sys/libc.js';

/** Memory with both of its faces: bytes for us, an address for the kernel. */
export interface IoBuffer {
  readonly bytes: Uint8Array;
  readonly address: number;
}

export interface BlockDevice {
  readonly sizeBytes: number;
  read(buffer: IoBuffer, bufferOffset: number, lengthBytes: number, offset: number): void;
  write(buffer: IoBuffer, bufferOffset: number, lengthBytes: number, offset: number): void;
  /**
   * Makes a range read as zeros. With `unmap` the space is given back where the device can; EOPNOTSUPP where it cannot do
   * that and leave zeros, so that the caller writes zeros itself.
   */
  writeZeroes(offset: number, lengthBytes: number, unmap: boolean): void;
  flush(): void;
  /** First offset in `[offset, end)` that may hold data; `end` when the whole range is known to be a hole. */
  nextData(offset: number, end: number): number;
}

const EIO = 5;
const EINTR = 4;

/** A file or a disk behind a descriptor that somebody else opened and will close. */
export class FdDevice implements BlockDevice {
  readonly sizeBytes: number;
  /** For transfers beside those of this class. */
  readonly fd: number;
  readonly #hasHoles: boolean;

  /** `hasHoles`: a regular file, whose holes SEEK_DATA tells. */
  constructor(fd: number, sizeBytes: number, hasHoles: boolean) {
    assert(Number.isSafeInteger(sizeBytes) && sizeBytes >= 0, `device size ${sizeBytes} is a byte count`);
    this.fd = fd;
    this.sizeBytes = sizeBytes;
    this.#hasHoles = hasHoles;
  }

  read(buffer: IoBuffer, bufferOffset: number, lengthBytes: number, offset: number): void {
    this.checkRange(buffer, bufferOffset, lengthBytes, offset);
    this.#transfer(libc.fast.pread, 'pread', buffer.address + bufferOffset, lengthBytes, offset);
  }

  write(buffer: IoBuffer, bufferOffset: number, lengthBytes: number, offset: number): void {
    this.checkRange(buffer, bufferOffset, lengthBytes, offset);
    this.#transfer(libc.fast.pwrite, 'pwrite', buffer.address + bufferOffset, lengthBytes, offset);
  }

  writeZeroes(offset: number, lengthBytes: number, unmap: boolean): void {
    assert(
      offset >= 0 && lengthBytes > 0 && offset + lengthBytes <= this.sizeBytes,
      () => `zero range ${offset}+${lengthBytes}`,
    );
    const mode = libc.FALLOC_FL_KEEP_SIZE + (unmap ? libc.FALLOC_FL_PUNCH_HOLE : libc.FALLOC_FL_ZERO_RANGE);
    while (libc.fast.fallocate(this.fd, mode, offset, lengthBytes) !== 0) {
      const errno = libc.lastErrno();
      if (errno !== EINTR) throw new SystemError('fallocate', errno, `${offset}+${lengthBytes}`);
    }
  }

  flush(): void {
    while (libc.fast.fdatasync(this.fd) !== 0) {
      const errno = libc.lastErrno();
      if (errno !== EINTR) throw new SystemError('fdatasync', errno);
    }
  }

  nextData(offset: number, end: number): number {
    return this.#hasHoles ? libc.nextData(this.fd, offset, end) : offset;
  }

  #transfer(
    call: (fd: number, address: number, length: number, offset: number) => number,
    name: string,
    address: number,
    lengthBytes: number,
    offset: number,
  ): void {
    let done = 0;
    while (done < lengthBytes) {
      const count = call(this.fd, address + done, lengthBytes - done, offset + done);
      if (count > 0) {
        done += count;
        continue;
      }
      const errno = count === 0 ? EIO : libc.lastErrno();
      if (errno !== EINTR) throw new SystemError(name, errno, `${offset + done}+${lengthBytes - done}`);
    }
  }

  checkRange(buffer: IoBuffer, bufferOffset: number, lengthBytes: number, offset: number): void {
    assert(
      lengthBytes > 0 && offset >= 0 && offset + lengthBytes <= this.sizeBytes,
      () => `range ${offset}+${lengthBytes} lies in a device of ${this.sizeBytes} bytes`,
    );
    assert(bufferOffset >= 0 && bufferOffset + lengthBytes <= buffer.bytes.byteLength, 'range lies in the buffer');
  }
}
