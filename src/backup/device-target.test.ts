/** The contents of a device: a base that does not change, under what was written to it. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { CowbirdError } from '../sys/errors.js';
import { type Base, DeviceTarget } from './device-target.js';

const BLOCKS = 8;
const BAD = 3;

/** Blocks of their own numbers, of which one cannot be read. */
function base(): Base {
  return {
    sizeBytes: BLOCKS * BLOCK_SIZE_BYTES,
    read: (bytes, offset) => {
      for (let at = 0; at < bytes.byteLength; at++) {
        const block = Math.floor((offset + at) / BLOCK_SIZE_BYTES);
        if (block === BAD) throw new CowbirdError('EIO', `block ${block} is damaged`);
        bytes.writeUInt8(block + 1, at);
      }
    },
  };
}

function read(target: DeviceTarget, offset: number, lengthBytes: number): Buffer {
  const bytes = Buffer.alloc(lengthBytes);
  target.readBytes(bytes, offset);
  return bytes;
}

describe('a device with a throw-away overlay', () => {
  it('reads what was written, and below and beside that what there is', () => {
    const target = new DeviceTarget(base(), true);
    target.writeBytes(Buffer.alloc(6000, 0xaa), BLOCK_SIZE_BYTES - 1000);
    const bytes = read(target, 0, 3 * BLOCK_SIZE_BYTES);
    const expected = Buffer.alloc(3 * BLOCK_SIZE_BYTES);
    for (let block = 0; block < 3; block++)
      expected.fill(block + 1, block * BLOCK_SIZE_BYTES, (block + 1) * BLOCK_SIZE_BYTES);
    expected.fill(0xaa, BLOCK_SIZE_BYTES - 1000, BLOCK_SIZE_BYTES + 5000);
    assert.deepEqual(bytes, expected);
    assert.deepEqual(read(target, BLOCK_SIZE_BYTES - 3, 7), Buffer.alloc(7, 0xaa));
  });

  it('has no damage any more where a damaged block was written over as a whole', () => {
    const target = new DeviceTarget(base(), true);
    const offset = BAD * BLOCK_SIZE_BYTES;
    assert.throws(() => read(target, offset - 100, 200), { code: 'EIO' });
    assert.throws(() => target.writeBytes(Buffer.alloc(10), offset), { code: 'EIO' });
    target.writeBytes(Buffer.alloc(BLOCK_SIZE_BYTES, 0xbb), offset);
    const bytes = read(target, 0, BLOCKS * BLOCK_SIZE_BYTES);
    assert.deepEqual([bytes[offset - 1], bytes[offset], bytes[offset + BLOCK_SIZE_BYTES]], [BAD, 0xbb, BAD + 2]);
    target.zero(offset + 5, 10);
    assert.deepEqual(read(target, offset + 5, 10), Buffer.alloc(10));
  });

  it('is read-only without one', () => {
    const target = new DeviceTarget(base(), false);
    assert.throws(() => target.writeBytes(Buffer.alloc(512), 0), { code: 'EROFS' });
    assert.deepEqual(read(target, 0, 2), Buffer.from([1, 1]));
  });
});
