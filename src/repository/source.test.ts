/** What a version is made from: bad blocks, what is in use, what may differ, and what a version says of itself then. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { blockCount } from '../cow/geometry.js';
import { CowbirdError } from '../sys/errors.js';
import { makeBits, setBit } from './bits.js';
import { REGION_BYTES } from './layout.js';
import { Repository } from './repository.js';
import { backUp, changed, diskWith, expectOneOf, IDENTITY, readAll, SIZE_BYTES, updateOptions } from './scenario.js';
import { memorySource, randomFrom, SimulatedDisk, SimulatedFiles } from './testing.js';
import { createVersion, prepareVersion } from './update.js';

const SEED = Number(process.env['COWBIRD_SEED'] ?? Math.floor(Date.now() / 1000) % 1_000_000);

describe(`a source (COWBIRD_SEED=${SEED})`, () => {
  it('with bad blocks makes no version, unless they are to be skipped and recorded', async () => {
    const bytes = Buffer.alloc(SIZE_BYTES, 5);
    const disk = new SimulatedDisk();
    const files = new SimulatedFiles(disk);
    await assert.rejects(backUp(files, bytes, {}, new Set([3])), /cannot be read at 12288/);
    assert.deepEqual([...(await readAll(files)).keys()], []);
    const first = await backUp(files, bytes, { skipBadBlocks: true }, new Set([3, 4, 300]));
    assert.deepEqual(first.version.skipped, [
      { offset: 12_288, lengthBytes: 8192 },
      { offset: 1_228_800, lengthBytes: 4096 },
    ]);
    const held = Buffer.from(bytes);
    held.fill(0, 12_288, 20_480).fill(0, 1_228_800, 1_232_896);
    await backUp(files, bytes);
    await expectOneOf(
      files,
      [
        new Map([
          [1, held],
          [2, bytes],
        ]),
      ],
      'the blocks can be read again',
    );
  });

  it('that says it was written meanwhile makes no version', async () => {
    const { disk, versions } = await diskWith(1, SEED);
    const files = new SimulatedFiles(disk);
    const bytes = changed(versions.get(1) ?? Buffer.alloc(0), randomFrom(SEED), 9);
    const repository = await Repository.open(files, 'write');
    const confirm = (): never => {
      throw new CowbirdError('EBUSY', 'written meanwhile');
    };
    const source = { sizeBytes: bytes.byteLength, identity: IDENTITY, file: memorySource(bytes), confirm };
    await assert.rejects(createVersion(repository, source, updateOptions()), /written meanwhile/);
    const prepared = await prepareVersion(repository, { ...source, confirm: undefined }, updateOptions());
    prepared.abort(new Error('taken back'));
    repository.close();
    await expectOneOf(files, [versions], 'written meanwhile');
  });

  it('gives its version the time of its instant, which may be long after it was begun', async () => {
    for (const count of [0, 1]) {
      const { disk, versions } = await diskWith(count, SEED);
      const bytes = changed(versions.get(1) ?? Buffer.alloc(SIZE_BYTES), randomFrom(SEED), 9);
      const repository = await Repository.open(new SimulatedFiles(disk), 'write', { mayBegin: true });
      let passes = 0;
      const nextPass = async (): Promise<undefined> => {
        passes++;
        return undefined;
      };
      const instant = (): Date => new Date(passes * 3_600_000);
      const source = { sizeBytes: bytes.byteLength, identity: IDENTITY, file: memorySource(bytes), nextPass, instant };
      const { version } = await createVersion(repository, source, updateOptions());
      repository.close();
      assert.equal(version.time, '1970-01-01T01:00:00.000Z', `version ${count + 1}`);
    }
  });

  it('reads only what may differ and what is in use, where the engine knows', async () => {
    const { disk, versions } = await diskWith(1, SEED);
    const files = new SimulatedFiles(disk);
    const bytes = Buffer.from(versions.get(1) ?? Buffer.alloc(0));
    bytes.fill(1, 0, 40_960);
    const regions = Math.ceil(SIZE_BYTES / 1_048_576);
    const [used, candidates] = [makeBits(regions), makeBits(regions)];
    for (let block = 0; block < blockCount(SIZE_BYTES); block++) if (block !== 7) setBit(used, block);
    for (const block of [2, 3, 7]) setBit(candidates, block);
    const repository = await Repository.open(files, 'write');
    const source = { sizeBytes: SIZE_BYTES, identity: IDENTITY, file: memorySource(bytes), used, candidates };
    const { version } = await createVersion(repository, source, updateOptions());
    repository.close();
    const expected = Buffer.from(versions.get(1) ?? Buffer.alloc(0));
    expected.fill(1, 8192, 16_384).fill(0, 28_672, 32_768);
    assert.ok(version.bytesRead < 200_000, `${version.bytesRead} bytes read`);
    assert.equal(version.whole, false);
    await expectOneOf(files, [new Map([...versions, [2, expected]])], 'blocks 2, 3 and 7');
  });

  it('reads around a bad block that nobody wants, between two that are wanted', async () => {
    const { disk, versions } = await diskWith(1, SEED);
    const files = new SimulatedFiles(disk);
    const bytes = Buffer.from(versions.get(1) ?? Buffer.alloc(0))
      .fill(3, 20_480, 24_576)
      .fill(3, 28_672, 32_768);
    const candidates = makeBits(Math.ceil(SIZE_BYTES / REGION_BYTES));
    for (const block of [5, 7]) setBit(candidates, block);
    const repository = await Repository.open(files, 'write');
    const source = { sizeBytes: SIZE_BYTES, identity: IDENTITY, file: memorySource(bytes, new Set([6])), candidates };
    const { version } = await createVersion(repository, source, updateOptions());
    repository.close();
    assert.deepEqual(version.skipped, []);
    await expectOneOf(files, [new Map([...versions, [2, bytes]])], 'blocks 5 and 7');
  });

  it('is whole only when nothing was left out, by it or by the version that it goes on from', async () => {
    const files = new SimulatedFiles(new SimulatedDisk());
    const bytes = Buffer.alloc(SIZE_BYTES, 4);
    const regions = Math.ceil(SIZE_BYTES / REGION_BYTES);
    const candidates = makeBits(regions);
    setBit(candidates, 1);
    const made: boolean[] = [];
    const used = makeBits(regions);
    // What the second left out is read for the third.
    for (const more of [{ used }, { used, candidates }, { candidates }, { candidates }]) {
      const repository = await Repository.open(files, 'write', { mayBegin: true });
      const source = { sizeBytes: SIZE_BYTES, identity: IDENTITY, file: memorySource(bytes), ...more };
      made.push((await createVersion(repository, source, updateOptions())).version.whole);
      repository.close();
    }
    assert.deepEqual(made, [false, false, true, true]);
  });
});
