/** Jobs on the repository alone: save the old contents to a delta, verify image and deltas. */
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { encodeEntries } from '../cow/index-codec.js';
import { assert } from '../sys/errors.js';
import { hasBit, spansOf } from './bits.js';
import { CHECKSUM_BYTES, isZero, isZeroChecksum, matchesChecksum } from './checksum.js';
import { checksumOffset, type DeltaShape, sliceOffset } from './delta.js';
import { readMarked } from './files.js';
import { blockAt, type JobContext, needed, type RegionTask, readMarkedPage, readPage } from './jobs-common.js';
import { deniedBlocks, TOLD_GAP_BLOCKS } from './jobs-source.js';
import { blocksInRegion, REGION_BLOCKS, REGION_BYTES } from './layout.js';

/** Saves what the image has in the changed blocks, with the checksums that it was recorded with. */
export interface SaveSpec {
  kind: 'save';
  /** The delta's shape; its size is that of the version in bytes. */
  shape: DeltaShape;
  changed: Uint8Array;
  /** By region: the place of its first saved block, and how many there are. */
  places: Float64Array;
  saves: Uint16Array;
  /** Look at blocks that ought to be zeros too: the image was changed by others. */
  checkImage: boolean;
}

export function saveJob(spec: SaveSpec, context: JobContext): RegionTask {
  const { scratch, totals } = context;
  const image = needed(context.files.image, 'image');
  const checksums = needed(context.files.checksums, 'checksums');
  const delta = needed(context.files.delta, 'delta');
  const packedChecksums = Buffer.alloc(REGION_BLOCKS * CHECKSUM_BYTES);
  return (region) => {
    const first = region * REGION_BLOCKS;
    const count = blocksInRegion(region, spec.shape.sizeBytes);
    const isChanged = (block: number): boolean => hasBit(spec.changed, first + block);
    if (spansOf(count, isChanged).length === 0) return;
    const { page } = scratch;
    readPage(checksums, region, page);
    const denied = spec.checkImage ? undefined : deniedBlocks(context, region, count, isChanged);
    const isHole = (block: number): boolean => isZeroChecksum(page, block) && denied?.has(block) !== true;
    const isRead = (block: number): boolean => isChanged(block) && (spec.checkImage || !isHole(block));
    for (const { start, end } of spansOf(count, isRead, TOLD_GAP_BLOCKS))
      readMarked(
        image,
        scratch.data.subarray(start * BLOCK_SIZE_BYTES, end * BLOCK_SIZE_BYTES),
        first * BLOCK_SIZE_BYTES + start * BLOCK_SIZE_BYTES,
      );
    const entries = new Uint32Array(REGION_BLOCKS);
    const place = spec.places[region] ?? 0;
    let saved = 0;
    for (let block = 0; block < count; block++) {
      if (!isChanged(block)) continue;
      const contents = blockAt(scratch.data, block);
      if (isHole(block) && (!spec.checkImage || isZero(contents))) {
        entries[block] = spec.shape.zeroPlace;
        continue;
      }
      if (!matchesChecksum(contents, page, block)) totals.damagedBlocks.push(first + block);
      contents.copy(scratch.other, saved * BLOCK_SIZE_BYTES);
      page.copy(packedChecksums, saved * CHECKSUM_BYTES, block * CHECKSUM_BYTES, (block + 1) * CHECKSUM_BYTES);
      entries[block] = place + saved;
      saved++;
    }
    // More would run into the next region's places.
    assert(saved === spec.saves[region], `region ${region} saves ${saved} blocks, as counted before`);
    if (saved > 0) {
      delta.pwrite(scratch.other.subarray(0, saved * BLOCK_SIZE_BYTES), place * BLOCK_SIZE_BYTES);
      delta.pwrite(packedChecksums.subarray(0, saved * CHECKSUM_BYTES), checksumOffset(spec.shape, place));
      totals.bytesWritten += saved * BLOCK_SIZE_BYTES;
    }
    delta.pwrite(encodeEntries(entries, scratch.entries), sliceOffset(spec.shape, region));
  };
}

/** Compares the image with its checksums. */
export interface VerifyImageSpec {
  kind: 'verify-image';
  sizeBytes: number;
}

export function verifyImageJob(spec: VerifyImageSpec, context: JobContext): RegionTask {
  const { scratch, totals } = context;
  const image = needed(context.files.image, 'image');
  const checksums = needed(context.files.checksums, 'checksums');
  return (region) => {
    const count = blocksInRegion(region, spec.sizeBytes);
    const offset = region * REGION_BYTES;
    readMarkedPage(checksums, region, scratch.page);
    const end = offset + count * BLOCK_SIZE_BYTES;
    if (isZero(scratch.page) && image.nextData(offset, end) >= end) return;
    totals.bytesRead += readMarked(image, scratch.data.subarray(0, count * BLOCK_SIZE_BYTES), offset);
    for (let block = 0; block < REGION_BLOCKS; block++) {
      // Checksums of blocks that the volume does not have must be zeros.
      const isRight =
        block < count
          ? matchesChecksum(blockAt(scratch.data, block), scratch.page, block)
          : isZeroChecksum(scratch.page, block);
      if (!isRight) totals.damagedBlocks.push(region * REGION_BLOCKS + block);
    }
  };
}

/** Compares the saved blocks of a delta with their checksums, 256 at a time; damaged are numbers of saved blocks from 0. */
export interface VerifyDeltaSpec {
  kind: 'verify-delta';
  shape: DeltaShape;
  savedBlocks: number;
}

export function verifyDeltaJob(spec: VerifyDeltaSpec, context: JobContext): RegionTask {
  const { scratch, totals } = context;
  const delta = needed(context.files.chain?.[0], 'delta');
  return (group) => {
    const first = group * REGION_BLOCKS;
    const count = Math.min(REGION_BLOCKS, spec.savedBlocks - first);
    const place = spec.shape.zeroPlace + 1 + first;
    totals.bytesRead += readMarked(delta, scratch.data.subarray(0, count * BLOCK_SIZE_BYTES), place * BLOCK_SIZE_BYTES);
    readMarked(delta, scratch.page.subarray(0, count * CHECKSUM_BYTES), checksumOffset(spec.shape, place));
    for (let block = 0; block < count; block++)
      if (!matchesChecksum(blockAt(scratch.data, block), scratch.page, block)) totals.damagedBlocks.push(first + block);
  };
}
