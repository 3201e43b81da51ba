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
 * @throws {CowFormatError} ECOWENTRY for a value that cannot be.
 */
export function decodeEntries(bytes: Uint8Array, bounds: EntryBounds, firstBlock = 0): Uint32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const entries = new Uint32Array(Math.floor(bytes.byteLength / ENTRY_SIZE_BYTES));
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

/** Encodes a 1 for every set bit of blocks `[firstBlock, firstBlock + count)` into `out`, which is zeroed. */
export function encodeEntriesFromBitmap(bitmap: Int32Array, firstBlock: number, count: number, out: Buffer): Buffer {
  for (let i = 0; i < count; i++) {
    const block = firstBlock + i;
    const word = bitmap[block >>> 5] ?? 0;
    if ((word & (1 << (block & 31))) !== 0) out.writeUInt32LE(1, i * ENTRY_SIZE_BYTES);
  }
  return out;
}
