/**
 * COW files and origins of any bytes: a typed error that names what is wrong, or a result that holds together. Never an
 * allocation by a number that was read.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { bufferOf, MemoryDevice } from '../tracer/testing.js';
import { CowFormatError } from './errors.js';
import { type CowFile, type PositionedReader, readCowFile } from './file.js';
import { detectFileSystem, originFingerprint } from './fingerprint.js';
import { dataOffsetBytes } from './geometry.js';
import { decodeHeader, encodeHeader } from './header.js';
import { encodeEntries } from './index-codec.js';

const HEADER_BYTES = 4096;
const PIECE_BYTES = 1_048_576;
const U64_MAX = 2n ** 64n - 1n;
/** Names, lengths and numbers that lie: nothing, one, around 2^31, 2^32, 2^53 and 2^63, all bits, unaligned. */
const EXTREMES = [0n, 1n, 3n, 4095n, 4097n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 32n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 63n];
const extreme = fc.oneof(fc.constantFrom(...EXTREMES, U64_MAX), fc.bigInt(0n, U64_MAX), fc.bigInt(0n, 600n));

/** A file as it is on a disk, with the size of the volume that it belongs to. */
interface Sample {
  name: string;
  bytes: Buffer;
  volumeBytes: number;
}

/** A file made by the encoders; its index has two sections, and the volume's last block is partial. */
function madeFile(name: string, indexOnly: boolean, withExtension: boolean): Sample {
  const volumeBytes = 4098 * 4096 + 512;
  const dataOffset = dataOffsetBytes(4099);
  const changed = [0, 1, 7, 4095, 4096, 4098];
  const firstPlace = dataOffset / 4096;
  const fileSizeBytes = dataOffset + (indexOnly ? 0 : changed.length * 4096 + 100);
  const bytes = Buffer.alloc(fileSizeBytes, 0x55);
  const entries = new Uint32Array(8192);
  changed.forEach((block, i) => {
    entries[block] = indexOnly ? 1 : firstPlace + i;
  });
  const header = encodeHeader({
    clean: true,
    indexOnly,
    vmallocUpper: false,
    positionBlocks: firstPlace + (indexOnly ? 0 : changed.length),
    fileSizeBytes,
    sequenceId: 3,
    uuid: new Uint8Array(16).fill(5),
    version: 1,
    changedBlocks: changed.length,
    ...(withExtension ? { extension: { fingerprint: new Uint8Array(32).fill(9), volumeSizeBytes: volumeBytes } } : {}),
  });
  header.copy(bytes);
  encodeEntries(entries).copy(bytes, HEADER_BYTES);
  return { name, bytes, volumeBytes };
}

const VECTORS = fileURLToPath(new URL('../../../test/vectors/', import.meta.url));

/** The real module's file, cut after its data: `fsize` is set to what is left. */
function vectorFile(name: string): Sample {
  const options = { maxBuffer: 64 * PIECE_BYTES };
  const whole = execFileSync('zstd', ['-dcq', join(VECTORS, 'ext4-64m', `${name}.zst`)], options);
  const bytes = Buffer.from(whole.subarray(0, Math.min(whole.byteLength, 270 * 4096)));
  const isSnapshot = whole.byteLength > bytes.byteLength;
  if (isSnapshot) bytes.writeBigUInt64LE(BigInt(bytes.byteLength), 16);
  return { name, bytes, volumeBytes: 67_108_864 };
}

const SAMPLES: readonly Sample[] = [
  madeFile('snapshot', false, false),
  madeFile('snapshot with extension', false, true),
  madeFile('incremental', true, true),
  vectorFile('cow.snapshot.dormant-clean.bin'),
  vectorFile('cow.incremental.leftover.bin'),
];

/** Bytes that are read a few at a time, as a read may give them; notes how much was asked for at once. */
class Watched implements PositionedReader {
  readonly bytes: Uint8Array;
  readonly lengthBytes: number;
  largest = 0;
  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.lengthBytes = bytes.byteLength;
  }
  read(buffer: Uint8Array, offset: number): number {
    assert.ok(Number.isSafeInteger(offset) && offset >= 0, `offset ${offset} is one`);
    this.largest = Math.max(this.largest, buffer.byteLength);
    const piece = this.bytes.subarray(offset, offset + Math.min(buffer.byteLength, 60_000));
    buffer.set(piece);
    return piece.byteLength;
  }
}

type Mutation =
  | { kind: 'flip'; at: number; mask: number }
  | { kind: 'field'; at: number; value: bigint }
  | { kind: 'entry'; block: number; value: bigint }
  | { kind: 'bytes'; at: number; bytes: Uint8Array }
  | { kind: 'cut'; lengthBytes: number }
  | { kind: 'splice'; at: number; remove: number; insert: Uint8Array };

// Most of them in the header: that is where the numbers are.
const place = fc.oneof(fc.nat(63), fc.integer({ min: 512, max: 575 }), fc.nat(4095), fc.nat(270 * 4096));
const FIELDS = [0, 4, 8, 16, 24, 32, 40, 48, 56, 512, 516, 552, 568];
const mutation: fc.Arbitrary<Mutation> = fc.oneof(
  fc.record({ kind: fc.constant('flip' as const), at: place, mask: fc.integer({ min: 1, max: 255 }) }),
  fc.record({ kind: fc.constant('field' as const), at: fc.constantFrom(...FIELDS), value: extreme }),
  fc.record({ kind: fc.constant('entry' as const), block: fc.nat(16_383), value: extreme }),
  fc.record({ kind: fc.constant('bytes' as const), at: place, bytes: fc.uint8Array({ maxLength: 64 }) }),
  fc.record({ kind: fc.constant('cut' as const), lengthBytes: place }),
  fc.record({
    kind: fc.constant('splice' as const),
    at: place,
    remove: fc.nat(9000),
    insert: fc.uint8Array({ maxLength: 32 }),
  }),
);

function mutated(bytes: Buffer, step: Mutation): Buffer {
  const at = 'at' in step ? Math.min(step.at, Math.max(0, bytes.byteLength - 1)) : 0;
  switch (step.kind) {
    case 'flip':
      if (bytes.byteLength > 0) bytes.writeUInt8(bytes.readUInt8(at) ^ step.mask, at);
      return bytes;
    case 'field':
      if (bytes.byteLength >= step.at + 8) bytes.writeBigUInt64LE(step.value, step.at);
      return bytes;
    case 'entry':
      if (bytes.byteLength >= HEADER_BYTES + step.block * 8 + 8)
        bytes.writeBigUInt64LE(step.value, HEADER_BYTES + step.block * 8);
      return bytes;
    case 'bytes':
      bytes.set(step.bytes.subarray(0, bytes.byteLength - at), at);
      return bytes;
    case 'cut':
      return bytes.subarray(0, step.lengthBytes);
    case 'splice':
      return Buffer.concat([bytes.subarray(0, at), step.insert, bytes.subarray(at + step.remove)]);
  }
}

const CODES = /^ECOW(TRUNCATED|MAGIC|FLAGS|VERSION|SEQUENCE|FPOS|SIZE|ENTRY|COUNT|EXTENSION)$/;

/** What a person must be able to tell from it: the field, its value, what was expected. */
function requireNamed(error: unknown): void {
  assert.ok(error instanceof CowFormatError, error instanceof Error ? (error.stack ?? error.message) : String(error));
  assert.match(error.code, CODES);
  assert.equal(error.message.indexOf(`COW file: ${error.field} is ${error.value}, expected `), 0, error.message);
  assert.ok(error.field.length > 0 && error.message.length < 200, error.message);
  assert.doesNotMatch(error.message, /undefined|NaN|\[object/);
}

/** Runs what may refuse; the result of what did not. */
function orRefused<T>(action: () => T): T | undefined {
  try {
    return action();
  } catch (error) {
    requireNamed(error);
    return undefined;
  }
}

/** Everything that an accepted file says of itself must be so, and nothing of it may have been passed over. */
function requireConsistent(cow: CowFile, bytes: Buffer, volumeBytes: number): void {
  const { header } = cow;
  const blocks = Math.ceil(volumeBytes / 4096);
  const dataOffset = dataOffsetBytes(blocks);
  assert.equal(cow.blockCount, blocks);
  assert.ok(encodeHeader(header).equals(bytes.subarray(0, HEADER_BYTES)), 'the header is the page, in every byte');
  assert.ok(header.extension === undefined || header.extension.volumeSizeBytes === volumeBytes, 'of this volume');
  const lengthOf = header.indexOnly ? dataOffset : bytes.byteLength;
  assert.ok(header.fileSizeBytes >= dataOffset && header.fileSizeBytes <= lengthOf, 'the file is as long as it says');
  const isPosition =
    header.positionBlocks * 4096 >= dataOffset && (header.positionBlocks - 1) * 4096 < bytes.byteLength;
  assert.ok(header.indexOnly || isPosition, 'its position is inside');
  const marked: number[] = [];
  let next = 0;
  for (const { firstBlock, entries } of cow.entries()) {
    assert.equal(firstBlock, next);
    next += entries.length;
    const at = HEADER_BYTES + firstBlock * 8;
    assert.ok(encodeEntries(entries).equals(bytes.subarray(at, at + entries.length * 8)), 'entries are the index');
    entries.forEach((entry, i) => {
      if (entry === 0) return;
      marked.push(firstBlock + i);
      const inStore = entry * 4096 >= dataOffset && entry < header.positionBlocks;
      assert.ok(header.indexOnly || inStore, `entry ${entry} is a place`);
    });
  }
  assert.equal(next, blocks);
  const runs = orRefused(() => [...cow.changedRuns()]);
  if (runs === undefined) return;
  const found = runs.flatMap((run) => Array.from({ length: run.blockCount }, (_, i) => run.firstBlock + i));
  assert.deepEqual(found, marked);
  runs.forEach((run, i) => {
    const previous = runs[i - 1];
    assert.ok(previous === undefined || previous.firstBlock + previous.blockCount < run.firstBlock, 'runs are apart');
  });
  if (header.version === 1 && header.clean) assert.equal(marked.length, header.changedBlocks);
  for (const block of [...marked.slice(0, 4), ...marked.slice(-4), 2, blocks - 1]) {
    const saved = orRefused(() => cow.readSaved(block));
    if (saved === undefined) continue;
    assert.ok(header.clean && !header.indexOnly && marked.includes(block));
    const entry = bytes.readUInt32LE(HEADER_BYTES + block * 8);
    assert.ok(bytes.subarray(entry * 4096, entry * 4096 + 4096).equals(saved));
  }
}

function tryFile(bytes: Buffer, volumeBytes: number): void {
  const reader = new Watched(bytes);
  orRefused(() => requireConsistent(readCowFile(reader, volumeBytes), bytes, volumeBytes));
  assert.ok(reader.largest <= Math.min(PIECE_BYTES, Math.max(HEADER_BYTES, bytes.byteLength)), `${reader.largest}`);
}

describe('a COW file with anything wrong in it', () => {
  it('is accepted while nothing is wrong', () => {
    for (const { bytes, volumeBytes } of SAMPLES) {
      const cow = readCowFile(new Watched(bytes), volumeBytes);
      requireConsistent(cow, bytes, volumeBytes);
      assert.equal([...cow.changedRuns()].length > 2, true);
    }
  });

  for (const sample of SAMPLES) {
    it(`is an error that names the field, or holds together: ${sample.name}`, () => {
      fc.assert(
        fc.property(fc.array(mutation, { minLength: 1, maxLength: 4 }), (steps) => {
          tryFile(steps.reduce(mutated, Buffer.from(sample.bytes)), sample.volumeBytes);
        }),
        { numRuns: sample.bytes.byteLength > 200_000 ? 200 : 500 },
      );
    });
  }

  it('is not taken for one of a volume of another size when it says which size it was', () => {
    const { bytes, volumeBytes } = madeFile('with extension', false, true);
    fc.assert(
      fc.property(fc.oneof(fc.integer({ min: -8, max: 8 }), fc.integer({ min: -30_000, max: 30_000 })), (sectors) => {
        const other = volumeBytes + sectors * 512;
        if (sectors === 0) return;
        assert.throws(() => readCowFile(new Watched(bytes), other), CowFormatError, `${other} bytes`);
      }),
      { numRuns: 100 },
    );
  });

  it('takes memory by what is there, not by what it says', () => {
    for (const { bytes, volumeBytes } of SAMPLES.slice(0, 3)) {
      for (const at of [8, 16, 56, 516, 552]) {
        for (const value of [...EXTREMES, U64_MAX]) {
          const lying = Buffer.from(bytes);
          lying.writeBigUInt64LE(value, at);
          const before = process.memoryUsage().arrayBuffers;
          const started = performance.now();
          orRefused(() => {
            const cow = readCowFile(new Watched(lying), volumeBytes);
            return [...cow.changedRuns()].map(({ firstBlock }) => orRefused(() => cow.readSaved(firstBlock)));
          });
          const tookBytes = process.memoryUsage().arrayBuffers - before;
          assert.ok(tookBytes < 4 * PIECE_BYTES, `${tookBytes} bytes for ${value} at ${at}`);
          assert.ok(performance.now() - started < 1000, `${value} at ${at} is read at once`);
        }
      }
    }
  });

  it('is no file at all when it is a named pipe, and that is said at once', () => {
    const folder = mkdtempSync(join(tmpdir(), 'cowbird-cow-fuzz-'));
    try {
      const pipe = join(folder, 'pipe');
      execFileSync('mkfifo', [pipe]);
      for (const [file, reader, said] of [
        ['./file.js', 'PlainReader', /pipe is no regular file/],
        ['../sys/direct-reader.js', 'DirectReader', /pipe, which is neither a file nor a block device: ENOTBLK/],
      ] as const) {
        const program = `import { ${reader} } from ${JSON.stringify(new URL(file, import.meta.url).href)};
          try { new ${reader}(process.argv[1]); } catch (error) { console.log(error.message); }`;
        const argv = ['--input-type=module', '-e', program, pipe];
        const { stdout } = spawnSync(process.execPath, argv, { encoding: 'utf8', timeout: 4000 });
        assert.match(stdout, said);
      }
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

describe('a header page', () => {
  it('of any numbers is an error that names the field, or is encoded again to the same bytes', () => {
    const fields = fc.array(fc.tuple(fc.constantFrom(...FIELDS), extreme), { minLength: 1, maxLength: 5 });
    fc.assert(
      fc.property(fc.constantFrom(...SAMPLES), fields, (sample, writes) => {
        const page = Buffer.from(sample.bytes.subarray(0, HEADER_BYTES));
        for (const [at, value] of writes) page.writeBigUInt64LE(value, at);
        const header = orRefused(() => decodeHeader(page));
        if (header !== undefined) assert.ok(encodeHeader(header).equals(page));
      }),
      { numRuns: 1000 },
    );
  });
});

/** A disk that begins like XFS, with a log wherever its superblock says. */
const xfsLike = fc.record({
  blockSize: fc.oneof(fc.constantFrom(0, 511, 512, 513, 1000, 4096, 65_536), fc.integer({ min: 0, max: 0xffff_ffff })),
  logStart: fc.oneof(fc.bigInt(0n, 600n), extreme),
  agBlocks: fc.oneof(fc.nat(600), fc.constantFrom(0xffff_ffff, 0x7fff_ffff)),
  logBlocks: fc.oneof(fc.nat(600), fc.constantFrom(0xffff_ffff, 0x7fff_ffff)),
  agBlocksLog: fc.nat(255),
  rest: fc.uint8Array({ minLength: 1, maxLength: 512 }),
});

describe('an origin', () => {
  it('whose superblock is garbage still has a fingerprint, read from inside it in whole sectors', () => {
    const buffer = bufferOf(131_072);
    fc.assert(
      fc.property(xfsLike, fc.integer({ min: 1, max: 600 }), (xfs, sectors) => {
        const device = new MemoryDevice(sectors * 512);
        for (let at = 0; at < device.sizeBytes; at += 512) device.bytes.set(xfs.rest, at);
        device.bytes.write('XFSB', 0, 'latin1');
        device.bytes.writeUInt32BE(xfs.blockSize, 4);
        device.bytes.writeBigUInt64BE(xfs.logStart, 48);
        device.bytes.writeUInt32BE(xfs.agBlocks, 84);
        device.bytes.writeUInt32BE(xfs.logBlocks, 96);
        device.bytes.writeUInt8(xfs.agBlocksLog, 124);
        const before = originFingerprint(device, buffer);
        assert.equal(before.byteLength, 32);
        assert.equal(detectFileSystem(device, buffer), 'xfs');
        device.bytes.writeUInt8(device.bytes.readUInt8(200) ^ 1, 200);
        assert.notDeepEqual(originFingerprint(device, buffer), before);
      }),
      { numRuns: 1500 },
    );
  });
});
