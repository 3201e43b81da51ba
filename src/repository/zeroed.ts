/**
 * What became zeros in an update. Until the version counts it keeps its space, so that what it had can be written again on a disk that
 * is full by then; a repository that cannot be made whole for want of room could not be read either.
 */
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { hasBit, spansOf } from './bits.js';
import { CHECKSUM_BYTES, isZeroChecksum } from './checksum.js';
import type { RepositoryFiles } from './files.js';
import { readPage } from './jobs-common.js';
import { blocksInRegion, CHECKSUMS, IMAGE_UPDATING, REGION_BLOCKS } from './layout.js';

export interface Zeroed {
  /** Regions with blocks that changed. */
  chosen: Uint32Array;
  changed: Uint8Array;
}

/** Gives the space back, once the version counts. Cut off here, the zeros keep theirs. */
export function punchZeros(files: RepositoryFiles, { chosen, changed }: Zeroed, sizeBytes: number): void {
  const image = files.open(IMAGE_UPDATING, 'write');
  const checksums = files.open(CHECKSUMS, 'read');
  const page = Buffer.alloc(REGION_BLOCKS * CHECKSUM_BYTES);
  try {
    for (const region of chosen) {
      readPage(checksums, region, page);
      const first = region * REGION_BLOCKS;
      const isZeroed = (block: number): boolean => hasBit(changed, first + block) && isZeroChecksum(page, block);
      for (const { start, end } of spansOf(blocksInRegion(region, sizeBytes), isZeroed)) {
        const from = (first + start) * BLOCK_SIZE_BYTES;
        image.punch(from, Math.min((first + end) * BLOCK_SIZE_BYTES, sizeBytes) - from);
      }
    }
  } finally {
    image.close();
    checksums.close();
  }
}
