import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { CowFormatError } from './errors.js';
import { type CowHeader, decodeHeader, encodeHeader } from './header.js';

const bytesOf = (length: number): fc.Arbitrary<Uint8Array> => fc.uint8Array({ minLength: length, maxLength: length });
const fields = {
  clean: fc.boolean(),
  indexOnly: fc.boolean(),
  vmallocUpper: fc.boolean(),
  positionBlocks: fc.maxSafeNat(),
  fileSizeBytes: fc.maxSafeNat(),
  sequenceId: fc.maxSafeNat(),
  uuid: bytesOf(16),
  version: fc.constantFrom<0 | 1>(0, 1),
  changedBlocks: fc.maxSafeNat(),
};
// Plain objects, as decoding makes them.
const plain = { noNullPrototype: true } as const;
const extension = fc.record({ fingerprint: bytesOf(32), volumeSizeBytes: fc.maxSafeNat() }, plain);
const headers: fc.Arbitrary<CowHeader> = fc.oneof(fc.record(fields, plain), fc.record({ ...fields, extension }, plain));

const EXAMPLE: CowHeader = {
  clean: true,
  indexOnly: true,
  vmallocUpper: false,
  positionBlocks: 311,
  fileSizeBytes: 135_168,
  sequenceId: 1,
  uuid: new Uint8Array(16).fill(7),
  version: 1,
  changedBlocks: 522,
  extension: { fingerprint: new Uint8Array(32).fill(9), volumeSizeBytes: 67_108_864 },
};

/** From another implementation: zlib's crc32 of the 60 bytes. */
const CRC_OF_EXAMPLE = 0x6110_0ab5;

function refused(change: (page: Buffer) => void, code: string, field: RegExp): void {
  const page = encodeHeader(EXAMPLE);
  change(page);
  assert.throws(
    () => decodeHeader(page),
    (error: unknown) => error instanceof CowFormatError && error.code === code && field.test(error.field),
  );
}

describe('the header page', () => {
  it('decodes to what was encoded, and encodes to what was decoded', () => {
    fc.assert(
      fc.property(headers, (header) => {
        const page = encodeHeader(header);
        assert.equal(page.byteLength, 4096);
        assert.deepEqual(decodeHeader(page), header);
        assert.ok(encodeHeader(decodeHeader(page)).equals(page));
      }),
    );
  });

  it('has its fields where the format has them', () => {
    const page = encodeHeader(EXAMPLE);
    assert.deepEqual([page.readUInt32LE(0), page.readUInt32LE(4)], [4776, 3]);
    const numbers = [8, 16, 24, 48, 56, 552].map((at) => Number(page.readBigUInt64LE(at)));
    assert.deepEqual(numbers, [311, 135_168, 1, 1, 522, 67_108_864]);
    assert.equal(page.toString('latin1', 512, 516), 'CWBX');
    assert.equal(page.readUInt32LE(516), 64);
  });

  it('ends its extension in the CRC-32 that everybody else computes', () => {
    const page = encodeHeader({
      ...EXAMPLE,
      extension: { fingerprint: Buffer.from('0123456789abcdef0123456789abcdef'), volumeSizeBytes: 4096 },
    });
    assert.equal(page.readUInt32LE(572), CRC_OF_EXAMPLE);
  });

  it('keeps what a version 0 header has as nr_changed, which means nothing there', () => {
    const header: CowHeader = { ...EXAMPLE, version: 0, changedBlocks: 99 };
    assert.deepEqual(decodeHeader(encodeHeader(header)), header);
  });

  it('with any byte changed is a typed error, or means exactly what its bytes say', () => {
    fc.assert(
      fc.property(headers, fc.nat(4095), fc.integer({ min: 1, max: 255 }), (header, at, flip) => {
        const page = encodeHeader(header);
        page.writeUInt8(page.readUInt8(at) ^ flip, at);
        let decoded: CowHeader;
        try {
          decoded = decodeHeader(page);
        } catch (error) {
          assert.ok(error instanceof CowFormatError, String(error));
          return;
        }
        assert.ok(encodeHeader(decoded).equals(page));
        assert.ok(at >= 4 && at < 64, `the change of byte ${at} was noticed`);
      }),
      { numRuns: 2000 },
    );
  });

  it('of any bytes at all is a typed error or a header', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), fc.boolean(), (start, withMagic) => {
        const page = Buffer.alloc(4096);
        page.set(start);
        if (withMagic) page.writeUInt32LE(4776, 0);
        try {
          assert.ok(encodeHeader(decodeHeader(page)).equals(page));
        } catch (error) {
          assert.ok(error instanceof CowFormatError, String(error));
        }
      }),
    );
  });

  it('of zeros is refused with what it may be: not closed, or stale cached pages', () => {
    assert.throws(() => decodeHeader(new Uint8Array(4096)), { code: 'ECOWMAGIC', message: /never closed.*stale/ });
  });

  it('is refused for each number that is not below 2^53, by the name of its field', () => {
    const cases = [
      [8, 'ECOWFPOS', /^fpos$/],
      [16, 'ECOWSIZE', /^fsize$/],
      [24, 'ECOWSEQUENCE', /^seqid$/],
      [56, 'ECOWCOUNT', /^nr_changed$/],
    ] as const;
    for (const [at, code, field] of cases) refused((page) => page.writeBigUInt64LE(2n ** 53n, at), code, field);
  });

  it('is refused for an unknown flag, even the highest', () => {
    refused((page) => page.writeUInt32LE(8, 4), 'ECOWFLAGS', /^flags$/);
    refused((page) => page.writeUInt32LE(0x8000_0001, 4), 'ECOWFLAGS', /^flags$/);
  });

  it('is refused for a byte beside the extension, whose number is said', () => {
    for (const at of [64, 511, 576, 4095]) {
      refused((page) => page.writeUInt8(1, at), 'ECOWEXTENSION', new RegExp(`^byte ${at} `));
    }
  });

  it('is not made with a uuid, fingerprint or number that does not fit', () => {
    const wrong: CowHeader[] = [
      { ...EXAMPLE, uuid: new Uint8Array(4) },
      { ...EXAMPLE, uuid: new Uint8Array(17) },
      { ...EXAMPLE, positionBlocks: -1 },
      { ...EXAMPLE, fileSizeBytes: 0.5 },
      { ...EXAMPLE, sequenceId: Number.NaN },
      { ...EXAMPLE, changedBlocks: 2 ** 53 },
      { ...EXAMPLE, extension: { fingerprint: new Uint8Array(31), volumeSizeBytes: 1 } },
    ];
    for (const header of wrong) assert.throws(() => encodeHeader(header), RangeError);
  });
});
