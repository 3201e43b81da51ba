/** What differs between two versions, by their checksums: nothing is read but what may differ. */
import { BLOCK_SIZE_BYTES, blockCount } from '../cow/geometry.js';
import { CHECKSUM_BYTES, sameChecksum } from './checksum.js';
import { regionsOf, shapeOf } from './delta.js';
import { blocksInRegion, REGION_BLOCKS } from './layout.js';
import type { SkippedRange, VersionRecord } from './manifest.js';
import type { Repository } from './repository.js';
import { rangesOf } from './update.js';
import { openVersion } from './version.js';
import { View } from './view.js';

/**
 * Byte ranges in which two versions differ, ascending, in whole blocks. Where one is larger, all that the other does not
 * have is part of it.
 *
 * @throws {CowbirdError} EUCLEAN when a delta between them is damaged.
 */
export function changesBetween(repository: Repository, a: VersionRecord, b: VersionRecord): SkippedRange[] {
  const [older, newer] = a.number <= b.number ? [a, b] : [b, a];
  const manifest = repository.requireManifest();
  const left = openVersion(repository.files, manifest, older);
  const right = openVersion(repository.files, manifest, newer);
  try {
    const views = [new View(left.view, left.files), new View(right.view, right.files)] as const;
    const pages = [Buffer.alloc(REGION_BLOCKS * CHECKSUM_BYTES), Buffer.alloc(REGION_BLOCKS * CHECKSUM_BYTES)] as const;
    const between = left.deltas.filter(({ version }) => version < newer.number);
    const regions = new Set(between.flatMap((delta) => [...regionsOf(delta.file, shapeOf(delta))]));
    const blocks: number[] = [];
    for (const region of [...regions].sort((x, y) => x - y)) {
      views[0].readChecksums(region, pages[0]);
      views[1].readChecksums(region, pages[1]);
      for (let block = 0; block < blocksInRegion(region, older.sizeBytes); block++)
        if (!sameChecksum(pages[0], block, pages[1], block)) blocks.push(region * REGION_BLOCKS + block);
    }
    return withGrowth(rangesOf(blocks, newer.sizeBytes), older.sizeBytes, newer.sizeBytes);
  } finally {
    left.close();
    right.close();
  }
}

function withGrowth(ranges: SkippedRange[], oldBytes: number, newBytes: number): SkippedRange[] {
  const offset = blockCount(oldBytes) * BLOCK_SIZE_BYTES;
  if (offset >= newBytes) return ranges;
  const last = ranges.at(-1);
  if (last !== undefined && last.offset + last.lengthBytes === offset) last.lengthBytes += newBytes - offset;
  else ranges.push({ offset, lengthBytes: newBytes - offset });
  return ranges;
}
