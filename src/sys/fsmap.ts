/** FS_IOC_GETFSMAP: which parts of a file system's device are free (linux/fsmap.h, ioctl_getfsmap(2)). Only helpers call it. */
import * as libc from './libc.js';

const FS_IOC_GETFSMAP = 0xc0c0_583b;
const HEAD_BYTES = 192;
const RECORD_BYTES = 64;
const RECORDS_PER_CALL = 1024;
const COUNT_AT = 8;
const ENTRIES_AT = 12;
const OFLAGS_AT = 4;
const LOW_KEY_AT = 64;
const HIGH_KEY_AT = 128;
const FMH_OF_DEV_T = 1;
const FMR_OF_SPECIAL_OWNER = 0x10;
const FMR_OF_LAST = 0x20;
const FMR_OWN_FREE = 1n;

export interface FreeRange {
  /** On the device that the file system is on. */
  offset: number;
  lengthBytes: number;
}

/**
 * The free ranges of the file system that `fd` is open on, ascending. `device`: its number as `stat` gives it, for a file
 * system that has other devices (journal, realtime) beside it.
 *
 * @throws {SystemError} ENOTTY or EOPNOTSUPP where the file system cannot say.
 */
export function* freeRanges(fd: number, device: number): Generator<FreeRange, void, undefined> {
  const buffer = Buffer.alloc(HEAD_BYTES + RECORDS_PER_CALL * RECORD_BYTES);
  buffer.writeUInt32LE(RECORDS_PER_CALL, COUNT_AT);
  // struct fsmap: u32 device, u32 flags, u64 physical, owner, offset, length, reserved[3]. A high key has no length.
  buffer.fill(0xff, HIGH_KEY_AT, HIGH_KEY_AT + 32);
  for (;;) {
    libc.ioctl(fd, FS_IOC_GETFSMAP, buffer, 'FS_IOC_GETFSMAP');
    const entries = buffer.readUInt32LE(ENTRIES_AT);
    if (entries === 0) return;
    const hasNumbers = (buffer.readUInt32LE(OFLAGS_AT) & FMH_OF_DEV_T) !== 0;
    let flags = 0;
    for (let i = 0; i < entries; i++) {
      const at = HEAD_BYTES + i * RECORD_BYTES;
      flags = buffer.readUInt32LE(at + 4);
      const isFree = (flags & FMR_OF_SPECIAL_OWNER) !== 0 && buffer.readBigUInt64LE(at + 16) === FMR_OWN_FREE;
      const isHere = !hasNumbers || buffer.readUInt32LE(at) === device;
      if (isFree && isHere)
        yield {
          offset: Number(buffer.readBigUInt64LE(at + 8)),
          lengthBytes: Number(buffer.readBigUInt64LE(at + 32)),
        };
    }
    if ((flags & FMR_OF_LAST) !== 0) return;
    // The next call goes on behind the last record.
    buffer.copy(buffer, LOW_KEY_AT, HEAD_BYTES + (entries - 1) * RECORD_BYTES, HEAD_BYTES + entries * RECORD_BYTES);
  }
}
