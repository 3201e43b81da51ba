/**
 * A fingerprint of what changes on a disk whenever its file system is used: the proof that nobody mounted the origin
 * between a clean stop and the reload.
 *
 * - The first 128 KiB: ext2/3/4 superblock (write time, mount count, kilobytes written), btrfs superblock (generation), XFS
 *   superblock, partition table.
 * - XFS writes its superblock rarely, but every mount moves the head of its log: the log's cycle numbers are searched for
 *   the head, and the last pieces before it are taken in (layout: XFS on-disk format, "Journaling Log").
 *
 * What it cannot see: a program that writes to the raw origin and leaves all of that alone.
 */
import { createHash } from 'node:crypto';
import type { BlockDevice, IoBuffer } from '../block/device.js';

const HEAD_BYTES = 131_072;
const SECTOR_BYTES = 512;
const XFS_MAGIC = 0x58465342;
const XFS = { blockSize: 4, logStart: 48, agBlocks: 84, logBlocks: 96, agBlocksLog: 124 } as const;
const XLOG_HEADER_MAGIC = 0xfeedbabe;
const LOG_TAIL_SECTORS = 64;

/** SHA-256 over the parts named above. `buffer` holds at least 128 KiB. */
export function originFingerprint(device: BlockDevice, buffer: IoBuffer): Uint8Array {
  const hash = createHash('sha256');
  const lengthBytes = Math.min(HEAD_BYTES, device.sizeBytes);
  device.read(buffer, 0, lengthBytes, 0);
  hash.update(buffer.bytes.subarray(0, lengthBytes));
  const head = Buffer.from(buffer.bytes.subarray(0, Math.min(lengthBytes, SECTOR_BYTES)));
  const log = head.byteLength === SECTOR_BYTES ? xfsLog(head) : undefined;
  if (log !== undefined && log.offset + log.sectors * SECTOR_BYTES <= device.sizeBytes)
    hashLogHead(hash, device, buffer, log);
  return hash.digest();
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
function hashLogHead(hash: ReturnType<typeof createHash>, device: BlockDevice, buffer: IoBuffer, log: XfsLog): void {
  const view = new DataView(buffer.bytes.buffer, buffer.bytes.byteOffset, SECTOR_BYTES);
  const cycleAt = (sector: number): number => {
    device.read(buffer, 0, SECTOR_BYTES, log.offset + sector * SECTOR_BYTES);
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
  device.read(buffer, 0, lengthBytes, log.offset + from * SECTOR_BYTES);
  hash.update(buffer.bytes.subarray(0, lengthBytes));
}

export type KnownFileSystem = 'ext' | 'xfs' | 'btrfs' | 'none';

/** The file system that a device's first blocks announce. */
export function detectFileSystem(device: BlockDevice, buffer: IoBuffer): KnownFileSystem {
  const lengthBytes = Math.min(HEAD_BYTES, device.sizeBytes);
  device.read(buffer, 0, lengthBytes, 0);
  const head = Buffer.from(buffer.bytes.buffer, buffer.bytes.byteOffset, lengthBytes);
  if (lengthBytes >= SECTOR_BYTES && head.readUInt32BE(0) === XFS_MAGIC) return 'xfs';
  if (lengthBytes >= 2048 && head.readUInt16LE(1024 + 56) === 0xef53) return 'ext';
  if (lengthBytes >= 65_536 + 72 && head.toString('latin1', 65_536 + 64, 65_536 + 72) === '_BHRfS_M') return 'btrfs';
  return 'none';
}
