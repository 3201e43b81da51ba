/** Jobs on a version as a whole: verify it, write it to a target, read back what was written. */
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { hasBit, setBit, spansOf } from './bits.js';
import { isZeroChecksum, matchesChecksum } from './checksum.js';
import { type ReadableFile, readPadded } from './files.js';
import { blockAt, type JobContext, needed, punchBlocks, type RegionTask, writeBlocks } from './jobs-common.js';
import { blocksInRegion, REGION_BLOCKS, REGION_BYTES } from './layout.js';
import { View, type ViewShape } from './view.js';

function viewOf(shape: ViewShape, { files }: JobContext): View {
  const chain = needed(files.chain, 'chain');
  return new View(shape, {
    image: needed(files.image, 'image'),
    checksums: needed(files.checksums, 'checksums'),
    chain,
  });
}

/** Reads a region of the version; returns its block count. Blocks that are not what their checksums say are reported. */
function readChecked(view: View, { scratch, totals }: JobContext, region: number, damaged?: Set<number>): number {
  const count = blocksInRegion(region, view.shape.sizeBytes);
  view.readChecksums(region, scratch.page);
  view.readData(region, scratch.data);
  for (let block = 0; block < count; block++) {
    if (matchesChecksum(blockAt(scratch.data, block), scratch.page, block)) continue;
    totals.damagedBlocks.push(region * REGION_BLOCKS + block);
    damaged?.add(block);
  }
  return count;
}

/** Compares every block of a version with its checksum. */
export interface VerifyViewSpec {
  kind: 'verify-view';
  view: ViewShape;
}

export function verifyViewJob(spec: VerifyViewSpec, context: JobContext): RegionTask {
  const view = viewOf(spec.view, context);
  return (region) => {
    const count = readChecked(view, context, region);
    context.totals.bytesRead += count * BLOCK_SIZE_BYTES;
  };
}

/** Writes a version to a target: the blocks that differ, or all. Damaged blocks are reported and not written. */
export interface RestoreSpec {
  kind: 'restore';
  view: ViewShape;
  /** Bytes that the target has now; the rest of it counts as zeros. */
  targetBytes: number;
  all: boolean;
  /** Count, and write nothing. */
  dryRun: boolean;
  /** Set for each block that is written. */
  written: Uint8Array;
}

export function restoreJob(spec: RestoreSpec, context: JobContext): RegionTask {
  const { scratch, totals } = context;
  const view = viewOf(spec.view, context);
  const { sizeBytes } = spec.view;
  return (region) => {
    const damaged = new Set<number>();
    const count = readChecked(view, context, region, damaged);
    const offset = region * REGION_BYTES;
    totals.bytesRead += count * BLOCK_SIZE_BYTES;
    scratch.other.fill(0);
    const there = Math.max(0, Math.min(count * BLOCK_SIZE_BYTES, spec.targetBytes - offset, sizeBytes - offset));
    if (!spec.all && there > 0)
      readTarget(needed(context.files.target, 'target'), scratch.other.subarray(0, there), offset);
    const differs = (block: number): boolean =>
      !damaged.has(block) && (spec.all || !blockAt(scratch.data, block).equals(blockAt(scratch.other, block)));
    for (const { start, end } of spansOf(count, differs)) {
      totals.bytesWritten += Math.min(end * BLOCK_SIZE_BYTES, sizeBytes - offset) - start * BLOCK_SIZE_BYTES;
      for (let block = start; block < end; block++) setBit(spec.written, region * REGION_BLOCKS + block);
    }
    if (spec.dryRun) return;
    const target = needed(context.files.target, 'target');
    for (const span of spansOf(count, (block) => differs(block) && !isZeroChecksum(scratch.page, block)))
      writeBlocks(target, scratch.data, region, span, sizeBytes);
    for (const span of spansOf(count, (block) => differs(block) && isZeroChecksum(scratch.page, block)))
      punchBlocks(target, region, span, sizeBytes);
  };
}

function readTarget(target: ReadableFile, bytes: Uint8Array, offset: number): void {
  try {
    readPadded(target, bytes, offset);
  } catch (error) {
    throw new CowbirdError(
      codeOf(errnoOfError(error)),
      `The target cannot be read near ${offset} (${messageOf(error)}): with --all it is written without being read first`,
      { outcome: 'partial', cause: error },
    );
  }
}

/** Reads back what a restore wrote, and compares it with the version's checksums. */
export interface CheckSpec {
  kind: 'check';
  view: ViewShape;
  written: Uint8Array;
}

export function checkJob(spec: CheckSpec, context: JobContext): RegionTask {
  const { scratch, totals } = context;
  const view = viewOf(spec.view, context);
  const target = needed(context.files.target, 'target');
  return (region) => {
    const first = region * REGION_BLOCKS;
    const offset = region * REGION_BYTES;
    const spans = spansOf(REGION_BLOCKS, (block) => hasBit(spec.written, first + block));
    if (spans.length === 0) return;
    view.readChecksums(region, scratch.page);
    scratch.data.fill(0);
    for (const { start, end } of spans) {
      const from = start * BLOCK_SIZE_BYTES;
      const to = Math.min(end * BLOCK_SIZE_BYTES, spec.view.sizeBytes - offset);
      totals.bytesRead += readPadded(target, scratch.data.subarray(from, to), offset + from);
      for (let block = start; block < end; block++)
        if (!matchesChecksum(blockAt(scratch.data, block), scratch.page, block))
          totals.damagedBlocks.push(first + block);
    }
  };
}
