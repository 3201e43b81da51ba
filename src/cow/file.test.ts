import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import fc from 'fast-check';
import { CowFormatError } from './errors.js';
import { PlainReader, type PositionedReader, readCowFile } from './file.js';
import { type CowHeader, encodeHeader } from './header.js';

/** Two sections of index, the second one hardly used; the last block is partial. */
const BLOCKS = 4099;
const SIZE_BYTES = (BLOCKS - 1) * 4096 + 512;
const DATA_OFFSET_BYTES = 4096 + 2 * 32_768;
const FIRST_PLACE = DATA_OFFSET_BYTES / 4096;
const CHANGED = [0, 1, 2, 4095, 4096, 4098];
const PIECE_BYTES = 1_048_576;

interface Options extends Partial<CowHeader> {
  entries?: ReadonlyMap<number, bigint>;
  lengthBytes?: number;
}

function cowFile(options: Options = {}): Buffer {
  const { entries, lengthBytes, ...header } = options;
  const indexOnly = header.indexOnly ?? false;
  const places = new Map(CHANGED.map((block, i) => [block, indexOnly ? 1n : BigInt(FIRST_PLACE + i)] as const));
  const fileBytes = indexOnly ? DATA_OFFSET_BYTES : DATA_OFFSET_BYTES + CHANGED.length * 4096 + 100;
  const file = Buffer.alloc(lengthBytes ?? fileBytes);
  const page = encodeHeader({
    clean: true,
    indexOnly,
    vmallocUpper: false,
    positionBlocks: FIRST_PLACE + CHANGED.length,
    fileSizeBytes: fileBytes,
    sequenceId: 1,
    uuid: new Uint8Array(16).fill(3),
    version: 1,
    changedBlocks: (entries ?? places).size,
    ...header,
  });
  page.copy(file);
  for (const [block, value] of entries ?? places) file.writeBigUInt64LE(value, 4096 + block * 8);
  if (!indexOnly)
    CHANGED.forEach(
      (_, i) => void file.fill(0x40 + i, DATA_OFFSET_BYTES + i * 4096, DATA_OFFSET_BYTES + (i + 1) * 4096),
    );
  return file;
}

/** Gives a few bytes at a time, as a read may, and notes the largest one that was asked for. */
class Dripping implements PositionedReader {
  readonly lengthBytes: number;
  readonly bytes: Buffer;
  readonly drip: number;
  largest = 0;
  constructor(bytes: Buffer, drip = 5000) {
    this.lengthBytes = bytes.byteLength;
    this.bytes = bytes;
    this.drip = drip;
  }
  read(buffer: Uint8Array, offset: number): number {
    this.largest = Math.max(this.largest, buffer.byteLength);
    return this.bytes.copy(buffer, 0, offset, offset + Math.min(this.drip, buffer.byteLength));
  }
}

const runsIn = (bytes: Buffer): Array<[number, number]> =>
  [...readCowFile(new Dripping(bytes), SIZE_BYTES).changedRuns()].map((run) => [run.firstBlock, run.blockCount]);
const refuses = (bytes: Buffer, code: string, field: RegExp): void =>
  assert.throws(
    () => runsIn(bytes),
    (error: unknown) => error instanceof CowFormatError && error.code === code && field.test(error.field),
  );

describe('reading a COW file', () => {
  it('finds the runs, over the border of two sections and up to the partial last block', () => {
    for (const indexOnly of [false, true]) {
      const runs = runsIn(cowFile({ indexOnly }));
      assert.deepEqual(runs, [
        [0, 3],
        [4095, 2],
        [4098, 1],
      ]);
    }
  });

  it('finds exactly the blocks whose entry is set', () => {
    fc.assert(
      fc.property(fc.uniqueArray(fc.nat(BLOCKS - 1), { maxLength: 200 }), (blocks) => {
        const entries = new Map(blocks.map((block) => [block, 1n] as const));
        const found = runsIn(cowFile({ indexOnly: true, entries })).flatMap(([first, count]) =>
          Array.from({ length: count }, (_, i) => first + i),
        );
        assert.deepEqual(
          found,
          blocks.sort((a, b) => a - b),
        );
      }),
      { numRuns: 50 },
    );
  });

  it('gives the saved blocks, and undefined for one that is not saved', () => {
    const cow = readCowFile(new Dripping(cowFile()), SIZE_BYTES);
    assert.deepEqual(
      CHANGED.map((block) => cow.readSaved(block)?.[4095]),
      CHANGED.map((_, i) => 0x40 + i),
    );
    assert.equal(cow.readSaved(3), undefined);
    for (const block of [-1, BLOCKS, 0.5, Number.NaN]) assert.throws(() => cow.readSaved(block), RangeError);
  });

  it('gives no block of an incremental file, nor of one that is in use and has its index in memory (I2)', () => {
    for (const options of [{ indexOnly: true }, { clean: false }]) {
      const cow = readCowFile(new Dripping(cowFile(options)), SIZE_BYTES);
      for (const block of [0, 3]) assert.throws(() => cow.readSaved(block), { code: 'ECOWFLAGS' });
    }
  });

  it('takes stale places above 1 in an incremental file as marks', () => {
    const entries = new Map([
      [5, 40n],
      [6, 0xffff_ffffn],
    ]);
    assert.deepEqual(runsIn(cowFile({ indexOnly: true, entries, positionBlocks: 999_999 })), [[5, 2]]);
  });

  it('does not hold the count of a version 0 or unclean file against it', () => {
    assert.equal(runsIn(cowFile({ version: 0, changedBlocks: 0 })).length, 3);
    assert.equal(runsIn(cowFile({ clean: false, changedBlocks: 0 })).length, 3);
    refuses(cowFile({ changedBlocks: CHANGED.length + 1 }), 'ECOWCOUNT', /nr_changed/);
  });

  it('never reads more than a piece at once, whatever the header says', () => {
    const sizeBytes = 1_000_000 * 4096;
    const dataOffset = 4096 + 245 * 32_768;
    const header: Options = { indexOnly: true, entries: new Map(), positionBlocks: 2 ** 50, fileSizeBytes: dataOffset };
    const reader = new Dripping(cowFile({ ...header, lengthBytes: dataOffset }), PIECE_BYTES);
    assert.deepEqual([...readCowFile(reader, sizeBytes).changedRuns()], []);
    assert.equal(reader.largest, PIECE_BYTES);
    const lying = new Dripping(cowFile({ fileSizeBytes: 2 ** 52, positionBlocks: 2 ** 40 }));
    assert.throws(() => readCowFile(lying, SIZE_BYTES), { code: 'ECOWSIZE' });
    assert.equal(lying.largest, 4096);
  });

  it('refuses a map of blocks beyond the end of the volume', () => {
    refuses(cowFile({ indexOnly: true, entries: new Map([[BLOCKS, 1n]]) }), 'ECOWENTRY', /entry of block 4099/);
  });

  it('refuses an incremental file of another volume', () => {
    refuses(cowFile({ indexOnly: true, fileSizeBytes: DATA_OFFSET_BYTES + 4096 }), 'ECOWSIZE', /fsize/);
  });

  it('takes a file whose store is full and ends in the middle of a place', () => {
    assert.equal(runsIn(cowFile({ positionBlocks: FIRST_PLACE + CHANGED.length + 1 })).length, 3);
    refuses(cowFile({ positionBlocks: FIRST_PLACE + CHANGED.length + 2 }), 'ECOWFPOS', /fpos/);
  });

  it('with any one byte of header or index changed is a typed error or a list within the volume', () => {
    const files = [cowFile(), cowFile({ indexOnly: true })];
    const flip = fc.integer({ min: 1, max: 255 });
    fc.assert(
      fc.property(fc.constantFrom(...files), fc.nat(DATA_OFFSET_BYTES - 1), flip, (file, at, mask) => {
        const bytes = Buffer.from(file);
        bytes.writeUInt8(bytes.readUInt8(at) ^ mask, at);
        try {
          for (const [first, count] of runsIn(bytes)) assert.ok(first >= 0 && count > 0 && first + count <= BLOCKS);
        } catch (error) {
          assert.ok(error instanceof CowFormatError, String(error));
        }
      }),
      { numRuns: 400 },
    );
  });
});

describe('a COW file on a disk', () => {
  const directory = mkdtempSync(join(tmpdir(), 'cowbird-cow-'));
  after(() => rmSync(directory, { recursive: true }));
  const path = join(directory, 'cow');

  function withReader<T>(use: (reader: PlainReader) => T): T {
    const reader = new PlainReader(path);
    try {
      return use(reader);
    } finally {
      reader.close();
    }
  }

  it('is read as it is in memory', () => {
    writeFileSync(path, cowFile());
    withReader((reader) => assert.equal([...readCowFile(reader, SIZE_BYTES).changedRuns()].length, 3));
  });

  it('is a typed error when cut short anywhere that matters', () => {
    for (const lengthBytes of [0, 1, 63, 64, 4095, 4096, 4097, 36_863, 36_864, DATA_OFFSET_BYTES - 1]) {
      writeFileSync(path, cowFile());
      truncateSync(path, lengthBytes);
      withReader((reader) => assert.throws(() => readCowFile(reader, SIZE_BYTES), { code: 'ECOWTRUNCATED' }));
    }
    truncateSync(path, DATA_OFFSET_BYTES);
    writeFileSync(path, cowFile().subarray(0, DATA_OFFSET_BYTES));
    withReader((reader) => assert.throws(() => readCowFile(reader, SIZE_BYTES), { code: 'ECOWSIZE' }));
  });

  it('that gets shorter while it is read is an error, never zeros', () => {
    writeFileSync(path, cowFile());
    withReader((reader) => {
      const cow = readCowFile(reader, SIZE_BYTES);
      truncateSync(path, 8192);
      assert.throws(() => [...cow.changedRuns()], { code: 'ECOWTRUNCATED' });
    });
  });

  it('is not read from what is no regular file', () => {
    assert.throws(() => new PlainReader('/dev/null'), TypeError);
  });
});
