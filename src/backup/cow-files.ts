/**
 * The COW files of engine `driver`: `.cowbird-<seqid>` in the root of the volume's file system, or
 * `.cowbird-<volume>-<seqid>` in a directory elsewhere.
 *
 * The name is the mark by which a later run, which knows nothing of the one before, tells its own tracking from a user's. A
 * closed file has the list of what changed from its snapshot to the next one. It is kept until a version was made from a later
 * snapshot: then the next version's list is its own alone.
 */
import { closeSync, constants, lstatSync, openSync, readdirSync, statfsSync, unlinkSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { CowFormatError } from '../cow/errors.js';
import { readCowFile } from '../cow/file.js';
import { BLOCK_SIZE_BYTES, blockCount, dataOffsetBytes, defaultStoreBytes } from '../cow/geometry.js';
import { decodeHeader } from '../cow/header.js';
import { addByteRanges, makeBits, setRange } from '../repository/bits.js';
import { regionCount } from '../repository/layout.js';
import { DirectReader } from '../sys/direct-reader.js';
import { CowbirdError, errnoOfError, messageOf } from '../sys/errors.js';
import { setImmutable } from '../sys/fsfile.js';
import type { OwnCowFile } from './free-blocks.js';

const OWN_NAME = /^\.cowbird-(?:.+-)?\d{1,15}$/;
const HEADER_BYTES = 4096;
/** So many closed files are kept for runs that failed one after another; then the next one compares contents. */
const CLOSED_FILES_MAX = 4;
/** What a store has room for beside its index: where there is room, and at least. */
const SAVED_BYTES_USUAL = 134_217_728;
const SAVED_BYTES_MIN = 16_777_216;
const ENOENT = 2;

/** Where the COW files of a volume may be. */
export interface CowPlaces {
  /** Of the volume. */
  name: string;
  sizeBytes: number;
  /** Root of a file system on the volume that can hold them; undefined where there is none. */
  root: string | undefined;
  /** Directory on another file system. */
  elsewhere: string;
  /** Where those of earlier runs may be. */
  earlier: readonly string[];
  /** They are to go elsewhere in any case. */
  mustElsewhere: boolean;
}

/** A series of snapshots, as far as a given one. */
export interface Sequence {
  uuid: string;
  sequenceId: number;
}

/** Whether a COW file has the name of one of ours. */
export function isOwnCowFile(path: string): boolean {
  return OWN_NAME.test(basename(path));
}

function onVolume(root: string, sequenceId: number): string {
  return join(root, `.cowbird-${sequenceId}`);
}

function beside(directory: string, { name }: CowPlaces, sequenceId: number): string {
  return join(directory, `.cowbird-${name}-${sequenceId}`);
}

/** Every place outside of the volume, once. */
function outside({ elsewhere, earlier }: CowPlaces): string[] {
  return [...new Set([elsewhere, ...earlier])];
}

/**
 * Path and size of the next COW file: a tenth of the volume or 128 MiB, whichever is more, but at most half of what is free.
 *
 * @throws {CowbirdError} ENOSPC where no place has room.
 */
export function placeCowFile(places: CowPlaces, sequenceId: number): { path: string; storeBytes: number } {
  const { root, sizeBytes, mustElsewhere } = places;
  const wantedBytes = Math.max(defaultStoreBytes(sizeBytes), storeFor(sizeBytes, SAVED_BYTES_USUAL));
  const paths = [
    ...(root === undefined || mustElsewhere ? [] : [onVolume(root, sequenceId)]),
    beside(places.elsewhere, places, sequenceId),
  ];
  for (const path of paths) {
    const { bavail, bsize } = statfsSync(dirname(path));
    // Files of smaller blocks may begin between ours, and cannot be written by address.
    if (isOnVolume(places, path) && bsize % BLOCK_SIZE_BYTES !== 0) continue;
    const storeBytes = Math.min(wantedBytes, Math.floor((bavail * bsize) / 2));
    if (storeBytes >= storeFor(sizeBytes, SAVED_BYTES_MIN)) return { path, storeBytes };
  }
  throw new CowbirdError(
    'ENOSPC',
    `A COW file for ${places.name} needs ${2 * storeFor(sizeBytes, SAVED_BYTES_MIN)} free bytes, and neither ${paths.map(dirname).join(' nor ')} has them: make room, or name a directory with --cow`,
  );
}

function isOnVolume({ root }: CowPlaces, path: string): boolean {
  return root !== undefined && dirname(path) === resolve(root);
}

/**
 * A COW file in use, where it is in the root of the volume's own file system. `cowFile` is as the status has it: from there, if it is
 * on the volume, and else a path of this machine, at which there is none on the volume.
 */
export function ownCowFile({ root }: CowPlaces, cowFile: string): OwnCowFile | undefined {
  const name = basename(cowFile);
  if (root === undefined || cowFile !== `/${name}`) return undefined;
  const stats = lstatSync(join(root, name), { throwIfNoEntry: false });
  return stats === undefined ? undefined : { name, inode: stats.ino };
}

function storeFor(sizeBytes: number, savedBytes: number): number {
  return dataOffsetBytes(blockCount(sizeBytes)) + Math.min(savedBytes, sizeBytes);
}

/**
 * The blocks that may differ between snapshot `from` of a series and snapshot `to`: what the closed files of the sequences
 * from the one to before the other say.
 *
 * @throws {CowbirdError} EUCLEAN, with the reason why that is not known for sure.
 */
export function changedBetween(places: CowPlaces, from: Sequence, to: number): Uint8Array {
  const bits = makeBits(regionCount(places.sizeBytes));
  for (let sequenceId = from.sequenceId; sequenceId < to; sequenceId++) addClosed(bits, places, from.uuid, sequenceId);
  return bits;
}

function addClosed(bits: Uint8Array, places: CowPlaces, uuid: string, sequenceId: number): void {
  const problems: string[] = [];
  const paths = [
    ...(places.root === undefined ? [] : [onVolume(places.root, sequenceId)]),
    ...outside(places).map((directory) => beside(directory, places, sequenceId)),
  ];
  for (const path of paths) {
    try {
      // Names in a folder that others may write to prove nothing: who can make the file could leave blocks out.
      const reader = new DirectReader(path, { own: true });
      try {
        const cow = readCowFile(reader, places.sizeBytes);
        requireClosed(cow.header, uuid, sequenceId);
        // The whole list is read and counted before the first block of it is believed.
        for (const { firstBlock, blockCount: count } of [...cow.changedRuns()])
          setRange(bits, firstBlock, firstBlock + count);
        return;
      } finally {
        reader.close();
      }
    } catch (error) {
      if (errnoOfError(error) !== ENOENT) problems.push(`${path}: ${messageOf(error)}`);
    }
  }
  const what = problems.length === 0 ? 'is gone' : `cannot be used (${problems.join('; ')})`;
  throw new CowbirdError('EUCLEAN', `the list of changes since snapshot ${sequenceId} ${what}`);
}

function requireClosed(
  header: { uuid: Uint8Array; sequenceId: number; clean: boolean; indexOnly: boolean },
  uuid: string,
  sequenceId: number,
): void {
  const found = Buffer.from(header.uuid).toString('hex');
  const { clean, indexOnly } = header;
  if (found === uuid && header.sequenceId === sequenceId && clean && indexOnly) return;
  const what = `${clean ? 'a clean' : 'an unclean'} file of snapshot ${header.sequenceId} of series ${found}`;
  throw new CowbirdError('EUCLEAN', `it is ${what}, not a closed one of ${sequenceId} of ${uuid}`);
}

/** Removes what is ours and not `current`, all but the newest `keep`. Returns what could not be removed, in words. */
export function removeCowFiles(places: CowPlaces, current: number | undefined, keep: number): string[] {
  const problems: string[] = [];
  const found = ownFiles(places).filter(({ sequenceId }) => sequenceId !== current);
  found.sort((a, b) => b.sequenceId - a.sequenceId);
  for (const { path } of found.slice(keep)) {
    try {
      if (isCowFile(path)) removeFile(path);
    } catch (error) {
      problems.push(`${path} could not be removed: ${messageOf(error)}`);
    }
  }
  return problems;
}

/** Of a run that made no version: the next one may still need the lists. */
export function removeSurplus(places: CowPlaces, current: number): string[] {
  return removeCowFiles(places, current, CLOSED_FILES_MAX);
}

function ownFiles(places: CowPlaces): Array<{ path: string; sequenceId: number }> {
  const found: Array<{ path: string; sequenceId: number }> = [];
  const collect = (directory: string, prefix: string): void => {
    for (const name of namesIn(directory)) {
      const digits = name.startsWith(prefix) ? name.slice(prefix.length) : '';
      if (/^\d{1,15}$/.test(digits)) found.push({ path: join(directory, name), sequenceId: Number(digits) });
    }
  };
  if (places.root !== undefined) collect(places.root, '.cowbird-');
  for (const directory of outside(places)) collect(directory, `.cowbird-${places.name}-`);
  return found;
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch (error) {
    if (errnoOfError(error) === ENOENT) return [];
    throw error;
  }
}

/** A file that only has the name of one of ours is somebody's data. In a restored file system ours read as zeros. */
function isCowFile(path: string): boolean {
  if (!lstatSync(path).isFile()) return false;
  const reader = new DirectReader(path);
  try {
    const head = Buffer.alloc(HEADER_BYTES);
    const count = reader.read(head, 0);
    if (head.subarray(0, count).every((byte) => byte === 0)) return true;
    decodeHeader(head);
    return true;
  } catch (error) {
    if (error instanceof CowFormatError) return false;
    throw error;
  } finally {
    reader.close();
  }
}

function removeFile(path: string): void {
  const fd = openSync(path, constants.O_RDONLY + constants.O_NOFOLLOW);
  try {
    setImmutable(fd, false);
  } finally {
    closeSync(fd);
  }
  unlinkSync(path);
}

/** Adds the blocks of byte ranges to a list of blocks. */
export function addRanges(bits: Uint8Array, ranges: ReadonlyArray<{ offset: number; length: number }>): void {
  addByteRanges(
    bits,
    ranges.map(({ offset, length }) => ({ offset, lengthBytes: length })),
  );
}
