/**
 * The checksum of a block: the first 16 bytes of its SHA-256; 16 zero bytes for a block of zeros, which has no hash of its
 * own, so that the checksums of a hole are a hole. A last block that is not whole counts as filled up with zeros.
 */
import { hash } from 'node:crypto';
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';

export const CHECKSUM_BYTES = 16;

const ZERO_BLOCK = Buffer.alloc(BLOCK_SIZE_BYTES);
const ZERO_CHECKSUM = Buffer.alloc(CHECKSUM_BYTES);

export function isZero(bytes: Uint8Array): boolean {
  if (bytes.byteLength === BLOCK_SIZE_BYTES) return ZERO_BLOCK.equals(bytes);
  for (let at = 0; at < bytes.byteLength; at += BLOCK_SIZE_BYTES) {
    const piece = bytes.subarray(at, at + BLOCK_SIZE_BYTES);
    if (ZERO_BLOCK.compare(piece, 0, piece.byteLength, 0, piece.byteLength) !== 0) return false;
  }
  return true;
}

/** Writes the checksum of one whole block to `out` at `at`; returns false for a block of zeros. */
export function putChecksum(block: Uint8Array, out: Buffer, at: number): boolean {
  if (ZERO_BLOCK.equals(block)) {
    out.fill(0, at, at + CHECKSUM_BYTES);
    return false;
  }
  // A string of one byte a character is made twice as fast as a Buffer.
  out.write(hash('sha256', block, 'binary'), at, CHECKSUM_BYTES, 'latin1');
  return true;
}

/** Whether the checksum at index `a` of `left` is that at index `b` of `right`. */
export function sameChecksum(left: Buffer, a: number, right: Buffer, b: number): boolean {
  const atLeft = a * CHECKSUM_BYTES;
  const atRight = b * CHECKSUM_BYTES;
  return left.compare(right, atRight, atRight + CHECKSUM_BYTES, atLeft, atLeft + CHECKSUM_BYTES) === 0;
}

/** Whether the checksum at index `a` is that of zeros. */
export function isZeroChecksum(checksums: Buffer, a: number): boolean {
  return sameChecksum(checksums, a, ZERO_CHECKSUM, 0);
}

const own = Buffer.alloc(CHECKSUM_BYTES);

/** Whether `block` has the checksum at index `a` of `checksums`. */
export function matchesChecksum(block: Uint8Array, checksums: Buffer, a: number): boolean {
  putChecksum(block, own, 0);
  return sameChecksum(checksums, a, own, 0);
}
