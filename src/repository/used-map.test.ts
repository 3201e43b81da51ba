/** What the newest version has contents of: blocks that come into use again without being written are read all the same. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { BLOCK_SIZE_BYTES, blockCount } from '../cow/geometry.js';
import { hasBit, makeBits, setBit } from './bits.js';
import { regionCount } from './layout.js';
import { Repository } from './repository.js';
import { runInThisThread } from './runner.js';
import { changed, cutEverywhere, differing, IDENTITY, readAll, SIZE_BYTES, updateOptions } from './scenario.js';
import type { BackupSource } from './source.js';
import { newestOf } from './state.js';
import { memorySource, randomFrom, SimulatedDisk, SimulatedFiles } from './testing.js';
import { createVersion, type UpdateResult } from './update.js';
import { decodeUsedMap, encodeUsedMap } from './used-map.js';
import { verifyRepository } from './verify.js';

const SEED = Number(process.env['COWBIRD_SEED'] ?? Math.floor(Date.now() / 1000) % 1_000_000);
/** The long run has more. */
const TRIES = Number(process.env['COWBIRD_CUT_TRIES'] ?? 1);
const BLOCKS = blockCount(SIZE_BYTES);
const USED_SHARE = 0.6;

/** A file system: its blocks, and which of them it calls used. */
interface State {
  bytes: Buffer;
  /** Undefined where that is not known. */
  used: Uint8Array | undefined;
}

describe(`a version of the used blocks of a source (COWBIRD_SEED=${SEED})`, () => {
  it('has what was called used again without having been written, as after a repair', async () => {
    const random = randomFrom(SEED);
    const files = new SimulatedFiles(new SimulatedDisk());
    let state = { bytes: changed(Buffer.alloc(SIZE_BYTES, 3), random, 30), used: randomBits(random, USED_SHARE) };
    await backUp(files, state);
    for (let round = 0; round < 12; round++) {
      const next = { bytes: changed(state.bytes, random, 6), used: randomBits(random, USED_SHARE) };
      await backUp(files, next, differing(state.bytes, next.bytes));
      const newest = [...(await readAll(files)).values()].at(-1) ?? Buffer.alloc(0);
      for (let block = 0; block < BLOCKS; block++) {
        if (!hasBit(next.used, block)) continue;
        assert.ok(blockOf(newest, block).equals(blockOf(next.bytes, block)), `round ${round}, block ${block}`);
      }
      state = next;
    }
  });

  it('reads no more than what changed and what came into use', async () => {
    const files = new SimulatedFiles(new SimulatedDisk());
    const used = makeBits(regionCount(SIZE_BYTES));
    for (let block = 0; block < 100; block++) setBit(used, block);
    const bytes = Buffer.alloc(SIZE_BYTES, 9);
    await backUp(files, { bytes, used });
    setBit(used, 300);
    const { version } = await backUp(files, { bytes, used }, makeBits(regionCount(SIZE_BYTES)));
    // Once to compare, once to write.
    assert.equal(version.bytesRead, 2 * BLOCK_SIZE_BYTES);
  });

  it('is whole when the rest was read too', async () => {
    const files = new SimulatedFiles(new SimulatedDisk());
    const bytes = changed(Buffer.alloc(SIZE_BYTES, 3), randomFrom(SEED), 20);
    const first = await backUp(files, { bytes, used: randomBits(randomFrom(SEED), USED_SHARE) });
    assert.equal(first.version.whole, false);
    const second = await backUp(files, { bytes, used: undefined }, makeBits(regionCount(SIZE_BYTES)));
    assert.equal(second.version.whole, true);
    assert.ok((await readAll(files)).get(2)?.equals(bytes));
    assert.deepEqual(new Set(files.list('history')), new Set(['1.cow']));
  });

  it('is compared with all of the source where the map is damaged, which verify tells', async () => {
    const files = new SimulatedFiles(new SimulatedDisk());
    const used = randomBits(randomFrom(SEED), USED_SHARE);
    const bytes = Buffer.alloc(SIZE_BYTES, 9);
    await backUp(files, { bytes, used });
    const map = files.open('history/1.used', 'write');
    const byte = Buffer.alloc(1);
    map.pread(byte, map.sizeBytes() - 1);
    map.pwrite(Buffer.from([(byte[0] ?? 0) ^ 1]), map.sizeBytes() - 1);
    const [damage, ...more] = await verify(files);
    assert.deepEqual(more, []);
    assert.equal(damage?.file, 'history/1.used');
    assert.deepEqual(damage?.versions, []);
    const all = randomBits(randomFrom(SEED), 1.1);
    const result = await backUp(files, { bytes, used: all }, makeBits(regionCount(SIZE_BYTES)));
    assert.match(result.lostUsedMap ?? '', /history\/1\.used: its checksum is wrong/);
    assert.ok((await readAll(files)).get(2)?.equals(bytes));
    assert.deepEqual(await verify(files), []);
  });

  it('is compared with all of the source where the map cannot be read, or is gone', async () => {
    const files = new SimulatedFiles(new SimulatedDisk());
    const used = randomBits(randomFrom(SEED), USED_SHARE);
    const bytes = Buffer.alloc(SIZE_BYTES, 9);
    const none = makeBits(regionCount(SIZE_BYTES));
    await backUp(files, { bytes, used });
    const open = files.open.bind(files);
    files.open = (name, mode) => {
      const file = open(name, mode);
      if (name !== 'history/1.used' || mode !== 'read') return file;
      const pread = (): never => {
        throw Object.assign(new Error('this sector is bad'), { code: 'EIO', errno: -5 });
      };
      file.pread = pread;
      return file;
    };
    const [damage] = await verify(files);
    assert.match(damage?.what ?? '', /this sector is bad/);
    const unreadable = await backUp(files, { bytes, used }, none);
    assert.match(unreadable.lostUsedMap ?? '', /history\/1\.used: this sector is bad/);
    files.unlink('history/2.used');
    assert.deepEqual(await verify(files), []);
    assert.equal((await backUp(files, { bytes, used }, none)).lostUsedMap, 'history/2.used is gone');
  });

  it('is there or the one before is, each with its map, at every effect of a backup whose power is cut', async () => {
    const random = randomFrom(SEED);
    const disk = new SimulatedDisk();
    const state = { bytes: changed(Buffer.alloc(SIZE_BYTES, 3), random, 30), used: randomBits(random, USED_SHARE) };
    await backUp(new SimulatedFiles(disk), state);
    const old = await readAll(new SimulatedFiles(disk));
    const next = { bytes: changed(state.bytes, random, 6), used: randomBits(random, USED_SHARE) };
    const candidates = differing(state.bytes, next.bytes);
    const done = disk.copy();
    await backUp(new SimulatedFiles(done), next, candidates);
    const all = await readAll(new SimulatedFiles(done));
    disk.effects = 0;
    // What is read back is also verified: no map is lost.
    const backup = (files: SimulatedFiles): Promise<unknown> => backUp(files, next, candidates);
    await cutEverywhere(disk, backup, [old, all], { seed: SEED, tries: TRIES });
  });

  it('is not there at every effect of a first backup whose power is cut, or is with its map', async () => {
    const state = { bytes: Buffer.alloc(SIZE_BYTES, 3), used: randomBits(randomFrom(SEED), USED_SHARE) };
    const done = new SimulatedFiles(new SimulatedDisk());
    await backUp(done, state);
    const backup = (files: SimulatedFiles): Promise<unknown> => backUp(files, state);
    await cutEverywhere(new SimulatedDisk(), backup, [new Map(), await readAll(done)], { seed: SEED, tries: TRIES });
  });
});

describe('a used map', () => {
  const facts = { version: 7, sizeBytes: SIZE_BYTES, series: Buffer.alloc(16, 5) };
  const bits = randomBits(randomFrom(SEED), USED_SHARE);
  const encoded = encodeUsedMap(facts, bits) ?? Buffer.alloc(0);

  it('reads back as it was written', () => {
    const decoded = decodeUsedMap(encoded, facts);
    assert.ok('bits' in decoded && Buffer.from(decoded.bits).equals(Buffer.from(bits)));
  });

  it('is refused with any bit flipped, any byte missing, and for another version, size or repository', () => {
    for (let bit = 0; bit < encoded.byteLength * 8; bit++) {
      const flipped = Buffer.from(encoded);
      flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      assert.ok('problem' in decodeUsedMap(flipped, facts), `bit ${bit}`);
    }
    for (let length = 0; length < encoded.byteLength; length++)
      assert.ok('problem' in decodeUsedMap(encoded.subarray(0, length), facts), `${length} bytes`);
    for (const other of [{ version: 8 }, { sizeBytes: SIZE_BYTES + 1 }, { series: Buffer.alloc(16, 6) }])
      assert.match(JSON.stringify(decodeUsedMap(encoded, { ...facts, ...other })), /is not of version/);
  });
});

async function backUp(files: SimulatedFiles, { bytes, used }: State, candidates?: Uint8Array): Promise<UpdateResult> {
  const repository = await Repository.open(files, 'write', { mayBegin: true });
  try {
    const file = memorySource(bytes);
    const source: BackupSource = { sizeBytes: bytes.byteLength, identity: IDENTITY, file, used, candidates };
    return await createVersion(repository, source, updateOptions());
  } finally {
    repository.close();
  }
}

async function verify(files: SimulatedFiles): Promise<Awaited<ReturnType<typeof verifyRepository>>['damage']> {
  const repository = await Repository.open(files, 'read');
  try {
    const report = await verifyRepository(repository, { run: runInThisThread });
    assert.ok(report.whole.includes(newestOf(repository.requireManifest()).number));
    return report.damage;
  } finally {
    repository.close();
  }
}

function randomBits(random: () => number, share: number): Uint8Array {
  const bits = makeBits(regionCount(SIZE_BYTES));
  for (let block = 0; block < BLOCKS; block++) if (random() < share) setBit(bits, block);
  return bits;
}

function blockOf(bytes: Buffer, block: number): Buffer {
  return bytes.subarray(block * BLOCK_SIZE_BYTES, (block + 1) * BLOCK_SIZE_BYTES);
}
