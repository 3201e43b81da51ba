/** `update-img`: finds the snapshot, checks that the COW file belongs to it, updates the image. */
import { realpathSync } from 'node:fs';
import { type ClientOptions, call } from '../control/client.js';
import type { SnapshotStatus } from '../control/schema.js';
import { type CowFile, readCowFile } from '../cow/file.js';
import { DirectReader } from '../sys/direct-reader.js';
import { CowbirdError, errnoOfError, messageOf } from '../sys/errors.js';
import { differingRuns, type UpdateResult, updateImage, validateForUpdate } from './update-image.js';

export interface UpdateImageOptions {
  /** `/dev/cowbird<minor>`, one of its aliases, or the node behind it. */
  snapshot: string;
  /** COW file of the sequence before; not needed to `scan`. */
  cowFile?: string;
  image: string;
  /** Compare contents instead of trusting a list of changes. */
  scan?: boolean;
  /** Hears the numbers before the first block is copied. */
  onStart?: (numbers: { totalBlocks: number; changedBlocks: number }) => void;
  onProgress?: (doneBlocks: number) => void;
  signal?: AbortSignal;
  client?: ClientOptions;
}

export interface UpdateImageResult extends UpdateResult {
  totalBlocks: number;
}

const BLOCK_BYTES = 4096;

/**
 * Brings an image of the snapshot before up to this snapshot.
 *
 * @throws {CowbirdError} ENOENT for a snapshot that is not there; EINVAL for a COW file or image that does not belong to it.
 */
export async function updateImageFromSnapshot(options: UpdateImageOptions): Promise<UpdateImageResult> {
  const node = resolveSnapshot(options.snapshot);
  const status = await statusOf(node, options);
  const source = new DirectReader(node);
  try {
    const totalBlocks = Math.ceil(source.lengthBytes / BLOCK_BYTES);
    if (options.scan === true) return { ...scan(source, options, totalBlocks), totalBlocks };
    if (options.cowFile === undefined) throw new CowbirdError('EINVAL', 'A COW file is needed, or --scan');
    const reader = new DirectReader(options.cowFile);
    try {
      const cow = openCow(reader, source.lengthBytes, options.cowFile);
      validateForUpdate(cow.header, { uuid: status.uuid ?? '', sequenceId: status.seq_id ?? 0 });
      // The whole list is read and counted before the first block is written: a torn index must not half-update an image.
      const runs = [...cow.changedRuns()];
      const changedBlocks = runs.reduce((sum, run) => sum + run.blockCount, 0);
      options.onStart?.({ totalBlocks, changedBlocks });
      return {
        ...updateImage({
          source,
          changed: runs,
          imagePath: options.image,
          onProgress: options.onProgress,
          signal: options.signal,
        }),
        totalBlocks,
      };
    } finally {
      reader.close();
    }
  } catch (error) {
    if (error instanceof Error && error.name === 'CowFormatError')
      throw new CowbirdError('EINVAL', messageOf(error), { cause: error });
    throw error;
  } finally {
    source.close();
  }
}

function resolveSnapshot(path: string): string {
  try {
    return realpathSync(path);
  } catch (error) {
    if (errnoOfError(error) === 2) throw new CowbirdError('ENOENT', `error opening snapshot: ${path} does not exist`);
    throw error;
  }
}

async function statusOf(node: string, options: UpdateImageOptions): Promise<SnapshotStatus> {
  const { devices } = await call('info', {}, { ...options.client, autostart: false });
  const found = devices.find(({ minor }) => realPathOrEmpty(`/dev/cowbird${minor}`) === node);
  if (found === undefined)
    throw new CowbirdError(
      'EINVAL',
      `${options.snapshot} is not a snapshot device of Cowbird: \`cowbird info\` shows them`,
    );
  return found;
}

function realPathOrEmpty(path: string): string {
  try {
    return realpathSync(path);
  } catch (error) {
    if (errnoOfError(error) === 2) return '';
    throw error;
  }
}

function openCow(reader: DirectReader, volumeBytes: number, path: string): CowFile {
  try {
    return readCowFile(reader, volumeBytes);
  } catch (error) {
    throw new CowbirdError('EINVAL', `${path}: ${messageOf(error)}`, { cause: error });
  }
}

function scan(source: DirectReader, options: UpdateImageOptions, totalBlocks: number): UpdateResult {
  const image = new DirectReader(options.image);
  try {
    if (image.lengthBytes !== source.lengthBytes) {
      throw new CowbirdError(
        'EINVAL',
        `${options.image} has ${image.lengthBytes} bytes and the snapshot ${source.lengthBytes}: it is not an image of this volume`,
      );
    }
    const runs = [...differingRuns(source, image, (bytes) => options.onProgress?.(Math.ceil(bytes / BLOCK_BYTES)))];
    options.onStart?.({ totalBlocks, changedBlocks: runs.reduce((sum, run) => sum + run.blockCount, 0) });
    return updateImage({ source, changed: runs, imagePath: options.image, signal: options.signal });
  } finally {
    image.close();
  }
}
