/** What the jobs of jobs.ts share: their files, buffers and totals. */
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { assert, CowbirdError, messageOf } from '../sys/errors.js';
import { allocatePages } from '../sys/page-file.js';
import type { Span } from './bits.js';
import { CHECKSUM_BYTES, putChecksum } from './checksum.js';
import { isMediumError, type ReadableFile, readMarked, readPadded, type WritableFile } from './files.js';
import { blocksInRegion, REGION_BLOCKS, REGION_BYTES } from './layout.js';

/** The files of a job, each where the job has use for it. */
export interface JobFiles {
  source?: ReadableFile;
  image?: WritableFile;
  checksums?: WritableFile;
  delta?: WritableFile;
  target?: WritableFile;
  /** Of a version, from its own delta towards the image. */
  chain?: readonly ReadableFile[];
}

/** Made anew for each job; one a thread, added up at the end. */
export interface JobTotals {
  /** Of the source, or of what is verified. */
  bytesRead: number;
  bytesWritten: number;
  /** Blocks that will take new space in the image. */
  growthBlocks: number;
  /** Blocks of the source that could not be read. */
  badBlocks: number[];
  /** Blocks whose contents are not what their checksum says. */
  damagedBlocks: number[];
}

export function emptyTotals(): JobTotals {
  return { bytesRead: 0, bytesWritten: 0, growthBlocks: 0, badBlocks: [], damagedBlocks: [] };
}

/** Memory of one thread, used by one region after another. */
export interface Scratch {
  readonly data: Buffer;
  readonly other: Buffer;
  /** Checksums of a region. */
  readonly page: Buffer;
  readonly otherPage: Buffer;
  readonly entries: Buffer;
}

export function makeScratch(): Scratch {
  return {
    data: allocatePages(REGION_BYTES),
    other: allocatePages(REGION_BYTES),
    page: Buffer.alloc(REGION_BLOCKS * CHECKSUM_BYTES),
    otherPage: Buffer.alloc(REGION_BLOCKS * CHECKSUM_BYTES),
    entries: Buffer.alloc(REGION_BLOCKS * 8),
  };
}

/** Does one region. */
export type RegionTask = (region: number) => void;

export interface JobContext {
  readonly files: JobFiles;
  readonly scratch: Scratch;
  readonly totals: JobTotals;
}

/** A file that the job was to be given. */
export function needed<T>(file: T | undefined, role: string): T {
  assert(file !== undefined, `the job has its ${role}`);
  return file;
}

export function blockAt(data: Buffer, block: number): Buffer {
  return data.subarray(block * BLOCK_SIZE_BYTES, (block + 1) * BLOCK_SIZE_BYTES);
}

/**
 * Reads the checksums of a region; what is not there is zeros.
 *
 * @throws {CowbirdError} EIO where they cannot be read: no new version can be told from the one before.
 */
export function readPage(checksums: ReadableFile, region: number, page: Buffer): void {
  try {
    readPadded(checksums, page, region * REGION_BLOCKS * CHECKSUM_BYTES);
  } catch (error) {
    if (!isMediumError(error)) throw error;
    throw new CowbirdError(
      'EIO',
      `The repository's disk does not give back the checksums of the MiB at ${region * REGION_BYTES} (${messageOf(error)}): no version can be made here any more. \`cowbird verify\` tells what can still be restored; begin another repository on another disk`,
      { outcome: 'failed', cause: error },
    );
  }
}

/** The same for who only reads: blocks whose checksums cannot be read count as damaged. */
export function readMarkedPage(checksums: ReadableFile, region: number, page: Buffer): void {
  readMarked(checksums, page, region * REGION_BLOCKS * CHECKSUM_BYTES);
}

/** Writes the checksums of a region, as far as the volume has blocks. */
export function writePage(checksums: WritableFile, region: number, page: Buffer, sizeBytes: number): void {
  const bytes = page.subarray(0, blocksInRegion(region, sizeBytes) * CHECKSUM_BYTES);
  checksums.pwrite(bytes, region * REGION_BLOCKS * CHECKSUM_BYTES);
}

/** Computes the checksums of the first `count` blocks of `data`; the rest of `page` becomes zeros. */
export function checksumsOf(data: Buffer, count: number, page: Buffer): void {
  checksumsWhere(data, count, page, () => true);
  page.fill(0, count * CHECKSUM_BYTES);
}

/** Computes those of the wanted ones of the first `count` blocks. Hashing is most of the work where few of a region are wanted. */
export function checksumsWhere(data: Buffer, count: number, page: Buffer, isWanted: (block: number) => boolean): void {
  for (let block = 0; block < count; block++)
    if (isWanted(block)) putChecksum(blockAt(data, block), page, block * CHECKSUM_BYTES);
}

/** Writes blocks `[start, end)` of a region, cut where the volume ends. Returns the bytes written. */
export function writeBlocks(file: WritableFile, data: Buffer, region: number, span: Span, sizeBytes: number): number {
  const { offset, lengthBytes } = bytesOfSpan(region, span, sizeBytes);
  const from = span.start * BLOCK_SIZE_BYTES;
  file.pwrite(data.subarray(from, from + lengthBytes), offset);
  return lengthBytes;
}

/** Makes a hole of blocks `[start, end)` of a region, cut where the volume ends. */
export function punchBlocks(file: WritableFile, region: number, span: Span, sizeBytes: number): void {
  const { offset, lengthBytes } = bytesOfSpan(region, span, sizeBytes);
  file.punch(offset, lengthBytes);
}

/** Where blocks `[start, end)` of a region are, cut where the volume ends. */
export function bytesOfSpan(
  region: number,
  { start, end }: Span,
  sizeBytes: number,
): { offset: number; lengthBytes: number } {
  const offset = region * REGION_BYTES + start * BLOCK_SIZE_BYTES;
  return { offset, lengthBytes: Math.min((end - start) * BLOCK_SIZE_BYTES, sizeBytes - offset) };
}
