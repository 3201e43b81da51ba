/**
 * Power cuts at every effect of every operation that writes to a repository, over a simulated disk that loses and tears what
 * was not made durable. A failure prints its seed and its effect.
 */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { pruneVersions } from './prune.js';
import { Repository, versionRecord } from './repository.js';
import { restoreVersion } from './restore.js';
import { runInThisThread } from './runner.js';
import { backUp, backUpMoving, changed, cutEverywhere, diskWith, SIZE_BYTES } from './scenario.js';
import { PowerCut, randomFrom, SimulatedDisk, SimulatedFiles } from './testing.js';

const SEED = Number(process.env['COWBIRD_SEED'] ?? Math.floor(Date.now() / 1000) % 1_000_000);
/** At each effect, each with another part of what was not durable left; the long run has more. */
const TRIES = Number(process.env['COWBIRD_CUT_TRIES'] ?? 1);
const NONE = new Map<number, Buffer>();

describe(`a repository whose power is cut (COWBIRD_SEED=${SEED})`, () => {
  it('has no version or the first, at every effect of the first backup', async () => {
    const bytes = changed(Buffer.alloc(SIZE_BYTES), randomFrom(SEED), 24);
    const allowed = [NONE, new Map([[1, bytes]])];
    const effects = await cutEverywhere(new SimulatedDisk(), (files) => backUp(files, bytes), allowed, {
      seed: SEED,
      tries: TRIES,
    });
    assert.ok(effects > 20, `${effects} effects`);
  });

  it('has the old versions or the new one too, at every effect of an incremental backup', async () => {
    const { disk, versions } = await diskWith(1, SEED);
    // Among what is overwritten are blocks that look like what stands for bytes that cannot be read.
    const marked = Buffer.from(versions.get(1) ?? Buffer.alloc(0)).fill(0xdb, 3 * 4096, 5 * 4096);
    await backUp(new SimulatedFiles(disk), marked);
    versions.set(2, marked);
    disk.effects = 0;
    const next = changed(marked, randomFrom(SEED + 7), 12).fill(0x5a, 3 * 4096, 5 * 4096);
    const allowed = [versions, new Map([...versions, [3, next]])];
    const effects = await cutEverywhere(disk, (files) => backUp(files, next), allowed, { seed: SEED, tries: TRIES });
    assert.ok(effects > 30, `${effects} effects`);
  });

  it('has the old size and contents or the new ones, at every effect of a backup of a source that grew', async () => {
    const { disk, versions } = await diskWith(1, SEED);
    const next = changed(versions.get(1) ?? Buffer.alloc(0), randomFrom(SEED + 9), 12, SIZE_BYTES + 1_300_007);
    const allowed = [versions, new Map([...versions, [2, next]])];
    await cutEverywhere(disk, (files) => backUp(files, next), allowed, { seed: SEED, tries: TRIES });
  });

  it('has no version or the last state of a source that moves, at every effect of the first backup', async () => {
    const states = statesFrom(changed(Buffer.alloc(SIZE_BYTES), randomFrom(SEED), 24), SEED);
    const last = states.at(-1) ?? Buffer.alloc(0);
    const operation = (files: SimulatedFiles): Promise<unknown> => backUpMoving(files, states, randomFrom(SEED));
    const allowed = [NONE, new Map([[1, last]])];
    await cutEverywhere(new SimulatedDisk(), operation, allowed, { seed: SEED, tries: TRIES });
  });

  for (const isListed of [true, false]) {
    it(`has the old versions or the last state of a source that moves too, ${isListed ? 'by a list' : 'compared'}`, async () => {
      const { disk, versions } = await diskWith(2, SEED);
      const old = versions.get(2) ?? Buffer.alloc(0);
      const states = statesFrom(changed(old, randomFrom(SEED + 7), 12), SEED);
      // Blocks go back to what the version has, too: those are in its delta, or in none.
      const back = Buffer.from(states.at(-1) ?? old);
      old.copy(back, 0, 0, SIZE_BYTES / 2);
      states.push(back);
      const operation = (files: SimulatedFiles): Promise<unknown> =>
        backUpMoving(files, states, randomFrom(SEED), isListed ? old : undefined);
      const effects = await cutEverywhere(disk, operation, [versions, new Map([...versions, [3, back]])], {
        seed: SEED,
        tries: TRIES,
      });
      assert.ok(effects > 30, `${effects} effects`);
    });
  }

  it('drops the oldest versions or has them all, at every effect of a prune', async () => {
    const { disk, versions } = await diskWith(4, SEED);
    const effects = await cutEverywhere(disk, (files) => prune(files, [3, 4]), setsOf(versions, [1, 2, 3, 4], [3, 4]), {
      seed: SEED,
      tries: TRIES,
    });
    assert.ok(effects > 5, `${effects} effects`);
  });

  it('merges what is dropped in the middle, at every effect of a prune; each step is whole', async () => {
    const { disk, versions } = await diskWith(6, SEED);
    const allowed = setsOf(versions, [1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6], [2, 4, 5, 6], [2, 4, 6]);
    const effects = await cutEverywhere(disk, (files) => prune(files, [2, 4, 6]), allowed, {
      seed: SEED,
      tries: TRIES,
    });
    assert.ok(effects > 20, `${effects} effects`);
  });

  it('merges across a source that grew', async () => {
    const { disk, versions } = await diskWith(1, SEED);
    const random = randomFrom(SEED + 1);
    const grown = changed(versions.get(1) ?? Buffer.alloc(0), random, 9, SIZE_BYTES + 700_001);
    const last = changed(grown, random, 9);
    await backUp(new SimulatedFiles(disk), grown);
    await backUp(new SimulatedFiles(disk), last);
    disk.effects = 0;
    const all = new Map([...versions, [2, grown], [3, last]]);
    await cutEverywhere(disk, (files) => prune(files, [1, 3]), setsOf(all, [1, 2, 3], [1, 3]), {
      seed: SEED,
      tries: TRIES,
    });
  });

  it('restores when it is run again after a cut, at every effect of a restore', async () => {
    const { disk: repository, versions } = await diskWith(3, SEED);
    const expected = versions.get(1) ?? Buffer.alloc(0);
    for (let cutAt = 1; ; cutAt++) {
      const disk = repository.copy();
      const files = new SimulatedFiles(disk);
      files.open('target', 'create').pwrite(Buffer.alloc(300_000, 7), 0);
      disk.effects = 0;
      disk.cutAt = cutAt;
      let isCut = false;
      try {
        await restore(files, 1);
      } catch (error) {
        if (!(error instanceof PowerCut)) throw error;
        isCut = true;
        disk.reboot(randomFrom(SEED + cutAt));
        await restore(files, 1);
      }
      const bytes = Buffer.alloc(SIZE_BYTES + 4096);
      const count = files.open('target', 'read').pread(bytes, 0);
      assert.ok(bytes.subarray(0, count).equals(expected), `seed ${SEED}, cut at effect ${cutAt}`);
      if (!isCut) break;
    }
  });
});

/** What a source is while it is read, one after another. */
function statesFrom(first: Buffer, seed: number): Buffer[] {
  const random = randomFrom(seed + 3);
  const states = [first];
  for (let i = 0; i < 3; i++) states.push(changed(states.at(-1) ?? first, random, 8));
  return states;
}

function setsOf(versions: ReadonlyMap<number, Buffer>, ...sets: number[][]): Map<number, Buffer>[] {
  return sets.map((numbers) => new Map([...versions].filter(([number]) => numbers.includes(number))));
}

async function prune(files: SimulatedFiles, kept: number[]): Promise<void> {
  const repository = await Repository.open(files, 'write');
  await pruneVersions(repository, kept);
  repository.close();
}

async function restore(files: SimulatedFiles, number: number): Promise<void> {
  const repository = await Repository.open(files, 'read');
  const record = versionRecord(files, repository.requireManifest(), number);
  const file = files.open('target', files.witness('target') === undefined ? 'create' : 'write');
  const target = { open: () => file, isFile: true, sizeBytes: file.sizeBytes() };
  await restoreVersion(repository, record, target, { all: false, dryRun: false, run: runInThisThread });
  repository.close();
}
