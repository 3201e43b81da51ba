/**
 * One bit for each 4 KiB block of a device, in memory that threads share: what has to be copied.
 *
 * Bit `b` is bit `b % 8` of byte `b / 8`, as in the repository's bitmaps. All memory is taken when it is made: nothing is
 * allocated by a change, so that it can be filled while a file system is frozen.
 */
import { assert } from '../sys/errors.js';

/** The block of tracking and copying. */
export const BLOCK_BYTES = 4096;
const BITS_PER_WORD = 32;

/** How many bits of a word are set. */
export function countBits(word: number): number {
  let rest = word >>> 0;
  let count = 0;
  for (; rest !== 0; rest = (rest & (rest - 1)) >>> 0) count++;
  return count;
}

export class BlockBitmap {
  readonly blockCount: number;
  /** Whole 64-bit words; bits from `blockCount` on are never set. */
  readonly words: Uint32Array;
  readonly bytes: Uint8Array;

  /** `memory`: that of another thread's bitmap of the same size; zeros of its own without it. */
  constructor(blockCount: number, memory?: ArrayBufferLike) {
    const bytes = memory ?? new SharedArrayBuffer(Math.ceil(blockCount / 64) * 8);
    assert(bytes.byteLength * 8 >= blockCount, () => `${bytes.byteLength} bytes hold ${blockCount} bits`);
    this.blockCount = blockCount;
    this.words = new Uint32Array(bytes);
    this.bytes = new Uint8Array(bytes);
    // Untouched memory is no memory yet: it shall be there before a file system is frozen.
    if (memory === undefined) this.bytes.fill(0xff).fill(0);
  }

  has(block: number): boolean {
    return (((this.words[Math.floor(block / BITS_PER_WORD)] ?? 0) >>> (block % BITS_PER_WORD)) & 1) === 1;
  }

  /** Sets a bit. Returns whether it was not set before; blocks beyond the end are not there. */
  set(block: number): boolean {
    if (block < 0 || block >= this.blockCount) return false;
    const at = Math.floor(block / BITS_PER_WORD);
    const before = this.words[at] ?? 0;
    const after = before | (1 << (block % BITS_PER_WORD));
    this.words[at] = after;
    return (before | 0) !== after;
  }

  clear(block: number): void {
    const at = Math.floor(block / BITS_PER_WORD);
    this.words[at] = (this.words[at] ?? 0) & ~(1 << (block % BITS_PER_WORD));
  }

  setRange(first: number, count: number): void {
    for (let block = first; block < first + count; block++) {
      const isWhole = block % BITS_PER_WORD === 0 && first + count - block >= BITS_PER_WORD;
      if (isWhole && block + BITS_PER_WORD <= this.blockCount) {
        this.words[block / BITS_PER_WORD] = 0xffff_ffff;
        block += BITS_PER_WORD - 1;
      } else this.set(block);
    }
  }

  clearAll(): void {
    this.words.fill(0);
  }

  count(): number {
    let count = 0;
    for (const word of this.words) if (word !== 0) count += countBits(word);
    return count;
  }

  /** The runs of set blocks, ascending. */
  *runs(): Generator<{ first: number; count: number }> {
    let first = -1;
    for (let block = 0; block < this.blockCount; block++) {
      if (block % BITS_PER_WORD === 0 && first < 0) {
        // Empty words are passed over whole.
        while (block < this.blockCount && (this.words[block / BITS_PER_WORD] ?? 0) === 0) block += BITS_PER_WORD;
        if (block >= this.blockCount) break;
      }
      if (this.has(block)) {
        if (first < 0) first = block;
      } else if (first >= 0) {
        yield { first, count: block - first };
        first = -1;
      }
    }
    if (first >= 0) yield { first, count: this.blockCount - first };
  }
}
