/** What stands behind the device of a version or a snapshot: checked contents, and a throw-away overlay for writes. */
import { closeSync, mkdtempSync, openSync, readSync, rmdirSync, unlinkSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import type { SessionTarget } from '../frontend/fuse/session.js';
import { DATA_OFFSET, type WireBuffer } from '../frontend/fuse/wire.js';
import { hasBit, makeBits, setBit } from '../repository/bits.js';
import { CHECKSUM_BYTES, matchesChecksum } from '../repository/checksum.js';
import { type ReadableFile, readPadded } from '../repository/files.js';
import { blockAt } from '../repository/jobs-common.js';
import { REGION_BLOCKS, REGION_BYTES, regionCount } from '../repository/layout.js';
import type { View } from '../repository/view.js';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';

/** Regions that are kept, for reads that come in small pieces. */
const CACHED_REGIONS = 16;

/** Contents that do not change. */
export interface Base {
  readonly sizeBytes: number;
  /** Fills `bytes`, with zeros beyond the end. @throws {CowbirdError} EIO */
  read(bytes: Buffer, offset: number): void;
}

/** A snapshot's device, or anything else that is read by position. */
export function fileBase(file: ReadableFile, sizeBytes: number): Base {
  return { sizeBytes, read: (bytes, offset) => void readPadded(file, bytes, offset) };
}

interface CachedRegion {
  data: Buffer;
  checksums: Buffer;
  checked: Uint8Array;
}

/** A version of a repository. A block that is not what its checksum says is an error, never wrong data. */
export class VersionBase implements Base {
  readonly sizeBytes: number;
  readonly #view: View;
  readonly #cache = new Map<number, CachedRegion>();

  constructor(view: View) {
    this.#view = view;
    this.sizeBytes = view.shape.sizeBytes;
  }

  read(bytes: Buffer, offset: number): void {
    let done = 0;
    while (done < bytes.byteLength) {
      const at = offset + done;
      const region = Math.floor(at / REGION_BYTES);
      const within = at - region * REGION_BYTES;
      const count = Math.min(bytes.byteLength - done, REGION_BYTES - within);
      const cached = this.#load(region);
      const end = Math.ceil((within + count) / BLOCK_SIZE_BYTES);
      for (let block = Math.floor(within / BLOCK_SIZE_BYTES); block < end; block++)
        this.#requireRight(cached, region, block);
      cached.data.copy(bytes, done, within, within + count);
      done += count;
    }
  }

  #load(region: number): CachedRegion {
    const found = this.#cache.get(region);
    if (found !== undefined) return found;
    const [oldest] = this.#cache.keys();
    const isFull = this.#cache.size >= CACHED_REGIONS && oldest !== undefined;
    const taken = isFull ? this.#cache.get(oldest) : undefined;
    if (isFull) this.#cache.delete(oldest);
    const cached = taken ?? {
      data: Buffer.alloc(REGION_BYTES),
      checksums: Buffer.alloc(REGION_BLOCKS * CHECKSUM_BYTES),
      checked: new Uint8Array(REGION_BLOCKS),
    };
    cached.checked.fill(0);
    this.#view.readChecksums(region, cached.checksums);
    this.#view.readData(region, cached.data);
    this.#cache.set(region, cached);
    return cached;
  }

  #requireRight({ data, checksums, checked }: CachedRegion, region: number, block: number): void {
    if (checked[block] === 1) return;
    if (!matchesChecksum(blockAt(data, block), checksums, block))
      throw new CowbirdError(
        'EIO',
        `the version is damaged at ${(region * REGION_BLOCKS + block) * BLOCK_SIZE_BYTES}: \`cowbird verify\` tells more`,
        { outcome: 'failed' },
      );
    checked[block] = 1;
  }
}

function openUnnamed(place: string): number {
  try {
    const folder = mkdtempSync(join(place, 'cowbird-overlay-'));
    try {
      const path = join(folder, 'blocks');
      const fd = openSync(path, 'wx+', 0o600);
      unlinkSync(path);
      return fd;
    } finally {
      rmdirSync(folder);
    }
  } catch (error) {
    throw new CowbirdError(
      codeOf(errnoOfError(error)),
      `What is written to the device cannot be kept in ${place} (${messageOf(error)}): name another directory with TMPDIR`,
    );
  }
}

/** Writes in whole blocks to a file without a name: it is gone with its last user. */
class Overlay {
  readonly #fd: number;
  readonly #written: Uint8Array;
  readonly #block = Buffer.alloc(BLOCK_SIZE_BYTES);

  /** @throws {CowbirdError} with how to have it elsewhere. */
  constructor(sizeBytes: number) {
    this.#fd = openUnnamed(tmpdir());
    this.#written = makeBits(regionCount(sizeBytes));
  }

  has(block: number): boolean {
    return hasBit(this.#written, block);
  }

  read(bytes: Buffer, offset: number): void {
    for (let done = 0; done < bytes.byteLength; ) {
      const count = readSync(this.#fd, bytes, done, bytes.byteLength - done, offset + done);
      if (count === 0) throw new CowbirdError('EIO', `the overlay ends at ${offset + done}`, { outcome: 'failed' });
      done += count;
    }
  }

  /** Writes to one block; what it does not cover comes from `before`. */
  writeBlock(block: number, at: number, bytes: Buffer, before: (whole: Buffer) => void): void {
    const isWhole = bytes.byteLength === BLOCK_SIZE_BYTES;
    if (!isWhole) before(this.#block);
    bytes.copy(this.#block, at);
    for (let done = 0; done < BLOCK_SIZE_BYTES; )
      done += writeSync(this.#fd, this.#block, done, BLOCK_SIZE_BYTES - done, block * BLOCK_SIZE_BYTES + done);
    setBit(this.#written, block);
  }

  close(): void {
    closeSync(this.#fd);
  }
}

/** The device's contents: the base, under the overlay where it is writable. Used by one thread. */
export class DeviceTarget implements SessionTarget {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly #base: Base;
  readonly #overlay: Overlay | undefined;

  constructor(base: Base, writable: boolean) {
    this.#base = base;
    this.sizeBytes = base.sizeBytes;
    this.readOnly = !writable;
    this.#overlay = writable ? new Overlay(base.sizeBytes) : undefined;
  }

  read(buffer: WireBuffer, lengthBytes: number, offset: number): void {
    this.readBytes(dataOf(buffer, lengthBytes), offset);
  }

  write(buffer: WireBuffer, lengthBytes: number, offset: number): void {
    this.writeBytes(dataOf(buffer, lengthBytes), offset);
  }

  zero(offset: number, lengthBytes: number): void {
    const zeros = Buffer.alloc(Math.min(lengthBytes, REGION_BYTES));
    for (let done = 0; done < lengthBytes; done += zeros.byteLength)
      this.writeBytes(zeros.subarray(0, Math.min(zeros.byteLength, lengthBytes - done)), offset + done);
  }

  /** Nothing here outlives the process. */
  flush(): void {}

  readBytes(bytes: Buffer, offset: number): void {
    const overlay = this.#overlay;
    if (overlay === undefined) {
      this.#base.read(bytes, offset);
      return;
    }
    // What was written over is not asked for below: a damaged block there would be one for ever.
    let start = 0;
    let end = 0;
    const readBase = (): void => {
      if (end > start) this.#base.read(bytes.subarray(start, end), offset + start);
    };
    this.#forBlocks(bytes, offset, (block, at, piece) => {
      if (overlay.has(block)) {
        readBase();
        overlay.read(piece, block * BLOCK_SIZE_BYTES + at);
        start = end + piece.byteLength;
      }
      end += piece.byteLength;
    });
    readBase();
  }

  writeBytes(bytes: Buffer, offset: number): void {
    const overlay = this.#overlay;
    if (overlay === undefined) throw new CowbirdError('EROFS', 'The device is read-only');
    this.#forBlocks(bytes, offset, (block, at, piece) =>
      overlay.writeBlock(block, at, piece, (whole) => this.readBytes(whole, block * BLOCK_SIZE_BYTES)),
    );
  }

  #forBlocks(bytes: Buffer, offset: number, visit: (block: number, at: number, piece: Buffer) => void): void {
    for (let done = 0; done < bytes.byteLength; ) {
      const block = Math.floor((offset + done) / BLOCK_SIZE_BYTES);
      const at = offset + done - block * BLOCK_SIZE_BYTES;
      const count = Math.min(BLOCK_SIZE_BYTES - at, bytes.byteLength - done);
      visit(block, at, bytes.subarray(done, done + count));
      done += count;
    }
  }
}

function dataOf(buffer: WireBuffer, lengthBytes: number): Buffer {
  const { buffer: memory, byteOffset } = buffer.bytes;
  return Buffer.from(memory, byteOffset + DATA_OFFSET, lengthBytes);
}
