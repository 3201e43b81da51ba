/** What statx(2) says of transfers past the page cache. */
import * as libc from './libc.js';

const SYS_STATX = process.arch === 'arm64' ? 291 : 332;
const AT_EMPTY_PATH = 0x1000;
const STATX_DIOALIGN = 0x2000;
/** struct statx, linux/stat.h: stx_mask, stx_dio_offset_align. */
const STATX = { bytes: 256, mask: 0, directOffsetAlign: 156 } as const;

/** Of what transfers with O_DIRECT must be multiples on a file (statx(2), Linux 6.1); undefined where that is not told. */
export function directAlignment(fd: number): number | undefined {
  const memory = libc.mapPages(4096);
  try {
    // The empty path is the zero behind the answer's place.
    const path = memory.address + STATX.bytes;
    const result = libc.syscall(SYS_STATX, fd, path, AT_EMPTY_PATH, STATX_DIOALIGN, memory.address);
    const view = new DataView(memory.bytes);
    if (result < 0 || (view.getUint32(STATX.mask, true) & STATX_DIOALIGN) === 0) return undefined;
    return view.getUint32(STATX.directOffsetAlign, true);
  } finally {
    libc.unmap(memory);
  }
}
