import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { blockCount, dataOffsetBytes, defaultStoreBytes, indexLengthBytes } from './geometry.js';

const sizes = fc.maxSafeNat();

describe('the geometry of a COW file', () => {
  it('is that of the files of the real module', () => {
    assert.deepEqual([blockCount(67_108_864), dataOffsetBytes(16_384)], [16_384, 135_168]);
    assert.deepEqual([blockCount(209_715_200), dataOffsetBytes(51_200)], [51_200, 430_080]);
    assert.equal(defaultStoreBytes(67_108_864), 6_710_886);
  });

  it('counts a partial last block', () => {
    assert.deepEqual([0, 1, 4095, 4096, 4097].map(blockCount), [0, 1, 1, 1, 2]);
  });

  it('pads the index to whole sections of 4096 entries', () => {
    assert.deepEqual([0, 1, 4096, 4097].map(indexLengthBytes), [0, 32_768, 32_768, 65_536]);
  });

  it('is exact for every size up to 2^53, as integers would have it', () => {
    fc.assert(
      fc.property(sizes, (size) => {
        const blocks = (BigInt(size) + 4095n) / 4096n;
        assert.equal(BigInt(blockCount(size)), blocks);
        assert.equal(BigInt(dataOffsetBytes(blockCount(size))), 4096n + ((blocks + 4095n) / 4096n) * 32_768n);
        assert.equal(BigInt(defaultStoreBytes(size)), BigInt(size) / 10n);
      }),
    );
  });
});
