/**
 * Copying ranges of a snapshot into an image, several transfers side by side.
 *
 * Each lane reads one group of ranges and then writes it. A group's reads are begun some groups ahead, so that the snapshot's
 * workers and the disk are busy while we write. What is long is written past the page cache: the copy into it costs as much
 * as the whole write, and its pages would have to be written at the end all the same. What is short goes through it, where the
 * kernel gathers it; nothing is durable before the caller syncs.
 *
 * A long range of zeros is no data to a file: it is left a hole where it is one, and made zeros without writing any where it is
 * not. That is much of an update, for the snapshot's own COW file reads as zeros, and its blocks change with each snapshot.
 *
 * A transfer that is not whole is done again in this thread, at last block by block: one bad block is counted and must not take
 * its neighbours with it.
 */
import { closeSync, fstatSync, writeSync } from 'node:fs';
import type { PositionedReader } from '../cow/file.js';
import { BLOCK_SIZE_BYTES, blockCount } from '../cow/geometry.js';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { Lanes, openDirect } from '../sys/lanes.js';
import * as libc from '../sys/libc.js';

export const TRANSFER_BYTES = 1_048_576;
const LANES = 32;
/** Of the lanes, those that read; the others write. */
const READS_AHEAD = 16;
/** Shorter ranges are written through the page cache. */
const DIRECT_WRITE_BYTES_MIN = 65_536;
const ZEROS = Buffer.alloc(TRANSFER_BYTES);
const SECTOR_BYTES = 512;
const FAILURES_KEPT = 10;

export interface Range {
  offset: number;
  lengthBytes: number;
}

/** Ranges that are read in one transfer of at most {@link TRANSFER_BYTES}, first to last; never empty. */
export type Group = readonly [Range, ...Range[]];

/** What is copied from. */
export interface CopySource extends PositionedReader {
  /** A descriptor opened with O_DIRECT, where there is one: its reads go side by side. */
  readonly directFd?: number | undefined;
}

export interface CopyResult {
  changedBlocks: number;
  writtenBytes: number;
  errors: number;
  /** The first failures, in words with their offsets. */
  failures: string[];
}

export interface CopyRequest {
  source: CopySource;
  /** The image, open for reading and writing. */
  fd: number;
  result: CopyResult;
  onProgress?: ((doneBlocks: number) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** Copies them all. @throws {CowbirdError} EINTR when it is interrupted; a block that fails is counted instead. */
export function copyGroups(groups: Iterable<Group>, request: CopyRequest): void {
  const directFd = openDirect(request.fd);
  const copier = new Copier(request, directFd);
  try {
    for (const group of groups) copier.add(group);
    copier.finish();
  } finally {
    copier.drain();
    if (directFd !== undefined) closeSync(directFd);
  }
}

class Copier {
  readonly #request: CopyRequest;
  readonly #directFd: number | undefined;
  readonly #lanes = new Lanes(LANES, TRANSFER_BYTES);
  /** Oldest first; `begun`: its read is in its lane's hands. */
  readonly #reading: Array<{ lane: number; group: Group; begun: boolean }> = [];
  /** By lane: what it is writing. */
  readonly #writing: Array<Range | undefined> = [];
  #nextLane = 0;
  readonly #isFile: boolean;

  constructor(request: CopyRequest, directFd: number | undefined) {
    this.#request = request;
    this.#isFile = fstatSync(request.fd).isFile();
    this.#directFd = directFd;
  }

  add(group: Group): void {
    if (this.#reading.length === READS_AHEAD) this.#writeOldest();
    const lane = this.#nextLane;
    this.#nextLane = (lane + 1) % LANES;
    this.#endWrite(lane);
    const { offset, lengthBytes } = spanOf(group);
    const { directFd } = this.#request.source;
    const begun = directFd !== undefined && offset % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0;
    if (begun) this.#lanes.begin(lane, { isWrite: false, fd: directFd, lengthBytes, offset });
    this.#reading.push({ lane, group, begun });
  }

  finish(): void {
    while (this.#reading.length > 0) this.#writeOldest();
    for (let lane = 0; lane < LANES; lane++) this.#endWrite(lane);
  }

  /** After an error: nothing may be in hand when the descriptors are closed. */
  drain(): void {
    this.#lanes.drain();
  }

  #writeOldest(): void {
    const oldest = this.#reading.shift();
    if (oldest === undefined) return;
    const { signal, onProgress, result } = this.#request;
    if (signal?.aborted === true)
      throw new CowbirdError('EINTR', 'Interrupted: run it again with the same arguments', { outcome: 'partial' });
    const { lane, group, begun } = oldest;
    const span = spanOf(group);
    const isRead = begun && this.#lanes.end(lane) === span.lengthBytes;
    const bytes = this.#lanes.buffer(lane).subarray(0, span.lengthBytes);
    const cause = isRead ? undefined : this.#readAgain(bytes, span.offset);
    if (cause !== undefined) for (const range of group) this.#copyByBlock(range, bytes, cause);
    else this.#write(lane, group, bytes);
    onProgress?.(result.changedBlocks);
  }

  /** Reads in this thread; why that failed, in words. */
  #readAgain(bytes: Uint8Array, offset: number): string | undefined {
    try {
      readWhole(this.#request.source, bytes, offset);
      return undefined;
    } catch (error) {
      return messageOf(error);
    }
  }

  #write(lane: number, group: Group, bytes: Buffer): void {
    const { offset, lengthBytes } = spanOf(group);
    const isLong = group.length === 1 && lengthBytes >= DIRECT_WRITE_BYTES_MIN && lengthBytes % BLOCK_SIZE_BYTES === 0;
    if (isLong && this.#madeZeros(bytes, offset)) this.#noteWritten(lengthBytes);
    else if (isLong && this.#directFd !== undefined) {
      this.#lanes.begin(lane, { isWrite: true, fd: this.#directFd, lengthBytes, offset });
      this.#writing[lane] = { offset, lengthBytes };
    } else {
      for (const range of group) {
        const at = range.offset - offset;
        this.#writeRange(bytes.subarray(at, at + range.lengthBytes), range.offset);
      }
    }
  }

  /** Whether these bytes are zeros, and are in the image now with nothing written. */
  #madeZeros(bytes: Buffer, offset: number): boolean {
    const lengthBytes = bytes.byteLength;
    if (!this.#isFile || !bytes.equals(ZEROS.subarray(0, lengthBytes))) return false;
    const { fd } = this.#request;
    const end = offset + lengthBytes;
    if (libc.nextData(fd, offset, end) === end) return true;
    // Not a hole: the image keeps its space, so that no later update fails for want of it.
    return libc.fast.fallocate(fd, libc.FALLOC_FL_ZERO_RANGE + libc.FALLOC_FL_KEEP_SIZE, offset, lengthBytes) === 0;
  }

  #endWrite(lane: number): void {
    const range = this.#writing[lane];
    if (range === undefined) return;
    this.#writing[lane] = undefined;
    const { offset, lengthBytes } = range;
    if (this.#lanes.end(lane) === lengthBytes) this.#noteWritten(lengthBytes);
    else this.#writeRange(this.#lanes.buffer(lane).subarray(0, lengthBytes), offset);
  }

  #copyByBlock(range: Range, buffer: Uint8Array, cause: string): void {
    const end = range.offset + range.lengthBytes;
    for (let offset = range.offset; offset < end; offset += BLOCK_SIZE_BYTES) {
      const piece = buffer.subarray(0, Math.min(BLOCK_SIZE_BYTES, end - offset));
      const why = this.#readAgain(piece, offset);
      if (why === undefined) this.#writeRange(piece, offset);
      else this.#fail(`block at ${offset}: ${why} (${cause})`);
    }
  }

  /** Writes a range through the page cache; where that fails, each of its blocks on its own. */
  #writeRange(bytes: Uint8Array, offset: number): void {
    try {
      writeWhole(this.#request.fd, bytes, offset);
      this.#noteWritten(bytes.byteLength);
    } catch (error) {
      if (bytes.byteLength <= BLOCK_SIZE_BYTES) {
        this.#fail(`write at ${offset}: ${messageOf(error)}`);
        return;
      }
      for (let at = 0; at < bytes.byteLength; at += BLOCK_SIZE_BYTES)
        this.#writeRange(bytes.subarray(at, at + BLOCK_SIZE_BYTES), offset + at);
    }
  }

  #noteWritten(lengthBytes: number): void {
    const { result } = this.#request;
    result.writtenBytes += lengthBytes;
    result.changedBlocks += blockCount(lengthBytes);
  }

  #fail(message: string): void {
    const { result } = this.#request;
    result.errors++;
    if (result.failures.length < FAILURES_KEPT) result.failures.push(message);
  }
}

function spanOf(group: Group): Range {
  const [first] = group;
  const last = group.at(-1) ?? first;
  return { offset: first.offset, lengthBytes: last.offset + last.lengthBytes - first.offset };
}

function writeWhole(fd: number, bytes: Uint8Array, offset: number): void {
  let done = 0;
  while (done < bytes.byteLength) {
    const count = writeSync(fd, bytes, done, bytes.byteLength - done, offset + done);
    if (count <= 0) throw new CowbirdError('EIO', `nothing was written at ${offset + done}`, { outcome: 'failed' });
    done += count;
  }
}

/** Reads exactly so many bytes. */
export function readWhole(source: PositionedReader, bytes: Uint8Array, offset: number): void {
  let done = 0;
  while (done < bytes.byteLength) {
    const count = source.read(bytes.subarray(done), offset + done);
    if (count <= 0) throw new CowbirdError('EIO', `nothing to read at ${offset + done}`, { outcome: 'failed' });
    done += count;
  }
}
