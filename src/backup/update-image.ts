/**
 * Updating an image: the changed blocks of a snapshot, and nothing else, are written over an image of the one before.
 *
 * Reads of close runs are merged (what lies between is read, never written). A block that cannot be read or written is
 * counted and the rest goes on; the image is synced before success is told. Killed at any point it can be run again with the
 * same arguments: it writes the same bytes to the same places.
 */
import { closeSync, constants, fstatSync, fsyncSync, openSync } from 'node:fs';
import type { BlockRun, PositionedReader } from '../cow/file.js';
import { BLOCK_SIZE_BYTES, blockCount } from '../cow/geometry.js';
import type { CowHeader } from '../cow/header.js';
import { blockDeviceSizeBytes } from '../sys/blkdev.js';
import { assert, CowbirdError, codeOf, errnoOfError } from '../sys/errors.js';
import {
  type CopyResult,
  type CopySource,
  copyGroups,
  type Group,
  type Range,
  readWhole,
  TRANSFER_BYTES,
} from './copy-groups.js';

/** Runs closer than this are read in one go: reading 64 KiB more costs less than another request. */
const GAP_BYTES_MAX = 65_536;

export interface UpdateRequest {
  source: CopySource;
  /** Changed blocks, ascending, inside the volume. Taken as it goes: read a list that may yet prove wrong to its end first. */
  changed: Iterable<BlockRun>;
  imagePath: string;
  /** Hears how many changed blocks are done. */
  onProgress?: ((doneBlocks: number) => void) | undefined;
  signal?: AbortSignal | undefined;
}

export type UpdateResult = CopyResult;

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
    copyGroups(mergeRuns(request.changed, source.lengthBytes), {
      source,
      fd,
      result,
      onProgress: request.onProgress,
      signal: request.signal,
    });
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

function* mergeRuns(runs: Iterable<BlockRun>, sizeBytes: number): Generator<Group, void, undefined> {
  let group: [Range, ...Range[]] | undefined;
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
      if (group !== undefined && !isClose(group, offset)) {
        yield group;
        group = undefined;
      }
      const start: number = group?.[0].offset ?? offset;
      const range = { offset, lengthBytes: Math.min(end - offset, start + TRANSFER_BYTES - offset) };
      if (group === undefined) group = [range];
      else group.push(range);
      offset += range.lengthBytes;
    }
  }
  if (group !== undefined) yield group;
}

/** Whether a block at `offset` is better read with the group before it. */
function isClose(group: Group, offset: number): boolean {
  const [first] = group;
  const last = group.at(-1) ?? first;
  const gapBytes = offset - last.offset - last.lengthBytes;
  return gapBytes <= GAP_BYTES_MAX && offset + BLOCK_SIZE_BYTES <= first.offset + TRANSFER_BYTES;
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
