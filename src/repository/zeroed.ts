/**
 * What became zeros in an update. Until the version counts it keeps its space, so that what it had can be written again on a disk that
 * is full by then; a repository that cannot be made whole for want of room could not be read either.
 */
import { hasBit, regionsWith, spansOf } from './bits.js';
import type { RepositoryFiles } from './files.js';
import { punchBlocks } from './jobs-common.js';
import { blocksInRegion, IMAGE_UPDATING, REGION_BLOCKS, regionCount } from './layout.js';

/** Gives the space of these blocks back, once the version counts. Cut off here, the zeros keep theirs. */
export function punchZeros(files: RepositoryFiles, zeroed: Uint8Array, sizeBytes: number): void {
  const regions = regionsWith(regionCount(sizeBytes), zeroed);
  if (regions.length === 0) return;
  const image = files.open(IMAGE_UPDATING, 'write');
  try {
    for (const region of regions) {
      const isZeroed = (block: number): boolean => hasBit(zeroed, region * REGION_BLOCKS + block);
      for (const span of spansOf(blocksInRegion(region, sizeBytes), isZeroed))
        punchBlocks(image, region, span, sizeBytes);
    }
  } finally {
    image.close();
  }
}
