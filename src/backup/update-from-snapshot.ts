/**
 * `update-img`: finds the snapshot, checks that the COW file belongs to it, updates the image.
 *
 * The snapshot is opened before the daemon is asked about it: a device that is open cannot be destroyed or go to the next
 * sequence, so what the daemon says holds until the end. Nothing is written before everything was checked, the whole list of
 * changes too. Messages begin with the original tool's words.
 */
import { closeSync, openSync, realpathSync } from 'node:fs';
import { type ClientOptions, call } from '../control/client.js';
import { CowFormatError } from '../cow/errors.js';
import { readCowFile } from '../cow/file.js';
import { blockCount } from '../cow/geometry.js';
import { DirectReader } from '../sys/direct-reader.js';
import { CowbirdError, codeOf, errnoOfError } from '../sys/errors.js';
import { differingRuns, type UpdateResult, updateImage, validateForUpdate } from './update-image.js';

export interface UpdateImageOptions {
  /** `/dev/cowbird<minor>`, one of its aliases, or the node behind it. */
  snapshot: string;
  /** COW file of the sequence before; not needed to `scan`. */
  cowFile?: string;
  image: string;
  /** Compare contents instead of trusting a list of changes. */
  scan?: boolean;
  /** Hears the numbers before the first block; `progressBlocks` is what `onProgress` counts up to. */
  onStart?: (numbers: { totalBlocks: number; progressBlocks: number }) => void;
  onProgress?: (doneBlocks: number) => void;
  /** Looked at between transfers, which are synchronous: abort it from `onProgress`, or run this in a worker thread. */
  signal?: AbortSignal;
  client?: ClientOptions;
}

export interface UpdateImageResult extends UpdateResult {
  totalBlocks: number;
}

export interface SnapshotIdentity {
  /** 32 hexadecimal digits. */
  uuid: string;
  sequenceId: number;
}

/** Who knows which snapshot a device node is: the daemon; in tests, a stand-in. */
export interface SnapshotHost {
  /** Undefined for a node that is no snapshot. */
  identify(node: string): Promise<SnapshotIdentity | undefined>;
}

/**
 * Brings an image of the snapshot before up to this snapshot.
 *
 * A block that cannot be read or written is counted in `errors`; the others are copied all the same.
 *
 * @throws {CowbirdError} ENOENT for a snapshot that is not there; EINVAL for a COW file or image that does not belong to it.
 */
export async function updateImageFromSnapshot(
  options: UpdateImageOptions,
  host: SnapshotHost = daemonHost(options.client),
): Promise<UpdateImageResult> {
  const node = opening('snapshot', options.snapshot, () => realpathSync(options.snapshot));
  const source = opening('snapshot', options.snapshot, () => new DirectReader(node));
  try {
    const identity = await host.identify(node);
    if (identity === undefined) {
      const advice = '`cowbird info` shows what is tracked';
      throw new CowbirdError('EINVAL', `${options.snapshot} is not the device of a snapshot of Cowbird: ${advice}`);
    }
    requireImage(options.image);
    if (options.scan === true) return scan(source, options);
    return copyListed(source, identity, options);
  } catch (error) {
    if (error instanceof CowFormatError) throw notUsable(error);
    throw error;
  } finally {
    source.close();
  }
}

/** Asks the running daemon; with none running there is no snapshot, and none is started. */
function daemonHost(client: ClientOptions = {}): SnapshotHost {
  return {
    identify: async (node) => {
      const { devices } = await call('info', {}, { ...client, autostart: false });
      const found = devices.find(({ minor }) => realPathOrEmpty(`/dev/cowbird${minor}`) === node);
      if (found?.uuid === undefined || found.seq_id === undefined) return undefined;
      return { uuid: found.uuid, sequenceId: found.seq_id };
    },
  };
}

function realPathOrEmpty(path: string): string {
  try {
    return realpathSync(path);
  } catch (error) {
    if (codeOf(errnoOfError(error)) === 'ENOENT') return '';
    throw error;
  }
}

/** Opens something; a failure says what it was, in the original tool's words. */
function opening<T>(what: 'snapshot' | 'cow file' | 'image', path: string, open: () => T): T {
  try {
    return open();
  } catch (error) {
    const code = codeOf(errnoOfError(error));
    throw new CowbirdError(code, `error opening ${what} ${path}: ${code}`, { cause: error });
  }
}

function requireImage(path: string): void {
  closeSync(opening('image', path, () => openSync(path, 'r+')));
}

function copyListed(source: DirectReader, identity: SnapshotIdentity, options: UpdateImageOptions): UpdateImageResult {
  const path = options.cowFile;
  if (path === undefined)
    throw new CowbirdError('EINVAL', 'A COW file is needed where contents are not to be compared');
  const reader = opening('cow file', path, () => new DirectReader(path));
  try {
    const cow = readCowFile(reader, source.lengthBytes);
    validateForUpdate(cow.header, identity);
    // The whole list is read and counted before the first block is written: a torn index must not half-update an image.
    const changed = [...cow.changedRuns()];
    const totalBlocks = blockCount(source.lengthBytes);
    const { image: imagePath, onProgress, signal } = options;
    options.onStart?.({ totalBlocks, progressBlocks: changed.reduce((sum, run) => sum + run.blockCount, 0) });
    return { ...updateImage({ source, changed, imagePath, onProgress, signal }), totalBlocks };
  } finally {
    reader.close();
  }
}

function scan(source: DirectReader, options: UpdateImageOptions): UpdateImageResult {
  const totalBlocks = blockCount(source.lengthBytes);
  const image = opening('image', options.image, () => new DirectReader(options.image));
  try {
    if (image.lengthBytes !== source.lengthBytes) {
      const sizes = `has ${image.lengthBytes} bytes and the snapshot ${source.lengthBytes}`;
      throw new CowbirdError('EINVAL', `${options.image} ${sizes}: it is not an image of this volume`);
    }
    const compared = (bytes: number): void => {
      refuseAborted(options.signal);
      options.onProgress?.(blockCount(bytes));
    };
    options.onStart?.({ totalBlocks, progressBlocks: totalBlocks });
    const changed = [...differingRuns(source, image, compared)];
    return { ...updateImage({ source, changed, imagePath: options.image, signal: options.signal }), totalBlocks };
  } finally {
    image.close();
  }
}

function refuseAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw new CowbirdError('EINTR', 'Interrupted: run it again with the same arguments');
}

/** A COW file that cannot be trusted, in the original tool's words where it has some. */
function notUsable(error: CowFormatError): CowbirdError {
  const words = error.code === 'ECOWMAGIC' ? 'invalid magic number from cow file' : 'error reading cow file';
  const advice = 'compare contents instead with `update-img --scan`';
  return new CowbirdError('EINVAL', `${words}: ${error.message}; ${advice}`, { cause: error });
}
