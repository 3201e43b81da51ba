/**
 * The header page of a COW file. dattobd's format, little-endian, 64 bytes in a page of 4096 whose rest is zero:
 *
 *      0  u32  magic      4776
 *      4  u32  flags      1 CLEAN, 2 INDEX_ONLY (incremental), 4 VMALLOC_UPPER
 *      8  u64  fpos       place after the last saved block, in blocks of 4096
 *     16  u64  fsize      length of the file in bytes
 *     24  u64  seqid      1, 2, 3 … in the series
 *     32  16 B uuid       of the series
 *     48  u64  version    0 or 1
 *     56  u64  nr_changed blocks whose index entry is set (version 1)
 *
 * Cowbird's own, in bytes that the peer leaves zero and does not read; absent where all 64 are zero:
 *
 *    512  u32  magic      "CWBX"
 *    516  u32  length     64
 *    520  32 B sha256     fingerprint of the origin's superblock when the file became clean
 *    552  u64  size       of the volume in bytes
 *    560  12 B            zero
 *    572  u32  crc32      (IEEE) of the 60 bytes before
 */

import { CowFormatError } from './errors.js';
import { HEADER_SIZE_BYTES } from './geometry.js';

export const COW_MAGIC = 4776;
const FLAG_CLEAN = 1;
const FLAG_INDEX_ONLY = 2;
const FLAG_VMALLOC_UPPER = 4;
const FLAGS_KNOWN = FLAG_CLEAN + FLAG_INDEX_ONLY + FLAG_VMALLOC_UPPER;

const AT = { magic: 0, flags: 4, fpos: 8, fsize: 16, seqid: 24, uuid: 32, version: 48, changed: 56, end: 64 } as const;
const EXTENSION = {
  start: 512,
  end: 576,
  magic: 0x58425743,
  fingerprint: 520,
  size: 552,
  reserved: 560,
  crc: 572,
} as const;
const UUID_BYTES = 16;
const FINGERPRINT_BYTES = 32;

export interface CowExtension {
  fingerprint: Uint8Array;
  volumeSizeBytes: number;
}

export interface CowHeader {
  /** Guards against a map with a hole: only a closed file says so. */
  clean: boolean;
  /** Guards against taking a mark for a place of saved data. */
  indexOnly: boolean;
  vmallocUpper: boolean;
  /** Guards against appending over saved blocks after a reload. */
  positionBlocks: number;
  /** Guards against a file that was truncated or grown by others. */
  fileSizeBytes: number;
  /** Guards against applying changes to the wrong image of the series. */
  sequenceId: number;
  /** Guards against applying changes of another series. */
  uuid: Uint8Array;
  version: 0 | 1;
  /** Guards against a torn index: must equal the entries that are set. */
  changedBlocks: number;
  /** Guards against use of the origin without Cowbird. */
  extension?: CowExtension;
}

/**
 * The header page. Decoded again and compared by whoever writes it to a disk.
 *
 * @throws {RangeError} for a uuid or fingerprint of another length, or a number that is no safe integer from 0.
 */
export function encodeHeader(header: CowHeader): Buffer {
  requireLength('uuid', header.uuid, UUID_BYTES);
  const page = Buffer.alloc(HEADER_SIZE_BYTES);
  const flags =
    (header.clean ? FLAG_CLEAN : 0) +
    (header.indexOnly ? FLAG_INDEX_ONLY : 0) +
    (header.vmallocUpper ? FLAG_VMALLOC_UPPER : 0);
  page.writeUInt32LE(COW_MAGIC, AT.magic);
  page.writeUInt32LE(flags, AT.flags);
  page.writeBigUInt64LE(wholeNumber('positionBlocks', header.positionBlocks), AT.fpos);
  page.writeBigUInt64LE(wholeNumber('fileSizeBytes', header.fileSizeBytes), AT.fsize);
  page.writeBigUInt64LE(wholeNumber('sequenceId', header.sequenceId), AT.seqid);
  page.set(header.uuid, AT.uuid);
  page.writeBigUInt64LE(BigInt(header.version), AT.version);
  page.writeBigUInt64LE(wholeNumber('changedBlocks', header.changedBlocks), AT.changed);
  if (header.extension !== undefined) encodeExtension(page, header.extension);
  return page;
}

/** @throws {CowFormatError} with the first field that is wrong. */
export function decodeHeader(bytes: Uint8Array): CowHeader {
  if (bytes.byteLength < HEADER_SIZE_BYTES) {
    throw new CowFormatError('ECOWTRUNCATED', 'header length', bytes.byteLength, `${HEADER_SIZE_BYTES} bytes`);
  }
  const page = Buffer.from(bytes.buffer, bytes.byteOffset, HEADER_SIZE_BYTES);
  const magic = page.readUInt32LE(AT.magic);
  if (magic !== COW_MAGIC) {
    const why = magic === 0 ? ' (a file that was never closed, or stale cached pages of one that is in use)' : '';
    throw new CowFormatError('ECOWMAGIC', 'magic', magic, `${COW_MAGIC}${why}`);
  }
  const flags = page.readUInt32LE(AT.flags);
  if (flags > FLAGS_KNOWN) throw new CowFormatError('ECOWFLAGS', 'flags', flags, `a combination of 1, 2 and 4`);
  const version = page.readBigUInt64LE(AT.version);
  if (version !== 0n && version !== 1n) throw new CowFormatError('ECOWVERSION', 'version', version, '0 or 1');
  refuseUnknownBytes(page);
  const extension = decodeExtension(page);
  return {
    clean: (flags & FLAG_CLEAN) !== 0,
    indexOnly: (flags & FLAG_INDEX_ONLY) !== 0,
    vmallocUpper: (flags & FLAG_VMALLOC_UPPER) !== 0,
    positionBlocks: safeNumber(page, AT.fpos, 'ECOWFPOS', 'fpos'),
    fileSizeBytes: safeNumber(page, AT.fsize, 'ECOWSIZE', 'fsize'),
    sequenceId: safeNumber(page, AT.seqid, 'ECOWSEQUENCE', 'seqid'),
    uuid: Uint8Array.from(page.subarray(AT.uuid, AT.uuid + UUID_BYTES)),
    version: version === 1n ? 1 : 0,
    changedBlocks: safeNumber(page, AT.changed, 'ECOWCOUNT', 'nr_changed'),
    ...(extension === undefined ? {} : { extension }),
  };
}

function safeNumber(
  page: Buffer,
  at: number,
  code: 'ECOWFPOS' | 'ECOWSIZE' | 'ECOWSEQUENCE' | 'ECOWCOUNT',
  field: string,
): number {
  const value = page.readBigUInt64LE(at);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new CowFormatError(code, field, value, 'a number below 2^53');
  return Number(value);
}

function requireLength(field: string, bytes: Uint8Array, lengthBytes: number): void {
  if (bytes.byteLength !== lengthBytes) {
    throw new RangeError(`${field} has ${bytes.byteLength} bytes, ${lengthBytes} are its place in the header`);
  }
}

function wholeNumber(field: string, value: number): bigint {
  if (!Number.isSafeInteger(value) || value < 0)
    throw new RangeError(`${field} is ${value}, no whole number below 2^53`);
  return BigInt(value);
}

function encodeExtension(page: Buffer, extension: CowExtension): void {
  requireLength('fingerprint', extension.fingerprint, FINGERPRINT_BYTES);
  page.writeUInt32LE(EXTENSION.magic, EXTENSION.start);
  page.writeUInt32LE(EXTENSION.end - EXTENSION.start, EXTENSION.start + 4);
  page.set(extension.fingerprint, EXTENSION.fingerprint);
  page.writeBigUInt64LE(wholeNumber('volumeSizeBytes', extension.volumeSizeBytes), EXTENSION.size);
  page.writeUInt32LE(crc32(page.subarray(EXTENSION.start, EXTENSION.crc)), EXTENSION.crc);
}

function decodeExtension(page: Buffer): CowExtension | undefined {
  const bytes = page.subarray(EXTENSION.start, EXTENSION.end);
  if (bytes.every((byte) => byte === 0)) return undefined;
  const magic = page.readUInt32LE(EXTENSION.start);
  if (magic !== EXTENSION.magic)
    throw new CowFormatError('ECOWEXTENSION', 'extension magic', magic, `${EXTENSION.magic} or 0`);
  const lengthBytes = page.readUInt32LE(EXTENSION.start + 4);
  if (lengthBytes !== EXTENSION.end - EXTENSION.start) {
    throw new CowFormatError('ECOWEXTENSION', 'extension length', lengthBytes, `${EXTENSION.end - EXTENSION.start}`);
  }
  const stored = page.readUInt32LE(EXTENSION.crc);
  const computed = crc32(page.subarray(EXTENSION.start, EXTENSION.crc));
  if (stored !== computed) throw new CowFormatError('ECOWEXTENSION', 'extension checksum', stored, `${computed}`);
  const reserved = page.subarray(EXTENSION.reserved, EXTENSION.crc).findIndex((byte) => byte !== 0);
  if (reserved >= 0) throw new CowFormatError('ECOWEXTENSION', `byte ${EXTENSION.reserved + reserved}`, 'set', '0');
  const size = page.readBigUInt64LE(EXTENSION.size);
  if (size > BigInt(Number.MAX_SAFE_INTEGER))
    throw new CowFormatError('ECOWEXTENSION', 'volume size', size, 'below 2^53');
  return {
    fingerprint: Uint8Array.from(page.subarray(EXTENSION.fingerprint, EXTENSION.fingerprint + FINGERPRINT_BYTES)),
    volumeSizeBytes: Number(size),
  };
}

function refuseUnknownBytes(page: Buffer): void {
  for (let at: number = AT.end; at < HEADER_SIZE_BYTES; at++) {
    if (at === EXTENSION.start) at = EXTENSION.end;
    const byte = page[at];
    if (byte !== 0) throw new CowFormatError('ECOWEXTENSION', `byte ${at} of the header page`, byte ?? 0, '0');
  }
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = (value & 1) !== 0 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value >>> 0;
});

/** CRC-32 (IEEE 802.3); Node's zlib has it from 20.15 and 22.2, this table serves every version we run on. */
function crc32(bytes: Uint8Array): number {
  let crc = 0xffff_ffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ (CRC_TABLE[(crc ^ byte) & 0xff] ?? 0);
  return (crc ^ 0xffff_ffff) >>> 0;
}
