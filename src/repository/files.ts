/**
 * The files of a repository, as the code that writes them sees them. `disk-files.ts` has the real ones; tests put simulated
 * ones in their place, which lose and tear what was not made durable.
 *
 * - Names are relative to the repository, such as `history/3.cow`.
 * - Durability: contents and length are durable after the file's `fsync`; that a name exists, is gone or was given to
 *   another file, after `fsyncFolder` of the folder it is in. Before that each may be there or not, whatever the order.
 * - A `rename` is the old state or the new one, never neither.
 * - Whole or error: `pwrite` writes everything or throws; `pread` is short only at the end.
 * - Errors have an errno name as `code`. After an error the contents of what was written are unknown.
 */
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { CowbirdError, errnoOfError } from '../sys/errors.js';
import type { PageFileHandle } from '../sys/page-file.js';

/** What is read by position: a file of the repository, a source, a target. */
export interface ReadableFile {
  /** Reads up to the buffer's length from `offset`; returns how many bytes came, fewer only at the end. */
  pread(bytes: Uint8Array, offset: number): number;
  /** First offset in `[offset, end)` that may hold data; `end` when the whole range is known to be a hole. */
  nextData(offset: number, end: number): number;
  /** Tells that a range will be read soon; advice only. Undefined where there is nobody to be told. */
  prefetch?(offset: number, lengthBytes: number): void;
  /** For worker threads; undefined where the file exists in this thread only. */
  readonly handle: PageFileHandle | undefined;
}

export interface WritableFile extends ReadableFile {
  sizeBytes(): number;
  pwrite(bytes: Uint8Array, offset: number): void;
  /** Makes a range read as zeros and gives its space back where possible. */
  punch(offset: number, lengthBytes: number): void;
  /** Makes a range read as zeros and keeps its space where possible: what it had can be written there again on a full disk. */
  zero(offset: number, lengthBytes: number): void;
  truncate(lengthBytes: number): void;
  fsync(): void;
  /** Takes what is durable out of the page cache; advice only. */
  dropCache(): void;
  close(): void;
}

/** What tells that a file is the one it was, and was not written since. */
export interface FileWitness {
  inode: string;
  sizeBytes: number;
  /** Nanoseconds since 1970, decimal: they do not fit a number. */
  mtimeNs: string;
  ctimeNs: string;
}

/** `create` makes the file or empties it. */
export type OpenMode = 'read' | 'write' | 'create';

export interface Lock {
  release(): void;
}

export interface RepositoryFiles {
  /** Of the repository, for messages. */
  readonly path: string;
  /** Those of another repository, by its absolute path. */
  other(path: string): RepositoryFiles;
  open(name: string, mode: OpenMode): WritableFile;
  /** Undefined where there is no such file. */
  witness(name: string): FileWitness | undefined;
  /** Names in a folder, `''` being the repository; undefined where there is no such folder. */
  list(folder: string): string[] | undefined;
  /** Makes a folder; does nothing where it is. */
  makeFolder(folder: string): void;
  rename(from: string, to: string): void;
  unlink(name: string): void;
  fsyncFolder(folder: string): void;
  /** Bytes that can still be written. */
  freeBytes(): number;
  /** Whether what is written over other contents takes new space before theirs is given back. */
  isCopyOnWrite(): boolean;
  /** Shared or exclusive, without waiting; undefined when somebody else has a lock that stands against it. */
  tryLock(exclusive: boolean): Lock | undefined;
  /** Who has a lock, in words: pid and start. */
  lockHolder(): string;
}

/** Reads up to the buffer's length and fills the rest with zeros; returns how many bytes came. */
export function readPadded(file: ReadableFile, bytes: Uint8Array, offset: number): number {
  const count = file.pread(bytes, offset);
  if (count < bytes.byteLength) bytes.fill(0, count);
  return count;
}

/**
 * What stands for bytes of the repository that their medium does not give back. It has no block's checksum, so that such a block is
 * damaged wherever it is looked at, and nothing else is.
 */
const MARK = 0xdb;

/** As {@link readPadded}; where the medium fails, block by block, with marks for those that cannot be read. */
export function readMarked(file: ReadableFile, bytes: Uint8Array, offset: number): number {
  try {
    return readPadded(file, bytes, offset);
  } catch (error) {
    if (!isMediumError(error)) throw error;
  }
  for (let at = 0; at < bytes.byteLength; ) {
    const toEndOfBlock = BLOCK_SIZE_BYTES - ((offset + at) % BLOCK_SIZE_BYTES);
    const piece = bytes.subarray(at, at + toEndOfBlock);
    try {
      readPadded(file, piece, offset + at);
    } catch (error) {
      if (!isMediumError(error)) throw error;
      piece.fill(MARK);
    }
    at += piece.byteLength;
  }
  return bytes.byteLength;
}

/** Whether this is what {@link readMarked} puts for what cannot be read. */
export function isMark(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === MARK);
}

/** EIO, ENODATA, EILSEQ, EREMOTEIO: the medium could not be read here. */
const MEDIUM_ERRORS = [5, 61, 84, 121];

/** Whether the medium could not be read: an error of a system call, and of no other kind. */
export function isMediumError(error: unknown): boolean {
  const isOfCall = error instanceof Error && 'code' in error && !(error instanceof CowbirdError);
  return isOfCall && MEDIUM_ERRORS.includes(errnoOfError(error));
}
