import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { CowFormatError } from './errors.js';
import { decodeEntries, encodeEntries, encodeEntriesFromBitmap } from './index-codec.js';

const INCREMENTAL = { indexOnly: true, firstPlace: 33, endPlace: 33 };
const SNAPSHOT = { indexOnly: false, firstPlace: 33, endPlace: 263 };
const entry = (value: bigint): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value);
  return bytes;
};

describe('index entries', () => {
  it('come back as they were, stale places of incremental files too', () => {
    fc.assert(
      fc.property(fc.uint32Array({ maxLength: 600 }), (entries) => {
        const bytes = encodeEntries(entries);
        assert.equal(bytes.byteLength, entries.length * 8);
        assert.deepEqual(decodeEntries(bytes, INCREMENTAL), entries);
        assert.ok(encodeEntries(decodeEntries(bytes, INCREMENTAL)).equals(bytes));
      }),
    );
  });

  it('overwrite all eight bytes of what was in the buffer before', () => {
    const out = Buffer.alloc(24, 0xff);
    encodeEntries(Uint32Array.of(1, 0), out);
    assert.equal(out.toString('hex'), '01'.padEnd(32, '0') + 'f'.repeat(16));
  });

  it('are read from any place of a larger piece of memory', () => {
    const memory = Buffer.alloc(64);
    memory.writeUInt32LE(35, 3);
    assert.deepEqual(decodeEntries(memory.subarray(3, 11), SNAPSHOT), Uint32Array.of(35));
  });

  it('are refused in snapshot mode before the first place and from the end on, by their block', () => {
    assert.deepEqual(decodeEntries(Buffer.concat([0n, 33n, 262n].map(entry)), SNAPSHOT), Uint32Array.of(0, 33, 262));
    for (const value of [1n, 32n, 263n, 0xffff_ffffn]) {
      assert.throws(
        () => decodeEntries(Buffer.concat([entry(33n), entry(value)]), SNAPSHOT, 4096),
        (error: unknown) =>
          error instanceof CowFormatError &&
          error.code === 'ECOWENTRY' &&
          error.field === 'entry of block 4097' &&
          error.value === Number(value),
      );
    }
  });

  it('above 32 bits are refused in both modes, with their whole value', () => {
    for (const bounds of [INCREMENTAL, SNAPSHOT]) {
      assert.throws(() => decodeEntries(entry(2n ** 63n + 33n), bounds), { code: 'ECOWENTRY', value: 2n ** 63n + 33n });
    }
  });

  it('that end in the middle are an error, not one entry fewer', () => {
    for (const lengthBytes of [1, 7, 9, 4095]) {
      assert.throws(() => decodeEntries(new Uint8Array(lengthBytes), INCREMENTAL), { code: 'ECOWTRUNCATED' });
    }
  });

  it('of any bytes are entries or a typed error', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), fc.boolean(), (bytes, indexOnly) => {
        try {
          const entries = decodeEntries(bytes, { ...SNAPSHOT, indexOnly });
          assert.ok(encodeEntries(entries).equals(bytes));
        } catch (error) {
          assert.ok(error instanceof CowFormatError, String(error));
        }
      }),
    );
  });
});

describe('entries from a bitmap', () => {
  it('are 1 for each set bit and 0 for each other, whatever was in the buffer', () => {
    const word = fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 });
    const piece = fc.record({ words: fc.array(word, { minLength: 1, maxLength: 8 }), from: fc.nat(), to: fc.nat() });
    fc.assert(
      fc.property(piece, ({ words, from, to }) => {
        const map = Int32Array.from(words);
        const bits = words.flatMap((value) => Array.from({ length: 32 }, (_, bit) => (value >>> bit) & 1));
        const first = from % bits.length;
        const count = to % (bits.length - first + 1);
        const out = encodeEntriesFromBitmap(map, first, count, Buffer.alloc(bits.length * 8, 0xff));
        const entries = decodeEntries(out.subarray(0, count * 8), INCREMENTAL);
        assert.deepEqual([...entries], bits.slice(first, first + count));
        assert.ok(out.subarray(count * 8).every((byte) => byte === 0xff));
      }),
    );
  });

  it('are refused for blocks that the map does not have: they are not unchanged (I3)', () => {
    const map = new Int32Array(2).fill(-1);
    const out = Buffer.alloc(8 * 100);
    assert.throws(() => encodeEntriesFromBitmap(map, 0, 65, out), RangeError);
    assert.throws(() => encodeEntriesFromBitmap(map, 64, 1, out), RangeError);
    assert.throws(() => encodeEntriesFromBitmap(map, -1, 2, out), RangeError);
  });

  it('are refused where the buffer is too short for them, even if no bit is set', () => {
    assert.throws(() => encodeEntriesFromBitmap(new Int32Array(2), 0, 64, Buffer.alloc(63 * 8)), RangeError);
  });
});
