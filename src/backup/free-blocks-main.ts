/**
 * A process of its own that mounts a snapshot where nobody sees it, and lists the blocks that its file system does not use, and those
 * of the snapshot's own COW file, which read as zeros: `free-blocks-main NODE FSTYPE BYTES [NAME INODE]`, the list being a bitmap in
 * the file of descriptor 3.
 *
 * A mount may hang, and must end with its maker: so it is not made in the command itself.
 */
import { closeSync, fstatSync, lstatSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { setRange } from '../repository/bits.js';
import { FIEMAP_EXTENT, fileExtents } from '../sys/fsfile.js';
import { freeRanges } from '../sys/fsmap.js';
import { withPrivateMount } from '../sys/private-mount.js';
import { FREE_MOUNT_OPTIONS, TRANSFER_BYTES_MAX } from './free-blocks.js';

const MS_RDONLY = 1;
const MS_NOSUID_NODEV_NOEXEC = 14;
const BITMAP_FD = 3;
/** Extents whose address is none of the device's. */
const NO_ADDRESS = FIEMAP_EXTENT.UNKNOWN | FIEMAP_EXTENT.DELALLOC | FIEMAP_EXTENT.ENCODED | FIEMAP_EXTENT.DATA_INLINE;

/** Sets the bits of blocks that lie in a free range as a whole. */
function putRange(bitmap: Buffer, offset: number, lengthBytes: number): void {
  setRange(bitmap, Math.ceil(offset / BLOCK_SIZE_BYTES), Math.floor((offset + lengthBytes) / BLOCK_SIZE_BYTES));
}

/**
 * The COW file as it was at T0, when the whole of it was allocated: these blocks are the driver's, and the snapshot has zeros there.
 * A file of that name that is another one is none.
 */
function putCowFile(bitmap: Buffer, path: string, inode: number): void {
  const stats = lstatSync(path, { throwIfNoEntry: false });
  if (stats?.isFile() !== true || stats.ino !== inode) return;
  const fd = openSync(path, 'r');
  try {
    // A last part of a block is none of the store's.
    const storeBytes = Math.floor(stats.size / BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES;
    for (const { logicalBytes, physicalBytes, lengthBytes, flags } of fileExtents(fd, storeBytes)) {
      const isAtAddress = (flags & NO_ADDRESS) === 0;
      if (isAtAddress) putRange(bitmap, physicalBytes, Math.min(lengthBytes, storeBytes - logicalBytes));
    }
  } finally {
    closeSync(fd);
  }
}

function main([node = '', fsType = '', bitmapBytes = '0', cowName, inode]: string[]): void {
  const options = FREE_MOUNT_OPTIONS[fsType] ?? '';
  withPrivateMount({ node, fsType, flags: MS_RDONLY + MS_NOSUID_NODEV_NOEXEC, options }, (at) => {
    const bitmap = Buffer.alloc(Number(bitmapBytes));
    const fd = openSync(at, 'r');
    try {
      for (const { offset, lengthBytes } of freeRanges(fd, fstatSync(fd).dev)) putRange(bitmap, offset, lengthBytes);
    } finally {
      closeSync(fd);
    }
    if (cowName !== undefined) putCowFile(bitmap, join(at, cowName), Number(inode));
    for (let done = 0; done < bitmap.byteLength; )
      done += writeSync(BITMAP_FD, bitmap, done, Math.min(bitmap.byteLength - done, TRANSFER_BYTES_MAX), done);
  });
}

main(process.argv.slice(2));
