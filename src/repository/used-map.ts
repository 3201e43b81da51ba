/**
 * Which blocks of the newest version have the source's contents. The others were not in use when it was made, were not read, and
 * are zeros.
 *
 * What changed since a version is told by who sees writes. A repair or an undelete can call a block used again without writing
 * it: then it is in no such list, and the image has zeros where the source has contents. With this map the next version reads
 * every block that is used by now and was left out before.
 *
 * `history/N.used`, for the newest version N unless that is whole; made durable before N counts, removed when N+1 does. Like the
 * manifest, it is believed only as a whole, and for its own version:
 *
 *        0  u32  magic    "CWBU"
 *        4  u32  format   1
 *        8  u64  version
 *       16  u64  size of the version in bytes
 *       24  16 B series
 *       40  8 B  0
 *       48  32 B SHA-256  of the 48 bytes before and of what follows
 *       80  one bit a block, the lowest first, as zlib deflates it (RFC 1950)
 *
 * Without it (damaged, lost) nothing is wrong with the version; the next one is compared with its source block by block.
 */
import { createHash } from 'node:crypto';
import { deflateSync, inflateSync } from 'node:zlib';
import { blockCount } from '../cow/geometry.js';
import { messageOf } from '../sys/errors.js';
import { hasBit, makeBits } from './bits.js';
import { isMediumError, type RepositoryFiles, readPadded } from './files.js';
import { HISTORY, regionCount, usedName } from './layout.js';
import type { ManifestData } from './manifest.js';
import { newestOf, seriesBytes } from './state.js';

const HEADER_BYTES = 80;
const MAGIC = 0x55425743;
const FORMAT = 1;
const AT = { magic: 0, format: 4, version: 8, size: 16, series: 24, digest: 48 } as const;
/** Most of a map is long runs: more effort gains nothing. */
const DEFLATE_LEVEL = 1;
/** What one call of Node's reads, writes or hashes is below 2 GiB. */
const BITS_BYTES_MAX = 2 ** 31 - 4096;
const ENCODED_BYTES_MAX = 2 ** 30;

/** What a used map is of. */
export interface UsedMapFacts {
  version: number;
  sizeBytes: number;
  /** Of the repository. */
  series: Uint8Array;
}

/** Undefined for one that would be too large: of disks of 64 TiB and more. */
export function encodeUsedMap({ version, sizeBytes, series }: UsedMapFacts, bits: Uint8Array): Buffer | undefined {
  if (bits.byteLength > BITS_BYTES_MAX) return undefined;
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt32LE(MAGIC, AT.magic);
  header.writeUInt32LE(FORMAT, AT.format);
  header.writeBigUInt64LE(BigInt(version), AT.version);
  header.writeBigUInt64LE(BigInt(sizeBytes), AT.size);
  header.set(series, AT.series);
  const deflated = deflateSync(bits, { level: DEFLATE_LEVEL });
  if (deflated.byteLength > ENCODED_BYTES_MAX - HEADER_BYTES) return undefined;
  header.set(digestOf(header, deflated), AT.digest);
  return Buffer.concat([header, deflated]);
}

/** The bits, or what is wrong, in words. */
export function decodeUsedMap(bytes: Buffer, facts: UsedMapFacts): { bits: Uint8Array } | { problem: string } {
  const header = bytes.subarray(0, HEADER_BYTES);
  const deflated = bytes.subarray(HEADER_BYTES);
  if (header.byteLength < HEADER_BYTES) return { problem: `it has only ${bytes.byteLength} bytes` };
  if (!digestOf(header, deflated).equals(header.subarray(AT.digest))) return { problem: 'its checksum is wrong' };
  const format = header.readUInt32LE(AT.format);
  if (header.readUInt32LE(AT.magic) !== MAGIC || format !== FORMAT) return { problem: `it is not of format ${FORMAT}` };
  const isOfVersion =
    header.readBigUInt64LE(AT.version) === BigInt(facts.version) &&
    header.readBigUInt64LE(AT.size) === BigInt(facts.sizeBytes) &&
    header.subarray(AT.series, AT.series + facts.series.byteLength).equals(facts.series);
  if (!isOfVersion) return { problem: `it is not of version ${facts.version} of this repository` };
  const bits = makeBits(regionCount(facts.sizeBytes));
  try {
    const inflated = inflateSync(deflated, { maxOutputLength: bits.byteLength });
    if (inflated.byteLength !== bits.byteLength)
      return { problem: `it has bits for ${inflated.byteLength * 8} blocks` };
    bits.set(inflated);
  } catch (error) {
    return { problem: messageOf(error) };
  }
  return { bits };
}

function digestOf(header: Buffer, deflated: Buffer): Buffer {
  return createHash('sha256').update(header.subarray(0, AT.digest)).update(deflated).digest();
}

/** What the newest version has contents of. */
export type NewestUsed =
  /** Of every block. */
  | { kind: 'all' }
  | { kind: 'listed'; bits: Uint8Array }
  /** Nobody knows: why, in words. `isGone`: there is no map, as in what an earlier Cowbird made. */
  | { kind: 'lost'; problem: string; isGone: boolean };

/** Looks at what the newest version's map says. */
export function newestUsed(files: RepositoryFiles, manifest: ManifestData): NewestUsed {
  const { number, whole, sizeBytes } = newestOf(manifest);
  if (whole) return { kind: 'all' };
  const name = usedName(number);
  if (files.witness(name) === undefined) return { kind: 'lost', problem: `${name} is gone`, isGone: true };
  const decoded = readUsedMap(files, name, { version: number, sizeBytes, series: seriesBytes(manifest) });
  if ('bits' in decoded) return { kind: 'listed', ...decoded };
  return { kind: 'lost', problem: `${name}: ${decoded.problem}`, isGone: false };
}

/** What cannot be read is as good as lost. */
function readUsedMap(files: RepositoryFiles, name: string, facts: UsedMapFacts): ReturnType<typeof decodeUsedMap> {
  const file = files.open(name, 'read');
  try {
    const lengthBytes = file.sizeBytes();
    if (lengthBytes > ENCODED_BYTES_MAX) return { problem: `it has ${lengthBytes} bytes` };
    const bytes = Buffer.alloc(lengthBytes);
    readPadded(file, bytes, 0);
    return decodeUsedMap(bytes, facts);
  } catch (error) {
    if (!isMediumError(error)) throw error;
    return { problem: messageOf(error) };
  } finally {
    file.close();
  }
}

/** Writes an encoded map, durable; it counts when its version does. Nothing for one that could not be encoded. */
export function writeUsedMap(files: RepositoryFiles, version: number, encoded: Buffer | undefined): void {
  if (encoded === undefined) return;
  const file = files.open(usedName(version), 'create');
  try {
    file.pwrite(encoded, 0);
    file.fsync();
  } finally {
    file.close();
  }
  files.fsyncFolder(HISTORY);
}

/** Removes the map of a version that is not the newest any more. One that stays after all is removed with the next command. */
export function removeUsedMap(files: RepositoryFiles, version: number): void {
  if (files.witness(usedName(version)) === undefined) return;
  files.unlink(usedName(version));
  files.fsyncFolder(HISTORY);
}

/** What reading a version has told of its blocks. */
export interface ReadBlocks {
  /** That were looked at; undefined for all. */
  candidates: Uint8Array | undefined;
  /** In use when they were looked at; undefined for all. */
  used: Uint8Array | undefined;
}

/** The blocks that a version has contents of, by what was read for it and what the version before had. Undefined for all. */
export function usedAfter(
  { candidates, used }: ReadBlocks,
  before: NewestUsed | undefined,
  sizeBytes: number,
): Uint8Array | undefined {
  if (candidates === undefined || before === undefined || before.kind === 'lost') return used;
  if (before.kind === 'all' && used === undefined) return undefined;
  const bits = makeBits(regionCount(sizeBytes));
  for (let at = 0; at < bits.byteLength; at++) {
    const read = candidates[at] ?? 0;
    const had = before.kind === 'all' ? 255 : (before.bits[at] ?? 0);
    bits[at] = (read & (used?.[at] ?? 255)) | (had & (255 - read));
  }
  return isFull(bits, blockCount(sizeBytes)) ? undefined : bits;
}

function isFull(bits: Uint8Array, blocks: number): boolean {
  const bytes = Math.floor(blocks / 8);
  for (let at = 0; at < bytes; at++) if (bits[at] !== 255) return false;
  for (let block = bytes * 8; block < blocks; block++) if (!hasBit(bits, block)) return false;
  return true;
}

/** The candidates, and what is in use by now while the version before has no contents of it. */
export function withUsedAgain(
  candidates: Uint8Array,
  used: Uint8Array | undefined,
  before: NewestUsed,
  sizeBytes: number,
): Uint8Array {
  if (before.kind !== 'listed') return candidates;
  const all = makeBits(regionCount(sizeBytes));
  for (let at = 0; at < all.byteLength; at++)
    all[at] = (candidates[at] ?? 0) | ((used?.[at] ?? 255) & (255 - (before.bits[at] ?? 0)));
  return all;
}
