/**
 * A fingerprint of what changes on a disk whenever its file system is used: the proof that nobody mounted the origin
 * between a clean stop and the reload.
 *
 * - The first 128 KiB: ext2/3/4 superblock (write time, mount count, kilobytes written), btrfs superblock (generation), XFS
 *   superblock, partition table.
 * - XFS writes its superblock rarely, but every mount moves the head of its log: the log's cycle numbers are searched for
 *   the head, and the last pieces before it are taken in (layout: XFS on-disk format, "Journaling Log").
 * - The same at the beginning of each partition: the first 128 KiB of a disk that has some are only their table.
 *
 * What it cannot see: a program that writes to the raw origin and leaves all of that alone. Of what keeps file systems out of sight, or
 * its own changes elsewhere (LVM, LUKS, F2FS, FAT, NTFS, swap), nothing is believed: the fingerprint is another one each time.
 */
import { createHash, randomBytes } from 'node:crypto';
import type { BlockDevice, IoBuffer } from '../block/device.js';
import { type FreezableKind, HEAD_BYTES, leavesNoTrace, signatureOf } from '../block/signature.js';
import { BLOCK_SIZE_BYTES } from './geometry.js';

const SECTOR_BYTES = 512;
const XFS_MAGIC = 0x58465342;
const XFS = { blockSize: 4, logStart: 48, agBlocks: 84, logBlocks: 96, agBlocksLog: 124 } as const;
const XLOG_HEADER_MAGIC = 0xfeedbabe;
const LOG_TAIL_SECTORS = 64;
const FINGERPRINT_BYTES = 32;

/**
 * SHA-256 over the parts named above. `buffer` holds at least 128 KiB; `starts` are the bytes at which file systems may begin,
 * ascending, the first of them 0; `own` is the COW file itself.
 */
export function originFingerprint(
  device: BlockDevice,
  buffer: IoBuffer,
  starts: readonly number[] = [0],
  own: readonly OwnBlocks[] = [],
): Uint8Array {
  const hash = createHash('sha256');
  for (const start of starts) if (start < device.sizeBytes) hashPlace(hash, device, buffer, { start, own });
  return hash.digest();
}

/** Blocks of 4096 bytes of the COW file, where it is on the device: they change when it becomes clean, and count as zeros. */
export interface OwnBlocks {
  block: number;
  count: number;
}

type Hash = ReturnType<typeof createHash>;

function hashPlace(
  hash: Hash,
  device: BlockDevice,
  buffer: IoBuffer,
  { start, own }: { start: number; own: readonly OwnBlocks[] },
): void {
  const lengthBytes = Math.min(HEAD_BYTES, device.sizeBytes - start);
  device.read(buffer, 0, lengthBytes, start);
  for (const { block, count } of own) {
    const from = Math.max(0, block * BLOCK_SIZE_BYTES - start);
    const end = Math.min(lengthBytes, (block + count) * BLOCK_SIZE_BYTES - start);
    if (end > from) buffer.bytes.fill(0, from, end);
  }
  if (start > 0) hash.update(`at ${start}`);
  hash.update(buffer.bytes.subarray(0, lengthBytes));
  const head = Buffer.from(buffer.bytes.subarray(0, lengthBytes));
  if (leavesNoTrace(head)) hash.update(randomBytes(FINGERPRINT_BYTES));
  const log = head.byteLength >= SECTOR_BYTES ? xfsLog(head) : undefined;
  if (log === undefined) return;
  const offset = start + log.offset;
  if (offset + log.sectors * SECTOR_BYTES <= device.sizeBytes) hashLogHead(hash, device, buffer, { ...log, offset });
}

interface XfsLog {
  offset: number;
  sectors: number;
}

/** Where an internal XFS log lies; undefined for anything else, and for a superblock that no file system can have. */
function xfsLog(head: Buffer): XfsLog | undefined {
  if (head.readUInt32BE(0) !== XFS_MAGIC) return undefined;
  const blockSize = head.readUInt32BE(XFS.blockSize);
  const start = head.readBigUInt64BE(XFS.logStart);
  const isBlockSize = blockSize >= SECTOR_BYTES && blockSize <= 65_536 && Number.isInteger(Math.log2(blockSize));
  if (start === 0n || !isBlockSize) return undefined;
  const agShift = BigInt(head.readUInt8(XFS.agBlocksLog));
  const group = Number(start >> agShift);
  const within = Number(start & ((1n << agShift) - 1n));
  const offset = (group * head.readUInt32BE(XFS.agBlocks) + within) * blockSize;
  const sectors = (head.readUInt32BE(XFS.logBlocks) * blockSize) / SECTOR_BYTES;
  return sectors === 0 ? undefined : { offset, sectors };
}

/** Finds the first sector whose cycle differs from the first one's, and hashes the sectors before it. */
function hashLogHead(hash: Hash, device: BlockDevice, buffer: IoBuffer, log: XfsLog): void {
  const cycleAt = (sector: number): number => {
    const at = readAround(device, buffer, log.offset + sector * SECTOR_BYTES, SECTOR_BYTES);
    const view = new DataView(buffer.bytes.buffer, buffer.bytes.byteOffset + at, SECTOR_BYTES);
    // A record's header begins with a magic number and has the cycle behind it; any other sector begins with the cycle.
    return view.getUint32(0) === XLOG_HEADER_MAGIC ? view.getUint32(4) : view.getUint32(0);
  };
  const firstCycle = cycleAt(0);
  let low = 0;
  let high = log.sectors;
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (cycleAt(middle) === firstCycle) low = middle;
    else high = middle;
  }
  hash.update(`log head ${firstCycle}:${high}`);
  const from = Math.max(0, high - LOG_TAIL_SECTORS);
  const lengthBytes = (high - from) * SECTOR_BYTES;
  const at = readAround(device, buffer, log.offset + from * SECTOR_BYTES, lengthBytes);
  hash.update(buffer.bytes.subarray(at, at + lengthBytes));
}

/** Reads whole blocks around what is wanted, for disks whose sectors are that large; returns where in the buffer it begins. */
function readAround(device: BlockDevice, buffer: IoBuffer, offset: number, lengthBytes: number): number {
  const at = offset % BLOCK_SIZE_BYTES;
  const end = Math.ceil((offset + lengthBytes) / BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES;
  device.read(buffer, 0, Math.min(end, device.sizeBytes) - (offset - at), offset - at);
  return at;
}

/** The file system that a device's first blocks announce, of those that a snapshot freezes. */
export function detectFileSystem(device: BlockDevice, buffer: IoBuffer): FreezableKind | undefined {
  const lengthBytes = Math.min(HEAD_BYTES, device.sizeBytes);
  device.read(buffer, 0, lengthBytes, 0);
  return signatureOf(Buffer.from(buffer.bytes.buffer, buffer.bytes.byteOffset, lengthBytes))?.kind;
}
