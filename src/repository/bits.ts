/** One bit a block, in memory that threads share. A region's 256 bits are 32 bytes of its own, written by one thread. */
import { REGION_BLOCKS } from './layout.js';

const BYTES_PER_REGION = REGION_BLOCKS / 8;

/** A bitmap for so many regions, all clear. */
export function makeBits(regions: number): Uint8Array {
  return new Uint8Array(new SharedArrayBuffer(regions * BYTES_PER_REGION));
}

export function setBit(bits: Uint8Array, block: number): void {
  const at = Math.floor(block / 8);
  bits[at] = (bits[at] ?? 0) | (1 << (block % 8));
}

export function hasBit(bits: Uint8Array, block: number): boolean {
  return ((bits[Math.floor(block / 8)] ?? 0) & (1 << (block % 8))) !== 0;
}

/** Blocks of a region, from its first one as 0: `[start, end)`. */
export interface Span {
  start: number;
  end: number;
}

/** Spans of blocks that are chosen, joined where at most `gapBlocks` lie between. */
export function spansOf(limit: number, isChosen: (block: number) => boolean, gapBlocks = 0): Span[] {
  const spans: Span[] = [];
  let last: Span | undefined;
  for (let block = 0; block < limit; block++) {
    if (!isChosen(block)) continue;
    if (last !== undefined && block - last.end <= gapBlocks) last.end = block + 1;
    else {
      last = { start: block, end: block + 1 };
      spans.push(last);
    }
  }
  return spans;
}
