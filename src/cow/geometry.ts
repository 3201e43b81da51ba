/**
 * Geometry of a COW file: header page, index, data store (dattobd's layout).
 *
 * Offsets are plain numbers below 2^53 and are never shifted or or-ed: those operators cut to 32 bits.
 */

export const BLOCK_SIZE_BYTES = 4096;
export const HEADER_SIZE_BYTES = 4096;
export const ENTRY_SIZE_BYTES = 8;
/** The index is padded to whole sections of this many entries. */
export const ENTRIES_PER_SECTION = 4096;
const DEFAULT_STORE_DIVISOR = 10;

/** Blocks of a volume; the last one may be partial. */
export function blockCount(sizeBytes: number): number {
  return Math.ceil(sizeBytes / BLOCK_SIZE_BYTES);
}

/** Bytes of the index for a volume of so many blocks. */
export function indexLengthBytes(blocks: number): number {
  return Math.ceil(blocks / ENTRIES_PER_SECTION) * ENTRIES_PER_SECTION * ENTRY_SIZE_BYTES;
}

/** Where saved blocks begin; the length of a file in incremental mode. */
export function dataOffsetBytes(blocks: number): number {
  return HEADER_SIZE_BYTES + indexLengthBytes(blocks);
}

/** dattobd's default: a tenth of the volume, to the byte. */
export function defaultStoreBytes(sizeBytes: number): number {
  return Math.floor(sizeBytes / DEFAULT_STORE_DIVISOR);
}
