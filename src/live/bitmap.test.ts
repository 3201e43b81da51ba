/** The bitmap of blocks that are to be copied. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { BlockBitmap, countBits } from './bitmap.js';

describe('a bitmap of blocks', () => {
  it('holds what was set and not cleared, and tells it in runs', () => {
    const change = fc.record({ first: fc.nat(199), count: fc.integer({ min: 1, max: 120 }), set: fc.boolean() });
    fc.assert(
      fc.property(fc.array(change, { maxLength: 20 }), (changes) => {
        const bits = new BlockBitmap(200);
        const model = new Set<number>();
        for (const { first, count, set } of changes) {
          const end = Math.min(first + count, 200);
          if (set) bits.setRange(first, count);
          for (let block = first; block < end; block++) {
            if (set) model.add(block);
            else {
              bits.clear(block);
              model.delete(block);
            }
          }
        }
        const told = [...bits.runs()].flatMap(({ first, count }) => Array.from({ length: count }, (_, i) => first + i));
        assert.deepEqual(
          told,
          [...model].sort((a, b) => a - b),
        );
        assert.equal(bits.count(), model.size);
        for (let block = 0; block < 200; block++) assert.equal(bits.has(block), model.has(block));
      }),
    );
  });

  it('says whether a bit is new, the highest of a word too, and knows no block beyond its end', () => {
    const bits = new BlockBitmap(64);
    for (const block of [0, 31, 32, 63]) {
      assert.ok(bits.set(block));
      assert.ok(!bits.set(block));
    }
    assert.ok(!bits.set(64) && !bits.set(-1));
    assert.equal(bits.count(), 4);
    assert.equal(countBits(0x8000_0001), 2);
    assert.equal(countBits(~0), 32);
  });

  it('is the same in the memory of another', () => {
    const bits = new BlockBitmap(100);
    bits.set(70);
    assert.ok(new BlockBitmap(100, bits.bytes.buffer).has(70));
  });
});
