/**
 * The helper's work on COW files: creating them where they cannot hurt, proving where they lie, handing them over.
 *
 * A file on the volume itself goes through: create (without a name, where the file system can), allocate, write header and
 * index region for real (an unwritten extent reads as zeros whatever is on the disk), name, fsync, extents, nonces, immutable.
 * Whatever fails, the file is removed again.
 */
import { createHash, randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  fsyncSync,
  lstatSync,
  openSync,
  readSync,
  realpathSync,
  statfsSync,
  statSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { decodeHeader } from '../cow/header.js';
import { encodeEntriesFromBitmap } from '../cow/index-codec.js';
import { assert, CowbirdError, errnoOfError } from '../sys/errors.js';
import { type FileExtent, fileExtents, isRealtimeFile, openUnnamed, setImmutable } from '../sys/fsfile.js';
import * as libc from '../sys/libc.js';
import { BLOCK_BYTES, layoutFor } from '../tracer/layout.js';
import type { CreatedStore, HelperCalls, StoreFile } from './helper-calls.js';
import { whileMapped } from './helper-descriptors.js';
import { isStore, removeName, unlinkStore, whileMutable, withStore } from './helper-files.js';
import { placeOf, type StorePlace } from './helper-place.js';
import { writeManyZeros, writeWhole, writeZeros } from './helper-writes.js';

const EOPNOTSUPP = 95;
const MODE = 0o600;

type Params<N extends keyof HelperCalls> = HelperCalls[N]['params'];

/** Creates and allocates a COW file. On any failure nothing is left. */
export function createStore(params: Params<'createStore'>): CreatedStore {
  refuseExisting(params.path);
  const place = placeOf(params);
  const created = fillStore(params, place, true) ?? fillStore(params, place, false);
  assert(created !== undefined, 'a file that is made with its name has it');
  return created;
}

/**
 * Without a name while it is filled, which takes seconds: a helper that is killed leaves nothing. Undefined where such a file can
 * be had and not be given a name.
 */
function fillStore(params: Params<'createStore'>, place: StorePlace, unnamed: boolean): CreatedStore | undefined {
  const { path, sizeBytes } = params;
  const unnamedFd = unnamed ? openUnnamed(dirname(path), MODE) : undefined;
  const fd =
    unnamedFd ?? openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, MODE);
  let isNamed = unnamedFd === undefined;
  try {
    refuseTooLarge(path, sizeBytes);
    allocate(fd, sizeBytes);
    writeManyZeros(fd, params.indexBytes);
    if (place.kind === 'origin' && isRealtimeFile(fd)) {
      throw new CowbirdError(
        'EINVAL',
        `${path} lies on an XFS realtime device, not on the volume: put the COW file elsewhere`,
      );
    }
    // Before it has a name: what comes behind that is short.
    fsyncSync(fd);
    if (!isNamed && !tryName(fd, path)) return undefined;
    isNamed = true;
    const created = { path: realpathSync(path), ...identityOf(fd) };
    notKept.push(created);
    fsyncSync(fd);
    syncDirectory(path);
    return { ...place, ...created, sizeBytes };
  } catch (error) {
    if (isNamed) removeName({ path, ...identityOf(fd) });
    throw asRefusal(error, `COW file ${path} of ${sizeBytes} bytes`);
  } finally {
    closeSync(fd);
  }
}

function identityOf(fd: number): Pick<StoreFile, 'dev' | 'ino'> {
  const { dev, ino } = fstatSync(fd);
  return { dev, ino };
}

/** EPERM, ENOENT, EACCES, EXDEV, EOPNOTSUPP: this file system, or somebody who guards it, gives such files no names. */
const NO_NAME = [1, 2, 13, 18, 95];

function tryName(fd: number, path: string): boolean {
  try {
    libc.linkDescriptor(fd, path);
    return true;
  } catch (error) {
    if (NO_NAME.includes(errnoOfError(error))) return false;
    throw error;
  }
}

/** Created, and in nobody's hands but ours: an engine that dies before it has told the keeper would leave them behind. */
const notKept: StoreFile[] = [];

/** Somebody else sees to the file from now on. */
export function keepStore({ file }: Params<'keepStore'>): null {
  const at = notKept.findIndex(({ ino }) => ino === file.ino);
  if (at >= 0) notKept.splice(at, 1);
  return null;
}

export function hasNotKept(): boolean {
  return notKept.length > 0;
}

/** Removes what was created and not kept, when the parent has gone. */
export function removeNotKept(): void {
  for (const file of notKept.splice(0)) if (isStore({ file }).present) unlinkStore({ file });
}

function refuseExisting(path: string): void {
  const parent = dirname(path);
  if (!existsSync(parent)) throw new CowbirdError('ENOENT', `The directory ${parent} of the COW file does not exist`);
  if (!statSync(parent).isDirectory()) throw new CowbirdError('ENOTDIR', `${parent} is not a directory`);
  let stats: ReturnType<typeof lstatSync>;
  try {
    stats = lstatSync(path);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return;
    throw error;
  }
  if (stats.isDirectory()) throw new CowbirdError('EISDIR', `The COW path ${path} is a directory: name a file in it`);
  throw new CowbirdError('EEXIST', `${path} exists already: name a new file, or remove it first`);
}

function refuseTooLarge(path: string, sizeBytes: number): void {
  const { bavail, bsize, bfree } = statfsSync(dirname(path));
  if (sizeBytes > bfree * bsize) {
    throw new CowbirdError(
      'ENOSPC',
      `A COW file of ${sizeBytes} bytes does not fit: ${bavail * bsize} bytes are free on its file system`,
    );
  }
}

/** fallocate, or zeros written where the file system has none (ext2, ext3). */
function allocate(fd: number, sizeBytes: number): void {
  try {
    libc.fallocate(fd, 0, 0, sizeBytes);
  } catch (error) {
    if (errnoOfError(error) !== EOPNOTSUPP) throw error;
    writeZeros(fd, 0, sizeBytes);
  }
}

function readWhole(fd: number, bytes: Uint8Array, at: number): void {
  let done = 0;
  while (done < bytes.byteLength) {
    const count = readSync(fd, bytes, done, bytes.byteLength - done, at + done);
    if (count === 0) throw new CowbirdError('EIO', `The COW file ends at ${at + done}`, { outcome: 'failed' });
    done += count;
  }
}

function syncDirectory(path: string): void {
  const fd = openSync(dirname(path), constants.O_RDONLY);
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function asRefusal(error: unknown, subject: string): unknown {
  if (error instanceof CowbirdError) return error;
  const errno = errnoOfError(error);
  if (errno === 28)
    return new CowbirdError('ENOSPC', `No space for the ${subject}: free some, or choose a smaller size`);
  if (errno === 27) return new CowbirdError('EFBIG', `The ${subject} is larger than its file system allows`);
  return error;
}

export function extentsOf(params: Params<'extents'>): { extents: FileExtent[] } {
  return withStore(params.file, constants.O_RDONLY, (fd) => {
    fsyncSync(fd);
    return { extents: fileExtents(fd, params.sizeBytes) };
  });
}

/** Random blocks through the file system; the engine reads them back through the origin. */
export function writeNonces(params: Params<'writeNonces'>): { nonces: string[] } {
  return whileMutable(params.file, (fd) => {
    const nonces = params.offsets.map((offset) => {
      const bytes = randomBytes(BLOCK_BYTES);
      writeWhole(fd, bytes, offset);
      return createHash('sha256').update(bytes).digest('hex');
    });
    fsyncSync(fd);
    return { nonces };
  });
}

/** The header and index region must read as zeros again. */
export function eraseNonces(params: Params<'eraseNonces'>): null {
  return withStore(params.file, constants.O_RDWR, (fd) => {
    for (const offset of params.offsets) {
      if (offset < params.indexBytes) writeZeros(fd, offset, offset + BLOCK_BYTES);
    }
    fsyncSync(fd);
    libc.dropCache(fd);
    return null;
  });
}

export function makeImmutable(params: Params<'setImmutable'>): { supported: boolean } {
  return withStore(params.file, constants.O_RDONLY, (fd) => ({ supported: setImmutable(fd, params.immutable) }));
}

export function truncateStore(params: Params<'truncateStore'>): null {
  return whileMutable(params.file, (fd) => {
    libc.ftruncate(fd, params.lengthBytes);
    fsyncSync(fd);
    libc.dropCache(fd);
    if (params.immutable) setImmutable(fd, true);
    return null;
  });
}

export function growStore(params: Params<'growStore'>): null {
  const { file, fromBytes, toBytes, reservedBytes } = params;
  const { bavail, bsize } = withStore(file, constants.O_RDONLY, (fd) => statfsSync(`/proc/self/fd/${fd}`));
  if (toBytes - fromBytes + reservedBytes > bavail * bsize) {
    throw new CowbirdError(
      'ENOSPC',
      `The COW file cannot grow by ${toBytes - fromBytes} bytes: ${bavail * bsize} are free and ${reservedBytes} are reserved`,
    );
  }
  return whileMutable(file, (fd) => {
    try {
      try {
        libc.fallocate(fd, 0, fromBytes, toBytes - fromBytes);
      } catch (error) {
        if (errnoOfError(error) !== EOPNOTSUPP) throw error;
        writeZeros(fd, fromBytes, toBytes);
      }
      fsyncSync(fd);
      return null;
    } catch (error) {
      libc.ftruncate(fd, fromBytes);
      throw asRefusal(error, `COW file ${file.path} of ${toBytes} bytes`);
    } finally {
      if (params.immutable) setImmutable(fd, true);
    }
  });
}

/**
 * The file of a closed sequence gets its final header and index through the file system, so that every reader through the
 * file system sees them: its engine-written blocks below were never in the page cache. Then it is mutable again.
 */
export function closeStore(params: Params<'closeStore'>): null {
  const { file, memoryFd, mapOffset, blockCount } = params;
  const header = Buffer.from(params.header, 'base64');
  decodeHeader(header);
  return whileMutable(file, (fd) => {
    libc.ftruncate(fd, params.dataOffsetBytes);
    libc.dropCache(fd);
    whileMapped(memoryFd, mapOffset, layoutFor(blockCount).mapBytes, (bytes) =>
      writeIndex(fd, new Int32Array(bytes), blockCount),
    );
    fsyncSync(fd);
    writeWhole(fd, header, 0);
    fsyncSync(fd);
    libc.dropCache(fd);
    const back = Buffer.alloc(BLOCK_BYTES);
    readWhole(fd, back, 0);
    if (!back.equals(header)) {
      throw new CowbirdError('EIO', `The header of ${file.path} does not read back as it was written`, {
        outcome: 'failed',
      });
    }
    syncDirectory(file.path);
    return null;
  });
}

function writeIndex(fd: number, map: Int32Array, blockCount: number): void {
  const page = Buffer.alloc(BLOCK_BYTES);
  const entriesPerPage = BLOCK_BYTES / 8;
  for (let first = 0; first < blockCount; first += entriesPerPage) {
    if (!hasBits(map, first, entriesPerPage)) continue;
    encodeEntriesFromBitmap(map, first, Math.min(entriesPerPage, blockCount - first), page.fill(0));
    writeWhole(fd, page, BLOCK_BYTES + first * 8);
  }
}

function hasBits(map: Int32Array, first: number, count: number): boolean {
  const end = Math.min(map.length, (first + count) / 32);
  for (let word = first / 32; word < end; word++) if (map[word] !== 0) return true;
  return false;
}
