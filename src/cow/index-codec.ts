/**
 * Index entries: on disk a little-endian u64 a block, in memory a uint32.
 *
 * 0: unchanged. Snapshot mode: the place of the saved block in the file, in blocks of 4096. INDEX_ONLY: any value but 0
 * says "changed"; values above 1 are places left over from snapshot mode and mean nothing.
 */
import { CowFormatError } from './errors.js';
import { ENTRY_SIZE_BYTES } from './geometry.js';

/** What an entry may be. */
export interface EntryBounds {
  indexOnly: boolean;
  /** First place of saved data, and the place after the last; snapshot mode only. */
  firstPlace: number;
  endPlace: number;
}

/** Encodes entries into `out`, or into new memory. */
export function encodeEntries(
  entries: Uint32Array,
  out: Buffer = Buffer.alloc(entries.length * ENTRY_SIZE_BYTES),
): Buffer {
  entries.forEach((entry, i) => {
    out.writeUInt32LE(entry, i * ENTRY_SIZE_BYTES);
    out.writeUInt32LE(0, i * ENTRY_SIZE_BYTES + 4);
  });
  return out;
}

/**
 * Decodes the entries of a piece of the index whose first entry is that of block `firstBlock`.
 *
 * @throws {CowFormatError} ECOWENTRY for a value that cannot be, ECOWTRUNCATED for a piece that ends inside an entry.
 */
export function decodeEntries(bytes: Uint8Array, bounds: EntryBounds, firstBlock = 0): Uint32Array {
  if (bytes.byteLength % ENTRY_SIZE_BYTES !== 0) {
    throw new CowFormatError('ECOWTRUNCATED', 'index piece', bytes.byteLength, 'whole entries of 8 bytes');
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const entries = new Uint32Array(bytes.byteLength / ENTRY_SIZE_BYTES);
  for (let i = 0; i < entries.length; i++) {
    const low = view.getUint32(i * ENTRY_SIZE_BYTES, true);
    const high = view.getUint32(i * ENTRY_SIZE_BYTES + 4, true);
    if (high !== 0) {
      throw new CowFormatError(
        'ECOWENTRY',
        `entry of block ${firstBlock + i}`,
        (BigInt(high) << 32n) + BigInt(low),
        'below 2^32',
      );
    }
    if (low !== 0 && !bounds.indexOnly && (low < bounds.firstPlace || low >= bounds.endPlace)) {
      throw new CowFormatError(
        'ECOWENTRY',
        `entry of block ${firstBlock + i}`,
        low,
        `0 or from ${bounds.firstPlace} to ${bounds.endPlace - 1}`,
      );
    }
    entries[i] = low;
  }
  return entries;
}

/**
 * Encodes blocks `[firstBlock, firstBlock + count)` into `out`: 1 for every set bit, 0 for the others.
 *
 * @throws {RangeError} for blocks that the bitmap does not have: they are not "unchanged" (I3).
 */
export function encodeEntriesFromBitmap(bitmap: Int32Array, firstBlock: number, count: number, out: Buffer): Buffer {
  if (firstBlock < 0 || firstBlock + count > bitmap.length * 32) {
    throw new RangeError(`Blocks ${firstBlock} to ${firstBlock + count} are not in a map of ${bitmap.length * 32}`);
  }
  if (count * ENTRY_SIZE_BYTES > out.byteLength) {
    throw new RangeError(`${count} entries do not fit in ${out.byteLength} bytes`);
  }
  out.fill(0, 0, count * ENTRY_SIZE_BYTES);
  for (let i = 0; i < count; i++) {
    const block = firstBlock + i;
    // Block numbers stay below 2^32, so these operators do not cut them.
    const word = bitmap[block >>> 5] ?? 0;
    if ((word & (1 << (block & 31))) !== 0) out.writeUInt32LE(1, i * ENTRY_SIZE_BYTES);
  }
  return out;
}
