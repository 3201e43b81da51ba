/** COW files of the real module decode to what is known of them, and encode again byte for byte. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { updateImage } from '../src/backup/update-image.js';
import { CowFormatError } from '../src/cow/errors.js';
import { type CowFile, type PositionedReader, readCowFile } from '../src/cow/file.js';
import { dataOffsetBytes, HEADER_SIZE_BYTES } from '../src/cow/geometry.js';
import { decodeHeader, encodeHeader } from '../src/cow/header.js';
import { encodeEntries } from '../src/cow/index-codec.js';

const VECTORS = fileURLToPath(new URL('../../test/vectors/', import.meta.url));
const run = promisify(execFile);

function readerOf(bytes: Buffer): PositionedReader {
  return { lengthBytes: bytes.byteLength, read: (buffer, offset) => bytes.copy(buffer, 0, offset) };
}

async function load(name: string, file: string): Promise<Buffer> {
  const { stdout } = await run('zstd', ['-dcq', join(VECTORS, name, `${file}.zst`)], {
    encoding: 'buffer',
    maxBuffer: 300 * 1024 * 1024,
  });
  const sums = readFileSync(join(VECTORS, name, 'MD5SUMS'), 'utf8');
  const expected = sums
    .split('\n')
    .find((line) => line.endsWith(` ${file}`))
    ?.split(' ')[0];
  assert.equal(
    createHash('md5').update(stdout).digest('hex'),
    expected,
    `${name}/${file} is the file that was recorded`,
  );
  return stdout;
}

/** The file as our encoders would write it from what our decoders read. */
function reencode(bytes: Buffer, cow: CowFile, blocks: number): Buffer {
  const out = Buffer.alloc(bytes.byteLength);
  encodeHeader(cow.header).copy(out, 0);
  for (const { firstBlock, entries } of cow.entries())
    encodeEntries(entries).copy(out, HEADER_SIZE_BYTES + firstBlock * 8);
  bytes.copy(out, dataOffsetBytes(blocks), dataOffsetBytes(blocks));
  return out;
}

const CASES = [
  {
    name: 'ext4-64m',
    sizeBytes: 67_108_864,
    snapshot: [263, 230],
    incremental: [311, 509],
    leftover: [311, 522],
    updated: 522,
  },
  {
    name: 'ext4-200m',
    sizeBytes: 209_715_200,
    snapshot: [355, 250],
    incremental: [409, 531],
    leftover: [409, 550],
    updated: 550,
  },
] as const;

for (const vector of CASES) {
  describe(`files of the real module, ${vector.name}`, () => {
    const blocks = vector.sizeBytes / 4096;
    const expectations = [
      ['cow.snapshot.dormant-clean.bin', { clean: true, indexOnly: false, counts: vector.snapshot }],
      ['cow.incremental.dormant-clean.bin', { clean: true, indexOnly: true, counts: vector.incremental }],
      ['cow.incremental.leftover.bin', { clean: true, indexOnly: true, counts: vector.leftover }],
    ] as const;
    for (const [file, expected] of expectations) {
      it(`${file} decodes to the recorded numbers and encodes again byte for byte`, async () => {
        const bytes = await load(vector.name, file);
        const cow = readCowFile(readerOf(bytes), vector.sizeBytes);
        assert.equal(cow.header.clean, expected.clean);
        assert.equal(cow.header.indexOnly, expected.indexOnly);
        assert.equal(cow.header.positionBlocks, expected.counts[0]);
        assert.equal(cow.header.changedBlocks, expected.counts[1]);
        assert.equal(cow.header.sequenceId, 1);
        let found = 0;
        for (const { blockCount } of cow.changedRuns()) found += blockCount;
        assert.equal(found, expected.counts[1]);
        assert.ok(reencode(bytes, cow, blocks).equals(bytes));
      });
    }

    it('every place in a snapshot file is used exactly once, from the data offset to fpos', async () => {
      const bytes = await load(vector.name, 'cow.snapshot.dormant-clean.bin');
      const cow = readCowFile(readerOf(bytes), vector.sizeBytes);
      const places = [...cow.entries()].flatMap(({ entries }) => [...entries].filter((entry) => entry !== 0));
      const first = dataOffsetBytes(blocks) / 4096;
      assert.deepEqual(
        places.sort((a, b) => a - b),
        Array.from({ length: vector.snapshot[1] }, (_, i) => first + i),
      );
    });

    it('a file that was read while active decodes as not clean, with an empty index', async () => {
      const bytes = await load(vector.name, 'cow.snapshot.active-dirty.bin');
      const cow = readCowFile(readerOf(bytes), vector.sizeBytes);
      assert.equal(cow.header.clean, false);
      assert.deepEqual([...cow.changedRuns()], []);
      assert.ok(reencode(bytes, cow, blocks).equals(bytes));
    });

    it('updating the first image gives what the real update-img gave, bit for bit', async () => {
      const folder = mkdtempSync(join(tmpdir(), 'cowbird-vectors-'));
      try {
        const imagePath = join(folder, 'image');
        writeFileSync(imagePath, await load(vector.name, 'base.img'));
        const cow = readCowFile(readerOf(await load(vector.name, 'cow.incremental.leftover.bin')), vector.sizeBytes);
        const source = readerOf(await load(vector.name, 'snap2.img'));
        const result = updateImage({ source, changed: cow.changedRuns(), imagePath });
        assert.equal(result.changedBlocks, vector.updated);
        assert.equal(result.errors, 0);
        assert.ok(readFileSync(imagePath).equals(await load(vector.name, 'updated.img')));
      } finally {
        rmSync(folder, { recursive: true });
      }
    });
  });
}

describe('damaged COW files', () => {
  const { name, sizeBytes } = CASES[0];
  let good: Buffer;
  before(async () => {
    good = await load(name, 'cow.snapshot.dormant-clean.bin');
  });
  after(() => {
    good = Buffer.alloc(0);
  });

  const readAll = (bytes: Buffer): void => {
    for (const run of readCowFile(readerOf(bytes), sizeBytes).changedRuns()) assert.ok(run.blockCount > 0);
  };
  const refuses = (bytes: Buffer, code: string, field: RegExp): void =>
    assert.throws(
      () => readAll(bytes),
      (error: unknown) => error instanceof CowFormatError && error.code === code && field.test(error.field),
    );
  const changed = (change: (bytes: Buffer) => void): Buffer => {
    const bytes = Buffer.from(good);
    change(bytes);
    return bytes;
  };

  it('are refused when they are cut short anywhere', () => {
    for (const lengthBytes of [0, 1, 64, 4095, 4096, 5000, 135_167, 135_168]) {
      assert.throws(() => readAll(good.subarray(0, lengthBytes)), CowFormatError, `${lengthBytes} bytes`);
    }
  });
  it('are refused for another magic', () =>
    refuses(
      changed((b) => b.writeUInt32LE(1, 0)),
      'ECOWMAGIC',
      /magic/,
    ));
  it('are refused for a header of zeros', () =>
    refuses(
      changed((b) => b.fill(0, 0, 4096)),
      'ECOWMAGIC',
      /magic/,
    ));
  it('are refused for unknown flags', () =>
    refuses(
      changed((b) => b.writeUInt32LE(9, 4)),
      'ECOWFLAGS',
      /flags/,
    ));
  it('are refused for a position beyond the file', () =>
    refuses(
      changed((b) => b.writeBigUInt64LE(1n << 40n, 8)),
      'ECOWFPOS',
      /fpos/,
    ));
  it('are refused for a position before the data', () =>
    refuses(
      changed((b) => b.writeBigUInt64LE(1n, 8)),
      'ECOWFPOS',
      /fpos/,
    ));
  it('are refused for another size', () =>
    refuses(
      changed((b) => b.writeBigUInt64LE(1n << 40n, 16)),
      'ECOWSIZE',
      /fsize/,
    ));
  it('are refused for another version', () =>
    refuses(
      changed((b) => b.writeBigUInt64LE(2n, 48)),
      'ECOWVERSION',
      /version/,
    ));
  it('are refused for an entry out of range', () =>
    refuses(
      changed((b) => b.writeBigUInt64LE(5n, 4096)),
      'ECOWENTRY',
      /entry of block 0/,
    ));
  it('are refused for an entry above 32 bits', () =>
    refuses(
      changed((b) => b.writeBigUInt64LE(1n << 33n, 4096)),
      'ECOWENTRY',
      /entry of block 0/,
    ));
  it('are refused for a count that is not the number of entries', () =>
    refuses(
      changed((b) => b.writeBigUInt64LE(7n, 56)),
      'ECOWCOUNT',
      /nr_changed/,
    ));
  it('are refused for another volume size', () =>
    assert.throws(() => readCowFile(readerOf(good), sizeBytes * 1000), CowFormatError));

  it('with any one header byte flipped are a typed error or mean what they say', () => {
    for (let at = 0; at < 4096; at++) {
      const bytes = changed((b) => b.writeUInt8(b.readUInt8(at) ^ 0xff, at));
      try {
        assert.ok(encodeHeader(decodeHeader(bytes)).equals(bytes.subarray(0, 4096)), `byte ${at}`);
      } catch (error) {
        assert.ok(error instanceof CowFormatError, `byte ${at}: ${String(error)}`);
      }
    }
  });
});

describe('the header of Cowbird', () => {
  it('keeps its extension, and refuses one that was damaged', () => {
    const header = {
      clean: true,
      indexOnly: true,
      vmallocUpper: false,
      positionBlocks: 33,
      fileSizeBytes: 135_168,
      sequenceId: 2,
      uuid: new Uint8Array(16).fill(7),
      version: 1 as const,
      changedBlocks: 3,
      extension: { fingerprint: new Uint8Array(32).fill(9), volumeSizeBytes: 67_108_864 },
    };
    const page = encodeHeader(header);
    assert.deepEqual(decodeHeader(page), header);
    page.writeUInt8(1, 530);
    assert.throws(() => decodeHeader(page), /extension checksum/);
  });
});
