/**
 * Self-describing sectors over a whole device: each has its own offset, the round in which it was written, random bytes and a
 * checksum. After a snapshot every sector of it must be whole, in its place, and from before it, whatever is written since.
 */
import assert from 'node:assert/strict';
import { createHash, randomBytes, randomInt } from 'node:crypto';
import { closeSync, fsyncSync, openSync, writeSync } from 'node:fs';
import { describe, it } from 'node:test';
import * as cowbird from '../src/index.js';
import { DirectReader } from '../src/sys/direct-reader.js';
import { CANNOT, Lab, MIB, run } from './lab.js';

const SECTOR = 512;
const SIZE = 24 * MIB + 7 * SECTOR;
const SECTORS = SIZE / SECTOR;
const MINOR = 161;

function sector(number: number, round: number): Buffer {
  const bytes = Buffer.alloc(SECTOR);
  bytes.writeBigUInt64LE(BigInt(number), 0);
  bytes.writeUInt32LE(round, 8);
  randomBytes(64).copy(bytes, 16);
  createHash('sha256')
    .update(bytes.subarray(0, SECTOR - 32))
    .digest()
    .copy(bytes, SECTOR - 32);
  return bytes;
}

/** Overwrites random runs of sectors, the first ones always, as a mount does. */
function overwrite(node: string, round: number, count: number): void {
  const fd = openSync(node, 'r+');
  try {
    for (let i = 0; i < count; i++) {
      const first = i === 0 ? 0 : randomInt(0, SECTORS - 32);
      const run = Array.from({ length: randomInt(1, 32) }, (_, at) => sector(first + at, round));
      writeSync(fd, Buffer.concat(run), 0, run.length * SECTOR, first * SECTOR);
    }
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** The sectors that are not whole, not in their place, or not from `round` or before. */
function badSectors(device: string, round: number, mayBeZero: (number: number) => boolean): number[] {
  const reader = new DirectReader(device);
  const bad: number[] = [];
  try {
    const buffer = Buffer.alloc(MIB);
    for (let at = 0; at < SIZE; ) {
      const count = reader.read(buffer, at);
      for (let within = 0; within < count; within += SECTOR) {
        const number = (at + within) / SECTOR;
        const bytes = buffer.subarray(within, within + SECTOR);
        if (mayBeZero(number) && bytes.every((byte) => byte === 0)) continue;
        const sum = createHash('sha256')
          .update(bytes.subarray(0, SECTOR - 32))
          .digest();
        const good =
          sum.equals(bytes.subarray(SECTOR - 32)) &&
          Number(bytes.readBigUInt64LE(0)) === number &&
          bytes.readUInt32LE(8) <= round;
        if (!good) bad.push(number);
      }
      at += count;
    }
  } finally {
    reader.close();
  }
  return bad;
}

describe('a device full of self-describing sectors', { skip: CANNOT }, () => {
  it('has them all whole, in place and old in each snapshot, while it is overwritten and discarded (corrupt)', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', SIZE);
    const fd = openSync(node, 'r+');
    for (let first = 0; first < SECTORS; first += 2048) {
      const run = Array.from({ length: Math.min(2048, SECTORS - first) }, (_, at) => sector(first + at, 0));
      writeSync(fd, Buffer.concat(run), 0, run.length * SECTOR, first * SECTOR);
    }
    fsyncSync(fd);
    closeSync(fd);
    const discarded = new Set<number>();
    await cowbird.setupSnapshot(node, lab.path('store-1'), MINOR, { storeBytes: 40 * MIB }, lab.client);
    for (let round = 1; round <= 4; round++) {
      const before = new Set(discarded);
      overwrite(node, round, 150);
      const start = randomInt(0, 20) * MIB;
      await run('blkdiscard', '-o', String(start), '-l', String(MIB), node);
      for (let number = start / SECTOR; number < (start + MIB) / SECTOR; number++) discarded.add(number);
      overwrite(node, round, 50);
      assert.deepEqual(
        badSectors('/dev/cowbird161', round - 1, (number) => before.has(number)),
        [],
        `round ${round}`,
      );
      assert.equal((await lab.status(MINOR)).error, undefined);
      await cowbird.transitionToIncremental(MINOR, lab.client);
      await cowbird.transitionToSnapshot(MINOR, lab.path(`store-${round + 1}`), { storeBytes: 40 * MIB }, lab.client);
    }
  });
});
