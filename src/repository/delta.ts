/**
 * A delta: what a version had in the blocks where the next version differs. A COW file in dattobd's format (src/cow), CLEAN,
 * in snapshot mode, with what that format has no place for behind its end (`fsize`):
 *
 *     header page   seqid: the version; uuid: the series; extension: the version's size in bytes, fingerprint all zero
 *     index         8 bytes a block: 0 not here; the place of the first data block: was zeros; else the place of its contents
 *     data          one block of zeros, then the saved blocks in ascending order of their numbers
 *     -- fsize --
 *     checksums     16 bytes for each saved block, in the order of their places (checksum.ts): those that the image was
 *                   recorded with, so that damage found later is not taken for the truth
 *     footer        80 bytes:
 *        0  u32  magic      "CWBD"
 *        4  u32  format     1
 *        8  u64  next       the version that this one is a difference to
 *       16  u64  saved      blocks with contents here
 *       24  u64  zeros      blocks that were zeros
 *       32  u64  next size  of that version in bytes
 *       40  u64  0
 *       48  32 B SHA-256    of the header page, of every index page (4096 bytes) that is not all zeros behind its number as
 *                           u64, of the checksums, and of the 48 bytes before
 *
 * A file without a right footer was never finished: the image was not touched for it.
 */
import { createHash } from 'node:crypto';
import { CowFormatError } from '../cow/errors.js';
import { BLOCK_SIZE_BYTES, blockCount, dataOffsetBytes, ENTRY_SIZE_BYTES, HEADER_SIZE_BYTES } from '../cow/geometry.js';
import { decodeHeader, encodeHeader } from '../cow/header.js';
import { decodeEntries } from '../cow/index-codec.js';
import { assert, CowbirdError, messageOf } from '../sys/errors.js';
import { CHECKSUM_BYTES, isZero } from './checksum.js';
import { isMediumError, type ReadableFile, readMarked, type WritableFile } from './files.js';
import { REGION_BLOCKS, regionCount } from './layout.js';

const FOOTER_BYTES = 80;
const FOOTER_MAGIC = 0x44425743;
const FOOTER_FORMAT = 1;
const AT = { magic: 0, format: 4, next: 8, saved: 16, zeros: 24, nextSize: 32, reserved: 40, digest: 48 } as const;
const INDEX_PAGE_BYTES = 4096;
const PIECE_BYTES = 1_048_576;
const SLICE_BYTES = REGION_BLOCKS * ENTRY_SIZE_BYTES;
/** Places are 32-bit numbers of blocks. */
const PLACES_MAX = 2 ** 32 - 1;

/** What a delta says of itself. */
export interface DeltaFacts {
  version: number;
  /** Of the version in bytes. */
  sizeBytes: number;
  nextVersion: number;
  nextSizeBytes: number;
  savedBlocks: number;
  zeroBlocks: number;
  /** Of the series. */
  uuid: Uint8Array;
}

/** Where the parts of a delta lie. */
export interface DeltaPlaces {
  /** Place of the block of zeros; the saved blocks follow it. */
  zeroPlace: number;
  /** Place after the last saved block. */
  endPlace: number;
  checksumsAt: number;
  footerAt: number;
  lengthBytes: number;
}

/** @throws {CowbirdError} EFBIG for more than 16 TiB of saved blocks. */
export function deltaPlaces(facts: Pick<DeltaFacts, 'sizeBytes' | 'savedBlocks'>): DeltaPlaces {
  const places = placesOf(facts);
  if (places.endPlace <= PLACES_MAX) return places;
  throw new CowbirdError('EFBIG', `A version can differ by 16 TiB at most; this one has ${facts.savedBlocks} blocks`);
}

function placesOf({ sizeBytes, savedBlocks }: Pick<DeltaFacts, 'sizeBytes' | 'savedBlocks'>): DeltaPlaces {
  const zeroPlace = dataOffsetBytes(blockCount(sizeBytes)) / BLOCK_SIZE_BYTES;
  const endPlace = zeroPlace + 1 + savedBlocks;
  const checksumsAt = endPlace * BLOCK_SIZE_BYTES;
  const footerAt = checksumsAt + savedBlocks * CHECKSUM_BYTES;
  return { zeroPlace, endPlace, checksumsAt, footerAt, lengthBytes: footerAt + FOOTER_BYTES };
}

/** Where the index entries of a region are. One that the delta's version does not have would lie on saved blocks. */
export function sliceOffset({ sizeBytes }: Pick<DeltaShape, 'sizeBytes'>, region: number): number {
  assert(region < regionCount(sizeBytes), `region ${region} is one of a version of ${sizeBytes} bytes`);
  return HEADER_SIZE_BYTES + region * SLICE_BYTES;
}

/**
 * Finishes a delta whose index, data and checksums are written: header and footer, in memory of the file only; the caller
 * makes it durable. Returns the digest.
 */
export function finishDelta(file: WritableFile, facts: DeltaFacts): string {
  const places = deltaPlaces(facts);
  const header = encodeHeader({
    clean: true,
    indexOnly: false,
    vmallocUpper: false,
    positionBlocks: places.endPlace,
    fileSizeBytes: places.checksumsAt,
    sequenceId: facts.version,
    uuid: facts.uuid,
    version: 1,
    changedBlocks: facts.savedBlocks + facts.zeroBlocks,
    extension: { fingerprint: new Uint8Array(32), volumeSizeBytes: facts.sizeBytes },
  });
  const footer = Buffer.alloc(FOOTER_BYTES);
  footer.writeUInt32LE(FOOTER_MAGIC, AT.magic);
  footer.writeUInt32LE(FOOTER_FORMAT, AT.format);
  footer.writeBigUInt64LE(BigInt(facts.nextVersion), AT.next);
  footer.writeBigUInt64LE(BigInt(facts.savedBlocks), AT.saved);
  footer.writeBigUInt64LE(BigInt(facts.zeroBlocks), AT.zeros);
  footer.writeBigUInt64LE(BigInt(facts.nextSizeBytes), AT.nextSize);
  const { digest, entries } = digestOf(file, header, footer, places);
  // What was encoded is read again before it is trusted: the parts come from several threads.
  assert(entries === facts.savedBlocks + facts.zeroBlocks, `the index has ${entries} entries`);
  footer.set(digest, AT.digest);
  file.pwrite(header, 0);
  file.pwrite(footer, places.footerAt);
  return digest.toString('hex');
}

function digestOf(
  file: ReadableFile,
  header: Buffer,
  footer: Buffer,
  places: DeltaPlaces,
): { digest: Buffer; entries: number } {
  const hash = createHash('sha256').update(header);
  const bounds = { indexOnly: false, firstPlace: places.zeroPlace, endPlace: places.endPlace };
  let entries = 0;
  for (const { page, bytes } of indexPages(file, places.zeroPlace * BLOCK_SIZE_BYTES)) {
    const number = Buffer.alloc(8);
    number.writeBigUInt64LE(BigInt(page));
    hash.update(number).update(bytes);
    const firstBlock = (page * INDEX_PAGE_BYTES) / ENTRY_SIZE_BYTES;
    for (const entry of decodeEntries(bytes, bounds, firstBlock)) if (entry !== 0) entries++;
  }
  for (let at = places.checksumsAt; at < places.footerAt; at += PIECE_BYTES)
    hash.update(readExactly(file, at, Math.min(PIECE_BYTES, places.footerAt - at)));
  return { digest: hash.update(footer.subarray(0, AT.digest)).digest(), entries };
}

/** The pages of the index that are not all zeros, by number from 0. */
function* indexPages(file: ReadableFile, indexEnd: number): Generator<{ page: number; bytes: Buffer }> {
  for (let at = HEADER_SIZE_BYTES; at < indexEnd; ) {
    const found = file.nextData(at, indexEnd);
    at = found - (found % INDEX_PAGE_BYTES);
    if (at >= indexEnd) return;
    const piece = readExactly(file, at, Math.min(PIECE_BYTES, indexEnd - at));
    for (let within = 0; within < piece.byteLength; within += INDEX_PAGE_BYTES) {
      const bytes = piece.subarray(within, within + INDEX_PAGE_BYTES);
      if (!isZero(bytes)) yield { page: (at + within - HEADER_SIZE_BYTES) / INDEX_PAGE_BYTES, bytes };
    }
    at += piece.byteLength;
  }
}

/** A delta whose structure was found right; its saved contents are checked when they are read. */
export interface Delta extends DeltaFacts {
  readonly file: ReadableFile;
  readonly places: DeltaPlaces;
  readonly digest: string;
  readonly lengthBytes: number;
}

/**
 * Reads and checks a delta but for its saved contents.
 *
 * @throws {CowFormatError} for what cannot be a finished delta of this version.
 */
export function openDelta(file: ReadableFile & { sizeBytes(): number }, version: number, uuid: Uint8Array): Delta {
  const lengthBytes = file.sizeBytes();
  const headerPage = readExactly(file, 0, HEADER_SIZE_BYTES);
  const header = decodeHeader(headerPage);
  expect('seqid', header.sequenceId, version);
  expect('uuid', Buffer.from(header.uuid).toString('hex'), Buffer.from(uuid).toString('hex'));
  const sizeBytes = header.extension?.volumeSizeBytes;
  if (sizeBytes === undefined)
    throw new CowFormatError('ECOWEXTENSION', 'volume size', 'missing', 'the bytes of the version');
  const footer = readExactly(file, Math.max(0, lengthBytes - FOOTER_BYTES), FOOTER_BYTES);
  expect('footer magic', footer.readUInt32LE(AT.magic), FOOTER_MAGIC);
  expect('footer format', footer.readUInt32LE(AT.format), FOOTER_FORMAT);
  const facts: DeltaFacts = {
    version,
    uuid,
    sizeBytes,
    nextVersion: numberAt(footer, AT.next),
    nextSizeBytes: numberAt(footer, AT.nextSize),
    savedBlocks: numberAt(footer, AT.saved),
    zeroBlocks: numberAt(footer, AT.zeros),
  };
  const places = placesOf(facts);
  expect('file length', lengthBytes, places.lengthBytes);
  expect('fsize', header.fileSizeBytes, places.checksumsAt);
  expect('fpos', header.positionBlocks, places.endPlace);
  const { digest, entries } = digestOf(file, headerPage, footer, places);
  expect('SHA-256', footer.subarray(AT.digest).toString('hex'), digest.toString('hex'));
  expect('nr_changed', header.changedBlocks, entries);
  return { ...facts, file, places, digest: digest.toString('hex'), lengthBytes };
}

function numberAt(footer: Buffer, at: number): number {
  const value = footer.readBigUInt64LE(at);
  if (value > BigInt(Number.MAX_SAFE_INTEGER))
    throw new CowFormatError('ECOWSIZE', `footer byte ${at}`, value, 'below 2^53');
  return Number(value);
}

function expect(field: string, value: number | string, expected: number | string): void {
  if (value !== expected) throw new CowFormatError('ECOWSIZE', field, value, `${expected}`);
}

function readExactly(file: ReadableFile, offset: number, lengthBytes: number): Buffer {
  const bytes = Buffer.alloc(lengthBytes);
  const count = readOf(file, bytes, offset);
  if (count !== lengthBytes)
    throw new CowFormatError('ECOWTRUNCATED', 'file end', offset + count, `${lengthBytes} bytes more`);
  return bytes;
}

/** Structure that cannot be read is as good as wrong. */
function readOf(file: ReadableFile, bytes: Uint8Array, offset: number): number {
  try {
    return file.pread(bytes, offset);
  } catch (error) {
    if (!isMediumError(error)) throw error;
    throw new CowFormatError('ECOWREAD', `what is at byte ${offset}`, messageOf(error), 'bytes that can be read');
  }
}

/** What reading a region of a delta takes; can be handed to other threads. */
export interface DeltaShape {
  sizeBytes: number;
  zeroPlace: number;
  endPlace: number;
  checksumsAt: number;
}

export function shapeOf(delta: Delta): DeltaShape {
  const { zeroPlace, endPlace, checksumsAt } = delta.places;
  return { sizeBytes: delta.sizeBytes, zeroPlace, endPlace, checksumsAt };
}

/** The index entries of a region; undefined where the delta has none of its blocks. `scratch`: 2048 bytes. */
export function regionEntries(
  file: ReadableFile,
  shape: DeltaShape,
  region: number,
  scratch: Buffer,
): Uint32Array | undefined {
  if (region >= regionCount(shape.sizeBytes)) return undefined;
  const bytes = scratch.subarray(0, SLICE_BYTES);
  const offset = sliceOffset(shape, region);
  if (readOf(file, bytes, offset) !== SLICE_BYTES)
    throw new CowFormatError('ECOWTRUNCATED', 'index', offset, 'the entries of a region');
  if (isZero(bytes)) return undefined;
  const bounds = { indexOnly: false, firstPlace: shape.zeroPlace, endPlace: shape.endPlace };
  return decodeEntries(bytes, bounds, region * REGION_BLOCKS);
}

/** Where the checksum of the block at `place` is. */
export function checksumOffset(shape: DeltaShape, place: number): number {
  return shape.checksumsAt + (place - shape.zeroPlace - 1) * CHECKSUM_BYTES;
}

/** Regions in which a delta has blocks, ascending. */
export function* regionsOf(file: ReadableFile, shape: DeltaShape): Generator<number> {
  for (const { page, bytes } of indexPages(file, shape.zeroPlace * BLOCK_SIZE_BYTES)) {
    for (let at = 0; at < bytes.byteLength; at += SLICE_BYTES)
      if (!isZero(bytes.subarray(at, at + SLICE_BYTES))) yield (page * INDEX_PAGE_BYTES + at) / SLICE_BYTES;
  }
}

/** Whether the block that zeros are read from is one of zeros. */
export function zeroBlockIsZero(file: ReadableFile, shape: DeltaShape): boolean {
  const block = Buffer.alloc(BLOCK_SIZE_BYTES);
  readMarked(file, block, shape.zeroPlace * BLOCK_SIZE_BYTES);
  return isZero(block);
}
