/**
 * What is left to be read when the file system is to stand still: memory made beforehand, and where in it which blocks are.
 *
 * It is filled by one reading of everything, then by readings of what was written since, each behind the one before; of a block
 * that was read several times the last one counts. Blocks that lie close to each other are read in one go, as far as there is room;
 * many reads are under way at a time. All memory is written once before, so that reading needs none.
 */
import { AioQueue } from '../sys/aio.js';
import { assert, SystemError } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { BLOCK_BYTES, type BlockBitmap, countBits } from './bitmap.js';

const DEPTH = 32;
const SPAN_BLOCKS_MAX = 256;
/** Reading 64 KiB more costs less than another request. */
const GAP_BLOCKS = 16;
const EIO = 5;

export class RestBuffer {
  /** For files that other threads read; this memory is read here. */
  readonly handle = undefined;
  readonly #capacityBlocks: number;
  readonly #mapping: libc.Mapping;
  readonly #address: number;
  readonly #bytes: Buffer;
  /** Spans of blocks, ascending within a reading: `[start, end)`, and the place of the first in memory, in blocks. */
  readonly #starts: Float64Array;
  readonly #ends: Float64Array;
  readonly #places: Float64Array;
  readonly #aio: AioQueue | undefined;
  readonly #bad = new Set<number>();
  /** Of each reading, its first span. */
  #readings: number[] = [];
  #spans = 0;
  #sizeBytes = 0;

  constructor(capacityBytes: number) {
    this.#capacityBlocks = capacityBytes / BLOCK_BYTES;
    const mapping = libc.mapPages(capacityBytes);
    this.#mapping = mapping;
    this.#address = mapping.address;
    this.#bytes = Buffer.from(mapping.bytes).fill(0xff).fill(0);
    // Swapped out it would have to come back during the freeze: slower, not wrong.
    libc.tryLock(mapping.address, capacityBytes);
    const numbers = (): Float64Array => new Float64Array(this.#capacityBlocks).fill(1).fill(0);
    this.#starts = numbers();
    this.#ends = numbers();
    this.#places = numbers();
    this.#aio = AioQueue.open(DEPTH);
  }

  /**
   * Forgets everything, and reads the blocks that are set from a descriptor with O_DIRECT. False, with nothing read, when they are
   * more than fit. What cannot be read is an error of {@link pread} later.
   */
  load(fd: number, blocks: BlockBitmap, sizeBytes: number): boolean {
    this.#sizeBytes = sizeBytes;
    this.#bad.clear();
    this.#readings = [];
    this.#spans = 0;
    return this.#read(fd, blocks);
  }

  /** Reads further blocks, or the same once more. False, with nothing read, when there is no room for that. */
  reload(fd: number, blocks: BlockBitmap): boolean {
    return this.#read(fd, blocks);
  }

  #read(fd: number, blocks: BlockBitmap): boolean {
    const first = this.#spans;
    if (!this.#collect(blocks)) return false;
    this.#readings.push(first);
    if (this.#bad.size > 0) for (let span = first; span < this.#spans; span++) this.#forgetBad(span);
    const failed = this.#aio === undefined ? this.#readOneByOne(fd, first) : this.#readManyAtOnce(this.#aio, fd, first);
    for (const span of failed) this.#readBlocks(fd, span);
    return true;
  }

  #forgetBad(span: number): void {
    for (const block of this.#bad)
      if (block >= (this.#starts[span] ?? 0) && block < (this.#ends[span] ?? 0)) this.#bad.delete(block);
  }

  /** Adds the blocks that are set as a reading of their own; false, with nothing added, when there is no room. */
  #collect({ words }: BlockBitmap): boolean {
    const first = this.#spans;
    let count = 0;
    for (const word of words) if (word !== 0) count += countBits(word);
    let spare = this.#capacityBlocks - this.#endPlace() - count;
    if (spare < 0) return false;
    for (let at = 0; at < words.length; at++) {
      const word = words[at] ?? 0;
      if (word === 0) continue;
      for (let bit = 0; bit < 32; bit++)
        if (((word >>> bit) & 1) === 1) spare -= this.#add(at * 32 + bit, first, spare);
    }
    return true;
  }

  /** The first place behind everything that was read, in blocks. */
  #endPlace(): number {
    const last = this.#spans - 1;
    return last < 0 ? 0 : (this.#places[last] ?? 0) + (this.#ends[last] ?? 0) - (this.#starts[last] ?? 0);
  }

  /** Adds a block behind all others of the reading that begins with span `first`; returns how many that are not wanted are read with it. */
  #add(block: number, first: number, spare: number): number {
    const last = this.#spans - 1;
    const end = this.#ends[last] ?? 0;
    const start = this.#starts[last] ?? 0;
    const gap = block - end;
    if (last >= first && gap <= Math.min(GAP_BLOCKS, spare) && block - start < SPAN_BLOCKS_MAX) {
      this.#ends[last] = block + 1;
      return gap;
    }
    this.#places[this.#spans] = this.#endPlace();
    this.#starts[this.#spans] = block;
    this.#ends[this.#spans] = block + 1;
    this.#spans++;
    return 0;
  }

  #lengthOf(span: number): number {
    const start = (this.#starts[span] ?? 0) * BLOCK_BYTES;
    return Math.min((this.#ends[span] ?? 0) * BLOCK_BYTES, this.#sizeBytes) - start;
  }

  #readManyAtOnce(aio: AioQueue, fd: number, firstSpan: number): number[] {
    const failed: number[] = [];
    const spanOf = new Int32Array(DEPTH);
    const free = Array.from({ length: DEPTH }, (_, slot) => slot);
    let next = firstSpan;
    let underWay = 0;
    while (next < this.#spans || underWay > 0) {
      const first = next;
      const used: number[] = [];
      for (let slot = free.pop(); slot !== undefined; slot = free.pop()) {
        if (next >= this.#spans) {
          free.push(slot);
          break;
        }
        const address = this.#address + (this.#places[next] ?? 0) * BLOCK_BYTES;
        aio.prepare(slot, false, fd, address, this.#lengthOf(next), (this.#starts[next] ?? 0) * BLOCK_BYTES);
        spanOf[slot] = next++;
        used.push(slot);
      }
      const taken = used.length === 0 ? 0 : aio.submit();
      underWay += taken;
      // What the kernel did not take is read in the simple way.
      for (let i = taken; i < used.length; i++) {
        failed.push(first + i);
        free.push(used[i] ?? 0);
      }
      if (underWay === 0) continue;
      aio.reap(1, DEPTH, (slot, result) => {
        underWay--;
        free.push(slot);
        const span = spanOf[slot] ?? 0;
        if (result !== this.#lengthOf(span)) failed.push(span);
      });
    }
    return failed;
  }

  #readOneByOne(fd: number, firstSpan: number): number[] {
    const failed: number[] = [];
    for (let span = firstSpan; span < this.#spans; span++) {
      const address = this.#address + (this.#places[span] ?? 0) * BLOCK_BYTES;
      const lengthBytes = this.#lengthOf(span);
      const count = libc.fast.pread(fd, address, lengthBytes, (this.#starts[span] ?? 0) * BLOCK_BYTES);
      if (count !== lengthBytes) failed.push(span);
    }
    return failed;
  }

  /** Block by block: one that cannot be read must not take its neighbours with it. */
  #readBlocks(fd: number, span: number): void {
    const start = this.#starts[span] ?? 0;
    for (let block = start; block < (this.#ends[span] ?? 0); block++) {
      const lengthBytes = Math.min(BLOCK_BYTES, this.#sizeBytes - block * BLOCK_BYTES);
      const address = this.#address + ((this.#places[span] ?? 0) + block - start) * BLOCK_BYTES;
      if (libc.fast.pread(fd, address, lengthBytes, block * BLOCK_BYTES) !== lengthBytes) this.#bad.add(block);
    }
  }

  /** What was read, by its place on the disk; zeros where nothing was. @throws {SystemError} EIO */
  pread(bytes: Uint8Array, offset: number): number {
    assert(offset % BLOCK_BYTES === 0, () => `offset ${offset} is that of a block`);
    const lengthBytes = Math.max(0, Math.min(bytes.byteLength, this.#sizeBytes - offset));
    const first = offset / BLOCK_BYTES;
    const end = Math.ceil((offset + lengthBytes) / BLOCK_BYTES);
    bytes.fill(0, 0, lengthBytes);
    for (const block of this.#bad)
      if (block >= first && block < end) throw new SystemError('pread', EIO, `at ${block * BLOCK_BYTES}`);
    for (const [i, firstSpan] of this.#readings.entries()) {
      const endSpan = this.#readings[i + 1] ?? this.#spans;
      for (let span = this.#spanFrom(first, firstSpan, endSpan); span < endSpan; span++) {
        const start = this.#starts[span] ?? 0;
        const from = Math.max(start, first);
        const to = Math.min(this.#ends[span] ?? 0, end);
        if (from >= to) break;
        const place = ((this.#places[span] ?? 0) + from - start) * BLOCK_BYTES;
        const piece = Math.min((to - from) * BLOCK_BYTES, lengthBytes - (from - first) * BLOCK_BYTES);
        bytes.set(this.#bytes.subarray(place, place + piece), (from - first) * BLOCK_BYTES);
      }
    }
    return lengthBytes;
  }

  /** Of the spans of a reading, the first that ends behind a block. */
  #spanFrom(block: number, firstSpan: number, endSpan: number): number {
    let low = firstSpan;
    let high = endSpan;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if ((this.#ends[middle] ?? 0) <= block) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  nextData(offset: number): number {
    return offset;
  }

  /** Gives the memory back. Nothing of this may be used any more. */
  close(): void {
    this.#aio?.close();
    libc.unmap(this.#mapping);
  }
}
