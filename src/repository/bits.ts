/** One bit a block, in memory that threads share. A region's 256 bits are 32 bytes of its own, written by one thread. */
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
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

export function clearBit(bits: Uint8Array, block: number): void {
  const at = Math.floor(block / 8);
  bits[at] = (bits[at] ?? 0) & (255 - (1 << (block % 8)));
}

export function hasBit(bits: Uint8Array, block: number): boolean {
  return ((bits[Math.floor(block / 8)] ?? 0) & (1 << (block % 8))) !== 0;
}

/** Clears a range of blocks. */
export function clearRange(bits: Uint8Array, start: number, end: number): void {
  putRange(bits, start, end, 0, clearBit);
}

/** Sets a range of blocks. */
export function setRange(bits: Uint8Array, start: number, end: number): void {
  putRange(bits, start, end, 0xff, setBit);
}

/** Whole bytes at a time. */
function putRange(bits: Uint8Array, start: number, end: number, whole: number, putBit: typeof setBit): void {
  for (let block = start; block < end; ) {
    const isWholeByte = block % 8 === 0 && end - block >= 8;
    if (isWholeByte) bits[block / 8] = whole;
    else putBit(bits, block);
    block += isWholeByte ? 8 : 1;
  }
}

/** Sets the blocks that byte ranges touch. */
export function addByteRanges(bits: Uint8Array, ranges: ReadonlyArray<{ offset: number; lengthBytes: number }>): void {
  for (const { offset, lengthBytes } of ranges)
    setRange(bits, Math.floor(offset / BLOCK_SIZE_BYTES), Math.ceil((offset + lengthBytes) / BLOCK_SIZE_BYTES));
}

/** Whether any block of the region is set. */
export function regionHasBits(bits: Uint8Array, region: number): boolean {
  const at = region * BYTES_PER_REGION;
  for (let i = at; i < at + BYTES_PER_REGION; i++) if (bits[i] !== 0) return true;
  return false;
}

/** The regions in which a block is set, in one bitmap or another: work on those grows with what is set, not with the disk. */
export function regionsWith(regions: number, ...bitmaps: ReadonlyArray<Uint8Array | undefined>): Uint32Array {
  const found = new Uint32Array(regions);
  let count = 0;
  for (let region = 0; region < regions; region++)
    if (bitmaps.some((bits) => bits !== undefined && regionHasBits(bits, region))) found[count++] = region;
  return found.slice(0, count);
}

/** Sets in a bitmap what another one has in these regions. */
export function addBits(bits: Uint8Array, more: Uint8Array, regions: Uint32Array): void {
  for (const region of regions) {
    const at = region * BYTES_PER_REGION;
    for (let i = at; i < at + BYTES_PER_REGION; i++) bits[i] = (bits[i] ?? 0) | (more[i] ?? 0);
  }
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
