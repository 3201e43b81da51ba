/**
 * Updating an image: the changed blocks of a snapshot, and nothing else, are written over an image of the one before.
 *
 * Reads of close runs are merged (what lies between is read, never written). A block that cannot be read or written is
 * counted and the rest goes on; the image is synced before success is told. Killed at any point it can be run again with the
 * same arguments: it writes the same bytes to the same places.
 */
import { closeSync, constants, fstatSync, fsyncSync, openSync, writeSync } from 'node:fs';
import type { BlockRun, PositionedReader } from '../cow/file.js';
import { BLOCK_SIZE_BYTES, blockCount } from '../cow/geometry.js';
import type { CowHeader } from '../cow/header.js';
import { blockDeviceSizeBytes } from '../sys/blkdev.js';
import { assert, CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';

const TRANSFER_BYTES = 1_048_576;
/** Runs closer than this are read in one go: reading 64 KiB more costs less than another request. */
const GAP_BYTES_MAX = 65_536;

export interface UpdateRequest {
  source: PositionedReader;
  /** Changed blocks, ascending, inside the volume. Taken as it goes: read a list that may yet prove wrong to its end first. */
  changed: Iterable<BlockRun>;
  imagePath: string;
  /** Hears how many changed blocks are done. */
  onProgress?: ((doneBlocks: number) => void) | undefined;
  signal?: AbortSignal | undefined;
}

export interface UpdateResult {
  changedBlocks: number;
  writtenBytes: number;
  errors: number;
  /** The first failures, in words with their offsets. */
  failures: string[];
}

const FAILURES_KEPT = 10;

/**
 * Whether this COW file lists the changes from an image to this snapshot.
 *
 * @throws {CowbirdError} EINVAL, with what does not match.
 */
export function validateForUpdate(header: CowHeader, snapshot: { uuid: string; sequenceId: number }): void {
  const uuid = Buffer.from(header.uuid).toString('hex');
  if (uuid !== snapshot.uuid) {
    throw new CowbirdError(
      'EINVAL',
      `cow file uuid does not match snapshot: the snapshot's is ${snapshot.uuid}, the file's is ${uuid}`,
    );
  }
  if (header.sequenceId !== snapshot.sequenceId - 1) {
    throw new CowbirdError(
      'EINVAL',
      `snapshot provided does not immediately follow the snapshot that created the cow file: its sequence is ${snapshot.sequenceId}, the file's is ${header.sequenceId}`,
    );
  }
  if (!header.clean) {
    throw new CowbirdError(
      'EINVAL',
      'the COW file is unclean, so its list of changes may have holes: compare contents instead (`update-img --scan`)',
    );
  }
}

/** Copies the changed blocks. Refuses an image of another size before anything is written. */
export function updateImage(request: UpdateRequest): UpdateResult {
  const { source } = request;
  const fd = openSync(request.imagePath, constants.O_RDWR);
  try {
    requireSize(fd, request.imagePath, source.lengthBytes);
    const result: UpdateResult = { changedBlocks: 0, writtenBytes: 0, errors: 0, failures: [] };
    const buffer = Buffer.alloc(TRANSFER_BYTES);
    for (const group of mergeRuns(request.changed, source.lengthBytes)) {
      if (request.signal?.aborted === true) {
        throw new CowbirdError('EINTR', 'Interrupted: run it again with the same arguments', { outcome: 'partial' });
      }
      copyGroup(fd, source, group, buffer, result);
      request.onProgress?.(result.changedBlocks);
    }
    makeDurable(fd, request.imagePath);
    return result;
  } finally {
    closeSync(fd);
  }
}

/** An image is a file of exactly the source's size, or a block device that has room for it. */
function requireSize(fd: number, path: string, sizeBytes: number): void {
  const stats = fstatSync(fd);
  if (!stats.isFile() && !stats.isBlockDevice()) {
    throw new CowbirdError('EINVAL', `${path} is neither a file nor a block device: it is not an image of this volume`);
  }
  const imageBytes = stats.isFile() ? stats.size : blockDeviceSizeBytes(fd);
  if (stats.isFile() ? imageBytes !== sizeBytes : imageBytes < sizeBytes) {
    throw new CowbirdError(
      'EINVAL',
      `${path} has ${imageBytes} bytes and the snapshot ${sizeBytes}: it is not an image of this volume`,
    );
  }
}

function makeDurable(fd: number, path: string): void {
  try {
    fsyncSync(fd);
  } catch (error) {
    const advice = 'what was copied may not be on the disk; check it, and run this again with the same arguments';
    const code = codeOf(errnoOfError(error));
    throw new CowbirdError(code, `${path} could not be synced (${code}): ${advice}`, {
      outcome: 'partial',
      cause: error,
    });
  }
}

interface Range {
  offset: number;
  lengthBytes: number;
}

/** Ranges that are read in one transfer, first to last. */
type Group = Range[];

function* mergeRuns(runs: Iterable<BlockRun>, sizeBytes: number): Generator<Group, void, undefined> {
  let group: Group = [];
  let start = 0;
  let nextBlock = 0;
  const blocks = blockCount(sizeBytes);
  for (const run of runs) {
    // A run out of order would be copied from the wrong place of the buffer.
    assert(
      run.firstBlock >= nextBlock && run.blockCount > 0,
      `run at block ${run.firstBlock} ascends from ${nextBlock}`,
    );
    nextBlock = run.firstBlock + run.blockCount;
    assert(nextBlock <= blocks, `run up to block ${nextBlock} ends within ${blocks} blocks`);
    let offset = run.firstBlock * BLOCK_SIZE_BYTES;
    const end = Math.min(nextBlock * BLOCK_SIZE_BYTES, sizeBytes);
    while (offset < end) {
      const last = group.at(-1);
      const gap = last === undefined ? 0 : offset - last.offset - last.lengthBytes;
      if (last !== undefined && (gap > GAP_BYTES_MAX || offset + BLOCK_SIZE_BYTES > start + TRANSFER_BYTES)) {
        yield group;
        group = [];
      }
      if (group.length === 0) start = offset;
      const lengthBytes = Math.min(end - offset, start + TRANSFER_BYTES - offset);
      group.push({ offset, lengthBytes });
      offset += lengthBytes;
    }
  }
  if (group.length > 0) yield group;
}

function copyGroup(fd: number, source: PositionedReader, group: Group, buffer: Buffer, result: UpdateResult): void {
  const [first] = group;
  const last = group.at(-1);
  if (first === undefined || last === undefined) return;
  const lengthBytes = last.offset + last.lengthBytes - first.offset;
  try {
    readWhole(source, buffer.subarray(0, lengthBytes), first.offset);
  } catch (error) {
    // One bad block must not take its neighbours with it: each block on its own.
    for (const range of group) copyByBlock(fd, source, range, buffer, result, messageOf(error));
    return;
  }
  for (const { offset, lengthBytes: rangeBytes } of group) {
    const at = offset - first.offset;
    writeRange(fd, buffer.subarray(at, at + rangeBytes), offset, result);
  }
}

function copyByBlock(
  fd: number,
  source: PositionedReader,
  range: Range,
  buffer: Buffer,
  result: UpdateResult,
  cause: string,
): void {
  const end = range.offset + range.lengthBytes;
  for (let offset = range.offset; offset < end; offset += BLOCK_SIZE_BYTES) {
    const piece = buffer.subarray(0, Math.min(BLOCK_SIZE_BYTES, end - offset));
    try {
      readWhole(source, piece, offset);
    } catch (error) {
      fail(result, `block at ${offset}: ${messageOf(error)} (${cause})`);
      continue;
    }
    writeRange(fd, piece, offset, result);
  }
}

/** Writes a range. Where that fails, each of its blocks on its own: one bad block must not take its neighbours with it. */
function writeRange(fd: number, bytes: Uint8Array, offset: number, result: UpdateResult): void {
  try {
    writeWhole(fd, bytes, offset);
    result.writtenBytes += bytes.byteLength;
    result.changedBlocks += blockCount(bytes.byteLength);
  } catch (error) {
    if (bytes.byteLength <= BLOCK_SIZE_BYTES) {
      fail(result, `write at ${offset}: ${messageOf(error)}`);
      return;
    }
    for (let at = 0; at < bytes.byteLength; at += BLOCK_SIZE_BYTES) {
      writeRange(fd, bytes.subarray(at, at + BLOCK_SIZE_BYTES), offset + at, result);
    }
  }
}

function writeWhole(fd: number, bytes: Uint8Array, offset: number): void {
  let done = 0;
  while (done < bytes.byteLength) {
    const count = writeSync(fd, bytes, done, bytes.byteLength - done, offset + done);
    if (count <= 0) throw new CowbirdError('EIO', `nothing was written at ${offset + done}`, { outcome: 'failed' });
    done += count;
  }
}

function fail(result: UpdateResult, message: string): void {
  result.errors++;
  if (result.failures.length < FAILURES_KEPT) result.failures.push(message);
}

function readWhole(source: PositionedReader, bytes: Uint8Array, offset: number): void {
  let done = 0;
  while (done < bytes.byteLength) {
    const count = source.read(bytes.subarray(done), offset + done);
    if (count <= 0) throw new CowbirdError('EIO', `nothing to read at ${offset + done}`, { outcome: 'failed' });
    done += count;
  }
}

/** The blocks that differ between a snapshot and an image, found by reading both: for when no list of changes is left. */
export function* differingRuns(
  source: PositionedReader,
  image: PositionedReader,
  onProgress?: (bytes: number) => void,
): Generator<BlockRun, void, undefined> {
  const a = Buffer.alloc(TRANSFER_BYTES);
  const b = Buffer.alloc(TRANSFER_BYTES);
  let run: BlockRun | undefined;
  for (let offset = 0; offset < source.lengthBytes; offset += TRANSFER_BYTES) {
    const lengthBytes = Math.min(TRANSFER_BYTES, source.lengthBytes - offset);
    readWhole(source, a.subarray(0, lengthBytes), offset);
    readWhole(image, b.subarray(0, lengthBytes), offset);
    for (let at = 0; at < lengthBytes; at += BLOCK_SIZE_BYTES) {
      const end = Math.min(at + BLOCK_SIZE_BYTES, lengthBytes);
      const block = (offset + at) / BLOCK_SIZE_BYTES;
      if (a.compare(b, at, end, at, end) !== 0) {
        if (run !== undefined && run.firstBlock + run.blockCount === block) run.blockCount++;
        else {
          if (run !== undefined) yield run;
          run = { firstBlock: block, blockCount: 1 };
        }
      }
    }
    onProgress?.(offset + lengthBytes);
  }
  if (run !== undefined) yield run;
}
