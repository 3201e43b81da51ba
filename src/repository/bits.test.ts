/** Bitmaps of blocks: what is done to ranges at once is what would be done bit by bit. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { addByteRanges, clearBit, clearRange, hasBit, makeBits, setBit, setRange } from './bits.js';
import { REGION_BLOCKS } from './layout.js';

function bitsOf(bits: Uint8Array): number[] {
  return Array.from({ length: REGION_BLOCKS }, (_, block) => block).filter((block) => hasBit(bits, block));
}

describe('a range of blocks', () => {
  it('is set and cleared as its blocks are, wherever it begins and ends in a byte', () => {
    for (let start = 0; start <= 26; start++)
      for (let end = 0; end <= 26; end++) {
        const [set, setOneByOne] = [makeBits(1), makeBits(1)];
        const [cleared, clearedOneByOne] = [makeBits(1).fill(0xff), makeBits(1).fill(0xff)];
        setRange(set, start, end);
        clearRange(cleared, start, end);
        for (let block = start; block < end; block++) {
          setBit(setOneByOne, block);
          clearBit(clearedOneByOne, block);
        }
        assert.deepEqual([set, cleared], [setOneByOne, clearedOneByOne], `${start} to ${end}`);
      }
  });

  it('has every block that a range of bytes touches', () => {
    const bits = makeBits(1);
    addByteRanges(bits, [
      { offset: 5 * BLOCK_SIZE_BYTES + 1, lengthBytes: BLOCK_SIZE_BYTES },
      { offset: 9 * BLOCK_SIZE_BYTES, lengthBytes: 2 * BLOCK_SIZE_BYTES },
      { offset: 40 * BLOCK_SIZE_BYTES, lengthBytes: 512 },
    ]);
    assert.deepEqual(bitsOf(bits), [5, 6, 9, 10, 40]);
  });
});
