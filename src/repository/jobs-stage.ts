/** The job that reads a source which goes on being written, to a file aside, until that holds one state. */

import { clearBit, hasBit, setBit, spansOf } from './bits.js';
import { CHECKSUM_BYTES, isZeroChecksum, sameChecksum } from './checksum.js';
import {
  checksumsWhere,
  type JobContext,
  needed,
  punchBlocks,
  type RegionTask,
  readPage,
  writeBlocks,
} from './jobs-common.js';
import { deniedBlocks, GAP_BLOCKS, newPatience, readImagePage, readRegion, type SourceSpec } from './jobs-source.js';
import { blocksInRegion, REGION_BLOCKS } from './layout.js';

/** Reads blocks of the source, and puts aside those that are not as in the newest version, or were not in an earlier pass. */
export interface StageSpec extends SourceSpec {
  kind: 'stage';
  /** Of the newest version in bytes. */
  oldSizeBytes: number;
  /** To be read; undefined: all. */
  blocks: Uint8Array | undefined;
  /** The image may not be what its version was: what it has differently is put aside, too. */
  checkImage: boolean;
  /** Set: the file aside has it. Clear: it is as in the newest version. */
  staged: Uint8Array;
}

export function stageJob(spec: StageSpec, context: JobContext): RegionTask {
  const { scratch, totals, files } = context;
  const checksums = needed(files.checksums, 'checksums');
  const target = needed(files.target, 'target');
  const { staged, blocks, sizeBytes } = spec;
  const imagePage = Buffer.alloc(REGION_BLOCKS * CHECKSUM_BYTES);
  const patience = newPatience();
  return (region) => {
    const count = blocksInRegion(region, sizeBytes);
    const first = region * REGION_BLOCKS;
    const isRead = (block: number): boolean => blocks === undefined || hasBit(blocks, first + block);
    const spans = spansOf(count, isRead, GAP_BLOCKS);
    if (spans.length === 0) return;
    const { page: oldPage, otherPage: newPage } = scratch;
    const bad = totals.badBlocks.length;
    if (!readRegion(spec, context, region, spans, isRead)) scratch.data.fill(0);
    const unread = new Set(totals.badBlocks.slice(bad).map((block) => block - first));
    checksumsWhere(scratch.data, count, newPage, isRead);
    readPage(checksums, region, oldPage);
    if (spec.checkImage) readImagePage(context, region, blocksInRegion(region, spec.oldSizeBytes), imagePage);
    const oldCount = blocksInRegion(region, spec.oldSizeBytes);
    const isLooked = (block: number): boolean =>
      isRead(block) && (patience.leftBytes > 0 || !sameChecksum(oldPage, block, newPage, block));
    const denied = spec.checkImage
      ? undefined
      : deniedBlocks(context, region, Math.min(count, oldCount), isLooked, patience);
    const isSound = (block: number): boolean =>
      spec.checkImage ? sameChecksum(oldPage, block, imagePage, block) : denied?.has(block) !== true;
    const written = new Uint8Array(REGION_BLOCKS);
    for (let block = 0; block < count; block++) {
      if (!isRead(block)) continue;
      const isStaged = hasBit(staged, first + block);
      // What an earlier pass has read there is of another moment.
      if (unread.has(block)) clearBit(staged, first + block);
      else if (isStaged || !sameChecksum(oldPage, block, newPage, block) || !isSound(block)) {
        setBit(staged, first + block);
        written[block] = 1;
      }
    }
    const isData = (block: number): boolean => written[block] === 1 && !isZeroChecksum(newPage, block);
    for (const span of spansOf(count, isData)) writeBlocks(target, scratch.data, region, span, sizeBytes);
    for (const span of spansOf(count, (block) => written[block] === 1 && !isData(block)))
      punchBlocks(target, region, span, sizeBytes);
  };
}
