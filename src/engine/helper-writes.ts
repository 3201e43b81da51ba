/** Writing to COW files through their file system. */
import { closeSync, writeSync } from 'node:fs';
import { Lanes, openDirect } from '../sys/lanes.js';

const PIECE_BYTES = 1_048_576;
const LANES = 4;
/** Their buffers are never written. Kept: a helper serves many sessions, and what they take from the kernel is not given back. */
let zeroLanes: Lanes | undefined;

export function writeWhole(fd: number, bytes: Uint8Array, at: number): void {
  let done = 0;
  while (done < bytes.byteLength) done += writeSync(fd, bytes, done, bytes.byteLength - done, at + done);
}

/** Writes zeros over bytes `from` to `to` of a file. */
export function writeZeros(fd: number, from: number, to: number): void {
  const zeros = Buffer.alloc(Math.min(PIECE_BYTES, Math.max(to - from, 1)));
  for (let at = from; at < to; at += zeros.byteLength) {
    writeWhole(fd, zeros.subarray(0, Math.min(zeros.byteLength, to - at)), at);
  }
}

/**
 * Writes zeros over the beginning of a file: 2 GiB for a volume of 1 TiB. They are written, not only allocated, because an
 * unwritten extent reads as zeros through the file system whatever is on the disk. Past the page cache, side by side:
 * through it they would be copied, and held back while the volume that they go through takes them.
 */
export function writeManyZeros(fd: number, lengthBytes: number): void {
  zeroLanes ??= new Lanes(LANES, PIECE_BYTES);
  const lanes = zeroLanes;
  const pieces = Math.floor(lengthBytes / PIECE_BYTES);
  const offsetOf = (piece: number): number => piece * PIECE_BYTES;
  const directFd = openDirect(fd);
  try {
    const end = (piece: number): void => {
      if (lanes.end(piece % LANES) !== PIECE_BYTES) writeZeros(fd, offsetOf(piece), offsetOf(piece) + PIECE_BYTES);
    };
    for (let piece = 0; piece < pieces; piece++) {
      if (piece >= LANES) end(piece - LANES);
      const transfer = { isWrite: true, fd: directFd ?? fd, lengthBytes: PIECE_BYTES, offset: offsetOf(piece) };
      lanes.begin(piece % LANES, transfer);
    }
    for (let piece = Math.max(0, pieces - LANES); piece < pieces; piece++) end(piece);
  } finally {
    lanes.drain();
    if (directFd !== undefined) closeSync(directFd);
  }
  writeZeros(fd, offsetOf(pieces), lengthBytes);
}
