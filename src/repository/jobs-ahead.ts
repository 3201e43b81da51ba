/**
 * What a job will read of a region that is not its turn yet, told to the kernel. Where few blocks of each region are wanted, a
 * thread would wait for one short read after another; told beforehand they are all under way at once. Advice only: what is read
 * is the same without it.
 */
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { hasBit, spansOf } from './bits.js';
import type { ReadableFile } from './files.js';
import type { JobSpec } from './jobs.js';
import type { JobFiles, RegionTask } from './jobs-common.js';
import { TOLD_GAP_BLOCKS } from './jobs-source.js';
import { blocksInRegion, REGION_BLOCKS } from './layout.js';

/** How many regions before its turn. */
const AHEAD_REGIONS = 32;

/** Undefined for jobs that read whole regions, which need no advice. */
export function aheadOf(spec: JobSpec, files: JobFiles): RegionTask | undefined {
  switch (spec.kind) {
    case 'compare':
      return spansAhead(files.source, spec.candidates, spec.sizeBytes, spec.used);
    case 'save':
      return spansAhead(files.image, spec.changed, spec.shape.sizeBytes);
    case 'apply':
      return spansAhead(files.source, spec.changed, spec.sizeBytes, spec.used);
    default:
      return undefined;
  }
}

function spansAhead(
  file: ReadableFile | undefined,
  wanted: Uint8Array | undefined,
  sizeBytes: number,
  used?: Uint8Array,
): RegionTask | undefined {
  if (wanted === undefined || file?.prefetch === undefined) return undefined;
  return (region) => {
    const first = region * REGION_BLOCKS;
    const isWanted = (block: number): boolean =>
      hasBit(wanted, first + block) && (used === undefined || hasBit(used, first + block));
    for (const { start, end } of spansOf(blocksInRegion(region, sizeBytes), isWanted, TOLD_GAP_BLOCKS))
      file.prefetch?.((first + start) * BLOCK_SIZE_BYTES, (end - start) * BLOCK_SIZE_BYTES);
  };
}

/** At the turn of an index of `count`: whose turn comes next without having been told. */
export function* indicesToTell(index: number, count: number): Generator<number> {
  for (let next = index === 0 ? 0 : index + AHEAD_REGIONS; next <= index + AHEAD_REGIONS && next < count; next++)
    yield next;
}
