/** Jobs that read a source: copy it whole, compare it with the checksums, apply what differs. */
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { hasBit, setBit, setRange, spansOf } from './bits.js';
import { CHECKSUM_BYTES, isZero, isZeroChecksum, putChecksum, sameChecksum } from './checksum.js';
import { isMediumError, readMarked } from './files.js';
import {
  blockAt,
  bytesOfSpan,
  checksumsOf,
  checksumsWhere,
  type JobContext,
  needed,
  punchBlocks,
  type RegionTask,
  readPage,
  writeBlocks,
  writePage,
} from './jobs-common.js';
import { blocksInRegion, bytesInRegion, REGION_BLOCKS, REGION_BYTES } from './layout.js';

/** Runs of blocks closer than this are read in one go: 64 KiB more cost less than another request. */
export const GAP_BLOCKS = 16;
/** The same where the reads are told beforehand, so that many are under way at once: then another request costs less than 16 KiB. */
export const TOLD_GAP_BLOCKS = 4;
export interface SourceSpec {
  sizeBytes: number;
  /** Blocks that cannot be read are reported, instead of ending the job. */
  skipBadBlocks: boolean;
  /** One bit a block; the others read as zeros and are not read. Undefined: all are used. */
  used: Uint8Array | undefined;
}

/** Writes the source to an empty image. */
export interface CopySpec extends SourceSpec {
  kind: 'copy';
}

export function copyJob(spec: CopySpec, context: JobContext): RegionTask {
  const { scratch, totals } = context;
  const image = needed(context.files.image, 'image');
  const checksums = needed(context.files.checksums, 'checksums');
  return (region) => {
    const count = blocksInRegion(region, spec.sizeBytes);
    if (!readRegion(spec, context, region, [{ start: 0, end: count }], () => true)) return;
    if (isZero(scratch.data.subarray(0, count * BLOCK_SIZE_BYTES))) return;
    checksumsOf(scratch.data, count, scratch.page);
    for (const span of spansOf(count, (block) => !isZeroChecksum(scratch.page, block)))
      totals.bytesWritten += writeBlocks(image, scratch.data, region, span, spec.sizeBytes);
    writePage(checksums, region, scratch.page, spec.sizeBytes);
  };
}

const NONE: ReadonlySet<number> = new Set();

/**
 * How much is still read of an image whose file system does not tell its holes, and has been zeros as it should: then blocks are looked at
 * that are to be overwritten, and no others.
 */
export interface Patience {
  leftBytes: number;
}

const PATIENCE_BYTES = 67_108_864;

export function newPatience(): Patience {
  return { leftBytes: PATIENCE_BYTES };
}

/** Finds the blocks in which the source differs from the newest version. */
export interface CompareSpec extends SourceSpec {
  kind: 'compare';
  /** Of the newest version in bytes. */
  oldSizeBytes: number;
  /** Blocks that may differ, where that is known for sure; the others are not read. Undefined: all may. */
  candidates: Uint8Array | undefined;
  /** The source has nothing but the candidates: no other block of the image can be healed from it. */
  holdsOnlyCandidates: boolean;
  /** Set: differs from the version, goes into its delta and into the image. */
  changed: Uint8Array;
  /** Set: the image is not what its version was; the source is. Undefined: the image is trusted, and not read. */
  heal: Uint8Array | undefined;
  /** By region: how many of the changed blocks have contents to be saved. */
  saves: Uint16Array;
}

export function compareJob(spec: CompareSpec, context: JobContext): RegionTask {
  const { scratch, totals } = context;
  const checksums = needed(context.files.checksums, 'checksums');
  const imagePage = Buffer.alloc(REGION_BLOCKS * CHECKSUM_BYTES);
  const patience = newPatience();
  return (region) => {
    const count = blocksInRegion(region, spec.sizeBytes);
    const oldCount = blocksInRegion(region, spec.oldSizeBytes);
    const { page: oldPage, otherPage: newPage } = scratch;
    readPage(checksums, region, oldPage);
    readNewPage(spec, context, region, count);
    const isLooked = (block: number): boolean =>
      isCandidate(spec, region, block) && (patience.leftBytes > 0 || !sameChecksum(oldPage, block, newPage, block));
    const denied = spec.heal === undefined ? deniedBlocks(context, region, oldCount, isLooked, patience) : NONE;
    if (spec.heal === undefined && denied.size === 0 && newPage.equals(oldPage)) return;
    if (spec.heal !== undefined) readImagePage(context, region, oldCount, imagePage);
    const heldPage = spec.heal === undefined ? oldPage : imagePage;
    let saves = 0;
    for (let block = 0; block < count; block++) {
      // Was not read, and so is as it was; the image is looked at only to be healed.
      if (spec.heal === undefined && !isCandidate(spec, region, block)) continue;
      const isSame = sameChecksum(oldPage, block, newPage, block);
      const isSound = sameChecksum(oldPage, block, heldPage, block);
      const isDenied = denied.has(block);
      if ((!isSound || isDenied) && block < oldCount) totals.damagedBlocks.push(region * REGION_BLOCKS + block);
      if (isSame && isSound && !isDenied) continue;
      // Nobody has what it was.
      if (isSame && spec.holdsOnlyCandidates && !isCandidate(spec, region, block)) continue;
      const isHole = isZeroChecksum(heldPage, block) && !isDenied;
      if (isHole && !isZeroChecksum(newPage, block)) totals.growthBlocks++;
      if (isSame && spec.heal !== undefined) setBit(spec.heal, region * REGION_BLOCKS + block);
      else setBit(spec.changed, region * REGION_BLOCKS + block);
      if ((!isSame || isDenied) && block < oldCount && !(isHole && isZeroChecksum(oldPage, block))) saves++;
    }
    spec.saves[region] = saves;
  };
}

/**
 * Of the blocks that are `looked` at, those that have contents in the image though their checksum, in `scratch.page`, says that they are
 * zeros: the checksum has been lost. They are written anew, and go into history as what they are, which is damage, and never as the zeros
 * that they are not. Uses `scratch.other`.
 */
export function deniedBlocks(
  { files, scratch }: JobContext,
  region: number,
  count: number,
  isLooked: (block: number) => boolean,
  patience = newPatience(),
): ReadonlySet<number> {
  const image = needed(files.image, 'image');
  const denied = new Set<number>();
  const isAsked = (block: number): boolean => isZeroChecksum(scratch.page, block) && isLooked(block);
  for (const { start, end } of spansOf(count, isAsked)) {
    const offset = region * REGION_BYTES + start * BLOCK_SIZE_BYTES;
    const lengthBytes = (end - start) * BLOCK_SIZE_BYTES;
    // Nearly always a hole, which costs one call.
    if (image.nextData(offset, offset + lengthBytes) >= offset + lengthBytes) continue;
    const bytes = scratch.other.subarray(0, lengthBytes);
    readMarked(image, bytes, offset);
    const before = denied.size;
    for (let block = start; block < end; block++) if (!isZero(blockAt(bytes, block - start))) denied.add(block);
    if (denied.size === before) patience.leftBytes -= lengthBytes;
  }
  return denied;
}

/** The checksums of what the source has: `otherPage`. Where it is not read or cannot be, it stays what `page` says. */
function readNewPage(spec: CompareSpec, context: JobContext, region: number, count: number): void {
  const { page: oldPage, otherPage: newPage, data } = context.scratch;
  const isRead = (block: number): boolean => isCandidate(spec, region, block);
  const { badBlocks } = context.totals;
  const bad = badBlocks.length;
  const spans = spansOf(count, isRead, TOLD_GAP_BLOCKS);
  oldPage.copy(newPage);
  newPage.fill(0, count * CHECKSUM_BYTES);
  if (readRegion(spec, context, region, spans, isRead)) checksumsWhere(data, count, newPage, isRead);
  else for (let block = 0; block < count; block++) if (isRead(block)) putZeroChecksum(newPage, block);
  for (const block of badBlocks.slice(bad)) {
    const at = (block % REGION_BLOCKS) * CHECKSUM_BYTES;
    oldPage.copy(newPage, at, at, at + CHECKSUM_BYTES);
  }
}

function isCandidate({ candidates }: CompareSpec, region: number, block: number): boolean {
  return candidates === undefined || hasBit(candidates, region * REGION_BLOCKS + block);
}

function putZeroChecksum(page: Buffer, block: number): void {
  page.fill(0, block * CHECKSUM_BYTES, (block + 1) * CHECKSUM_BYTES);
}

/** The checksums of what the image has now. */
export function readImagePage({ files, scratch }: JobContext, region: number, count: number, page: Buffer): void {
  const image = needed(files.image, 'image');
  page.fill(0);
  const offset = region * REGION_BYTES;
  const lengthBytes = count * BLOCK_SIZE_BYTES;
  if (lengthBytes === 0 || image.nextData(offset, offset + lengthBytes) >= offset + lengthBytes) return;
  readMarked(image, scratch.other.subarray(0, lengthBytes), offset);
  checksumsOf(scratch.other, count, page);
}

/** Brings the image up to the source in the blocks that are set. Their old contents are safe by then. */
export interface ApplySpec extends SourceSpec {
  kind: 'apply';
  changed: Uint8Array;
  heal: Uint8Array | undefined;
  /** What was there may have to be written again: set for what became zeros and has kept its space. Undefined: it has not to. */
  zeroed: Uint8Array | undefined;
}

export function applyJob(spec: ApplySpec, context: JobContext): RegionTask {
  const { scratch, totals } = context;
  const image = needed(context.files.image, 'image');
  const checksums = needed(context.files.checksums, 'checksums');
  const before = Buffer.alloc(CHECKSUM_BYTES);
  return (region) => {
    const count = blocksInRegion(region, spec.sizeBytes);
    const first = region * REGION_BLOCKS;
    const isHealed = (block: number): boolean => spec.heal !== undefined && hasBit(spec.heal, first + block);
    const isChosen = (block: number): boolean => hasBit(spec.changed, first + block) || isHealed(block);
    const spans = spansOf(count, isChosen, TOLD_GAP_BLOCKS);
    if (spans.length === 0) return;
    const bad = totals.badBlocks.length;
    if (!readRegion(spec, context, region, spans, isChosen)) scratch.data.fill(0);
    const unread = new Set(totals.badBlocks.slice(bad).map((block) => block - first));
    const { page } = scratch;
    readPage(checksums, region, page);
    const isWritten = (block: number): boolean => isChosen(block) && !unread.has(block);
    for (let block = 0; block < count; block++) {
      if (!isWritten(block)) continue;
      page.copy(before, 0, block * CHECKSUM_BYTES);
      putChecksum(blockAt(scratch.data, block), page, block * CHECKSUM_BYTES);
      // This block is in no delta: only what it has to be may be written over it.
      if (isHealed(block) && !sameChecksum(before, 0, page, block))
        throw sourceChanges((first + block) * BLOCK_SIZE_BYTES);
    }
    for (const span of spansOf(count, (block) => isWritten(block) && !isZeroChecksum(page, block)))
      totals.bytesWritten += writeBlocks(image, scratch.data, region, span, spec.sizeBytes);
    for (const span of spansOf(count, (block) => isWritten(block) && isZeroChecksum(page, block))) {
      if (spec.zeroed === undefined) punchBlocks(image, region, span, spec.sizeBytes);
      else {
        const { offset, lengthBytes } = bytesOfSpan(region, span, spec.sizeBytes);
        image.zero(offset, lengthBytes);
        setRange(spec.zeroed, first + span.start, first + span.end);
      }
    }
    writePage(checksums, region, page, spec.sizeBytes);
  };
}

function sourceChanges(offset: number): CowbirdError {
  return new CowbirdError(
    'EBUSY',
    `The source changed at ${offset} while it was read: stop whoever writes to it, and run this again`,
    { outcome: 'failed' },
  );
}

/**
 * Reads spans of a region of the source to their places in `scratch.data`, zeros beyond its end; what lies between them there is
 * of another region. Of the blocks in a span those count that are `wanted`: another one, read because it lies between them, may be one
 * that cannot be read. Returns false, with nothing read, where the whole region is a hole or unused.
 */
export function readRegion(
  spec: SourceSpec,
  { files, scratch, totals }: JobContext,
  region: number,
  spans: readonly { start: number; end: number }[],
  wanted: (block: number) => boolean,
): boolean {
  const source = needed(files.source, 'source');
  const { used } = spec;
  const offset = region * REGION_BYTES;
  const lengthBytes = bytesInRegion(region, spec.sizeBytes);
  if (source.nextData(offset, offset + lengthBytes) >= offset + lengthBytes) return false;
  const isUsed = (block: number): boolean => used === undefined || hasBit(used, region * REGION_BLOCKS + block);
  const reads = spans.flatMap((span) => {
    if (used === undefined) return [span];
    const within = spansOf(span.end - span.start, (at) => isUsed(span.start + at), GAP_BLOCKS);
    return within.map(({ start, end }) => ({ start: span.start + start, end: span.start + end }));
  });
  if (reads.length === 0) return false;
  const isWhole = reads.length === 1 && (reads[0]?.end ?? 0) - (reads[0]?.start ?? 0) === REGION_BLOCKS;
  if (!isWhole || lengthBytes < REGION_BYTES) fillSpans(scratch.data, spans);
  const counts = (block: number): boolean => isUsed(block) && wanted(block);
  for (const { start, end } of reads) {
    const from = start * BLOCK_SIZE_BYTES;
    const to = Math.min(end * BLOCK_SIZE_BYTES, lengthBytes);
    readSpan(spec, source, scratch.data.subarray(0, end * BLOCK_SIZE_BYTES), { offset, from, to, counts }, totals);
    totals.bytesRead += to - from;
  }
  if (used !== undefined) {
    // Read only because it lies between blocks that are used.
    for (const { start, end } of reads)
      for (let block = start; block < end; block++) if (!isUsed(block)) blockAt(scratch.data, block).fill(0);
  }
  return true;
}

function fillSpans(data: Buffer, spans: readonly { start: number; end: number }[]): void {
  for (const { start, end } of spans) data.fill(0, start * BLOCK_SIZE_BYTES, end * BLOCK_SIZE_BYTES);
}

function readSpan(
  spec: SourceSpec,
  source: { pread(bytes: Uint8Array, offset: number): number },
  data: Buffer,
  { offset, from, to, counts }: { offset: number; from: number; to: number; counts: (block: number) => boolean },
  totals: { badBlocks: number[] },
): void {
  try {
    const count = source.pread(data.subarray(from), offset + from);
    if (count < to - from) throw tooShort(offset + from + count);
    data.fill(0, to);
  } catch (error) {
    if (!isMediumError(error)) throw error;
    const isOneBlock = to - from <= BLOCK_SIZE_BYTES;
    if (isOneBlock && !spec.skipBadBlocks) throw unreadable(offset + from, error);
    if (isOneBlock) {
      data.fill(0, from, to);
      totals.badBlocks.push((offset + from) / BLOCK_SIZE_BYTES);
      return;
    }
    // One bad block must not take its neighbours with it: each on its own.
    for (let at = from; at < to; at += BLOCK_SIZE_BYTES) {
      const piece = data.subarray(0, at + BLOCK_SIZE_BYTES);
      if (counts(at / BLOCK_SIZE_BYTES))
        readSpan(spec, source, piece, { offset, from: at, to: Math.min(at + BLOCK_SIZE_BYTES, to), counts }, totals);
      else piece.fill(0, at);
    }
  }
}

function tooShort(offset: number): CowbirdError {
  return new CowbirdError('EIO', `The source ends at ${offset}: it became shorter while it was read`, {
    outcome: 'failed',
  });
}

function unreadable(offset: number, cause: unknown): CowbirdError {
  return new CowbirdError(
    codeOf(errnoOfError(cause)),
    `The source cannot be read at ${offset} (${messageOf(cause)}), so there is no new version; --skip-bad-blocks makes one without such blocks, and records them`,
    { outcome: 'failed', cause },
  );
}
