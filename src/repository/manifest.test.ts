/** The manifest: what is encoded is read again, and anything else is told to be damaged. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { CowbirdError } from '../sys/errors.js';
import { decodeManifest, encodeManifest, type ManifestData, type VersionRecord } from './manifest.js';
import { IDENTITY } from './scenario.js';

const VERSION: VersionRecord = {
  number: 3,
  time: '2026-01-02T03:04:05.678Z',
  sizeBytes: 5_000_000_000_000,
  engine: 'scan',
  reason: 'a "reason" with \u0000 and \\ and ü',
  whole: true,
  skipped: [{ offset: 4096, lengthBytes: 512 }],
  source: IDENTITY,
  continuityToken: null,
  togetherId: null,
  bytesRead: 1,
  bytesWritten: 2,
  delta: null,
};
const MANIFEST: ManifestData = {
  format: 1,
  series: 'ab'.repeat(16),
  lastNumber: 7,
  image: { inode: '18446744073709551615', sizeBytes: 5, mtimeNs: '1', ctimeNs: '2' },
  versions: [{ ...VERSION, number: 1, delta: { sha256: '0'.repeat(64), lengthBytes: 1, blocks: 2 } }, VERSION],
};

/** A file with a right checksum, whatever it holds. */
function sealed(value: object): Buffer {
  const zeros = '0'.repeat(64);
  const text = `${JSON.stringify({ ...value, sha256: undefined }, null, 1).replace('{', `{\n "sha256": "${zeros}",`)}\n`;
  return Buffer.from(text.replace(zeros, createHash('sha256').update(text).digest('hex')));
}

function isTold(error: unknown): boolean {
  return error instanceof CowbirdError && ['EUCLEAN', 'ENOTSUP'].includes(error.code);
}

describe('a manifest', () => {
  it('is read as it was written', () => {
    assert.deepEqual(decodeManifest(encodeManifest(MANIFEST)), MANIFEST);
  });

  it('is refused with one error in words when a field is anything else, its checksum being right', () => {
    const fields = ['format', 'series', 'lastNumber', 'image', 'versions', 'more'] as const;
    const inVersion = Object.keys(VERSION);
    const property = fc.property(
      fc.constantFrom(...fields),
      fc.constantFrom(...inVersion),
      fc.jsonValue(),
      fc.boolean(),
      (field, inner, value, isInner) => {
        const changed = isInner
          ? { ...MANIFEST, versions: [MANIFEST.versions[0], { ...VERSION, [inner]: value }] }
          : { ...MANIFEST, [field]: value };
        try {
          const read = decodeManifest(sealed(changed));
          // What is taken can be written and read again.
          assert.deepEqual(decodeManifest(encodeManifest(read)), read);
        } catch (error) {
          if (!isTold(error)) throw error;
        }
      },
    );
    fc.assert(property, { numRuns: 300 });
  });

  it('is refused in words for bytes of any kind', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) =>
        assert.throws(() => decodeManifest(Buffer.from(bytes)), isTold),
      ),
    );
    for (const bad of [
      { ...MANIFEST, versions: [] },
      { ...MANIFEST, lastNumber: 2 },
      { ...MANIFEST, versions: [...MANIFEST.versions].reverse() },
      { ...MANIFEST, versions: [VERSION, { ...VERSION, number: 4, sizeBytes: 1 }] },
      { ...MANIFEST, format: 2 },
    ])
      assert.throws(() => decodeManifest(sealed(bad)), isTold);
  });
});
