/**
 * Versions of two repositories at one instant, the power cut at every effect: both have the version, or neither, whichever of
 * them is opened first, and however often making that good is cut off again.
 */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import type { FileWitness, Lock, OpenMode, RepositoryFiles, WritableFile } from './files.js';
import { TOGETHER } from './layout.js';
import { pruneVersions } from './prune.js';
import { Repository } from './repository.js';
import { changed, IDENTITY, readAll, SIZE_BYTES, updateOptions, type Versions } from './scenario.js';
import { memorySource, PowerCut, randomFrom, SimulatedDisk, SimulatedFiles } from './testing.js';
import { commitTogether } from './together.js';
import { createVersion, type PreparedVersion, prepareVersion, type UpdateResult } from './update.js';

const SEED = Number(process.env['COWBIRD_SEED'] ?? Math.floor(Date.now() / 1000) % 1_000_000);
const ID = '0123456789abcdef0123456789abcdef';
const PATHS = ['/a', '/b'] as const;

/** Empty folders that survive a power cut. A disk knows files only. */
const folders = new WeakMap<SimulatedDisk, Set<string>>();

/** A repository in a folder of a simulated disk, so that one power cut is that of all. */
class FolderFiles implements RepositoryFiles {
  readonly path: string;
  readonly #disk: SimulatedDisk;
  readonly #base: SimulatedFiles;
  #isMade = false;
  /** Not mounted. */
  readonly isGone: boolean;

  constructor(disk: SimulatedDisk, path: string, gone: readonly string[] = []) {
    this.path = path;
    this.#disk = disk;
    this.#base = new SimulatedFiles(disk);
    this.isGone = gone.includes(path);
    this.other = (other) => new FolderFiles(disk, other, gone);
  }

  readonly other: (path: string) => RepositoryFiles;

  #in(name: string): string {
    return name === '' ? this.path.slice(1) : `${this.path.slice(1)}/${name}`;
  }

  open(name: string, mode: OpenMode): WritableFile {
    return this.#base.open(this.#in(name), mode);
  }

  witness(name: string): FileWitness | undefined {
    return this.isGone ? undefined : this.#base.witness(this.#in(name));
  }

  list(folder: string): string[] | undefined {
    if (this.isGone) return undefined;
    const names = this.#base.list(this.#in(folder)) ?? [];
    const hasFolder = folder === '' && folders.get(this.#disk)?.has(this.path) === true;
    return hasFolder && !names.includes(TOGETHER) ? [...names, TOGETHER] : names;
  }

  makeFolder(folder: string): void {
    if (folder === TOGETHER) this.#isMade = true;
  }

  rename(from: string, to: string): void {
    this.#base.rename(this.#in(from), this.#in(to));
  }

  unlink(name: string): void {
    this.#base.unlink(this.#in(name));
  }

  fsyncFolder(folder: string): void {
    this.#base.fsyncFolder(this.#in(folder));
    if (folder !== '' || !this.#isMade) return;
    const known = folders.get(this.#disk) ?? new Set();
    folders.set(this.#disk, known.add(this.path));
  }

  freeBytes(): number {
    return this.#base.freeBytes();
  }

  isCopyOnWrite(): boolean {
    return false;
  }

  tryLock(): Lock {
    return this.#base.tryLock();
  }

  lockHolder(): string {
    return this.#base.lockHolder();
  }
}

/** One backup of each, at one instant. `failing`: the second source is found to have changed. */
async function backUpBoth(
  files: readonly RepositoryFiles[],
  contents: readonly Buffer[],
  failing = false,
): Promise<UpdateResult[]> {
  const repositories: Repository[] = [];
  const parts: PreparedVersion[] = [];
  for (const one of files) repositories.push(await Repository.open(one, 'write', { mayBegin: true }));
  for (const [i, repository] of repositories.entries()) {
    const bytes = contents[i] ?? Buffer.alloc(0);
    const confirm = async (): Promise<void> => {
      if (failing && i === 1) throw Object.assign(new Error('changed'), { code: 'EBUSY' });
    };
    const source = { sizeBytes: bytes.byteLength, identity: IDENTITY, file: memorySource(bytes), confirm };
    parts.push(await prepareVersion(repository, source, updateOptions({ togetherId: ID })));
  }
  return commitTogether(ID, parts);
}

async function backUpOne(files: RepositoryFiles, bytes: Buffer): Promise<void> {
  const repository = await Repository.open(files, 'write', { mayBegin: true });
  const source = { sizeBytes: bytes.byteLength, identity: IDENTITY, file: memorySource(bytes) };
  await createVersion(repository, source, updateOptions());
}

const filesOn = (disk: SimulatedDisk, gone: readonly string[] = []): FolderFiles[] =>
  PATHS.map((path) => new FolderFiles(disk, path, gone));

async function isCut(action: () => Promise<unknown>): Promise<boolean> {
  try {
    await action();
    return false;
  } catch (error) {
    const isOff = error instanceof Error && /the machine is off|at effect/.test(error.message);
    if (error instanceof PowerCut || isOff) return true;
    throw error;
  }
}

/** Opens both to write, in either order, and cuts the power now and then. */
async function settleBoth(disk: SimulatedDisk, random: () => number): Promise<void> {
  const order = random() < 0.5 ? [0, 1] : [1, 0];
  for (let cuts = 0; cuts < 3; cuts++) {
    disk.cutAt = 1 + Math.floor(random() * 30);
    const open = async (): Promise<void> => {
      for (const i of order) {
        const files = filesOn(disk)[i];
        if (files !== undefined) (await Repository.open(files, 'write', { mayBegin: true })).close();
      }
    };
    const wasCut = await isCut(open);
    disk.cutAt = 0;
    if (!wasCut) return;
    disk.reboot(random);
  }
}

function isSame(found: Versions, expected: Versions): boolean {
  return found.size === expected.size && [...expected].every(([number, bytes]) => found.get(number)?.equals(bytes));
}

interface Start {
  disk: SimulatedDisk;
  before: [Versions, Versions];
}

async function startWith(versions: number, seed: number): Promise<Start> {
  const disk = new SimulatedDisk();
  const before: [Map<number, Buffer>, Map<number, Buffer>] = [new Map(), new Map()];
  for (const [i, files] of filesOn(disk).entries()) {
    let bytes = changed(Buffer.alloc(SIZE_BYTES), randomFrom(seed + i), 12);
    for (let number = 1; number <= versions; number++) {
      bytes = changed(bytes, randomFrom(seed + number), 5);
      await backUpOne(files, bytes);
      before[i]?.set(number, bytes);
    }
  }
  disk.effects = 0;
  return { disk, before };
}

/** Cuts the power at every effect; returns how many there are, and how often which of the two came out. */
async function cutEverywhere(start: Start, tries: number): Promise<{ effects: number; back: number; forward: number }> {
  const next = start.before.map((versions, i) =>
    changed(versions.get(versions.size) ?? Buffer.alloc(SIZE_BYTES), randomFrom(SEED + 50 + i), 6),
  );
  const after = start.before.map(
    (versions, i) => new Map([...versions, [versions.size + 1, next[i] ?? Buffer.alloc(0)]]),
  );
  const counts = { effects: 0, back: 0, forward: 0 };
  for (let cutAt = 1; ; cutAt++) {
    await pause(0);
    for (let attempt = 0; attempt < tries; attempt++) {
      const seed = SEED + cutAt * 1000 + attempt;
      const random = randomFrom(seed);
      const disk = start.disk.copy();
      disk.cutAt = cutAt;
      const wasCut = await isCut(() => backUpBoth(filesOn(disk), next));
      disk.reboot(random);
      if (wasCut) await settleBoth(disk, random);
      const found: Versions[] = [];
      for (const files of filesOn(disk)) found.push(await readAll(files));
      const isBack = found.every((versions, i) => isSame(versions, start.before[i] ?? new Map()));
      const isForward = found.every((versions, i) => isSame(versions, after[i] ?? new Map()));
      const what = found.map((versions) => [...versions.keys()].join(' ')).join(' and ');
      assert.ok(isBack || isForward, `seed ${seed}, cut at effect ${cutAt}: versions ${what}`);
      if (!wasCut) {
        assert.ok(isForward, 'uncut');
        return { ...counts, effects: cutAt - 1 };
      }
      counts[isBack ? 'back' : 'forward']++;
      // Nothing of the instant stays, and it can be tried again.
      for (const files of filesOn(disk)) (await Repository.open(files, 'write', { mayBegin: true })).close();
      for (const files of filesOn(disk)) assert.deepEqual(files.list(TOGETHER), [], `seed ${seed}, cut at ${cutAt}`);
      if (attempt === 0) await backUpBoth(filesOn(disk), next);
    }
  }
}

describe(`versions of two repositories at one instant (COWBIRD_SEED=${SEED})`, () => {
  it('are both there or neither, at every effect', async () => {
    const { effects, back, forward } = await cutEverywhere(await startWith(2, SEED), 3);
    assert.ok(effects > 60 && back > 30 && forward > 8, `${effects} effects, ${back} back, ${forward} forward`);
  });

  it('are both there or neither, at every effect, when they are the first ones', async () => {
    const { effects, back, forward } = await cutEverywhere(await startWith(0, SEED), 3);
    assert.ok(effects > 40 && back > 20 && forward > 8, `${effects} effects, ${back} back, ${forward} forward`);
  });

  it('are both taken back when a source turns out to have changed', async () => {
    const { disk, before } = await startWith(1, SEED);
    const next = before.map((versions) => changed(versions.get(1) ?? Buffer.alloc(0), randomFrom(SEED + 3), 6));
    await assert.rejects(backUpBoth(filesOn(disk), next, true), { code: 'EBUSY' });
    for (const [i, files] of filesOn(disk).entries()) assert.ok(isSame(await readAll(files), before[i] ?? new Map()));
  });

  it('are both there or neither when writing fails at any effect, and the error says which', async () => {
    const start = await startWith(1, SEED);
    const next = start.before.map((versions) => changed(versions.get(1) ?? Buffer.alloc(0), randomFrom(SEED + 4), 6));
    for (let failAt = 1; ; failAt++) {
      const disk = start.disk.copy();
      disk.failAt = failAt;
      const error: unknown = await backUpBoth(filesOn(disk), next).then(
        () => undefined,
        (reason: unknown) => reason,
      );
      disk.failAt = 0;
      for (const files of filesOn(disk)) (await Repository.open(files, 'write')).close();
      const counts: number[] = [];
      for (const files of filesOn(disk)) counts.push((await readAll(files)).size);
      const isPartial =
        error !== undefined && error instanceof Error && 'outcome' in error && error.outcome === 'partial';
      assert.deepEqual(
        counts,
        error === undefined || isPartial ? [2, 2] : [1, 1],
        `failed at effect ${failAt}: ${error}`,
      );
      if (error === undefined) break;
    }
  });

  it('are asked of the first, which keeps the answer for as long, also when it drops the version meanwhile', async () => {
    const start = await startWith(1, SEED);
    const next = start.before.map((versions) => changed(versions.get(1) ?? Buffer.alloc(0), randomFrom(SEED + 5), 6));
    let undecided = 0;
    for (let cutAt = 1; ; cutAt++) {
      const disk = start.disk.copy();
      disk.cutAt = cutAt;
      if (!(await isCut(() => backUpBoth(filesOn(disk), next)))) break;
      disk.reboot(randomFrom(SEED + cutAt));
      // The second one alone does not know, as soon as it has the file.
      const second = filesOn(disk, ['/a'])[1];
      assert.ok(second !== undefined);
      const opened = await Repository.open(second, 'read').then(
        (repository) => repository.manifest?.versions.length,
        (error: unknown) => error,
      );
      if (typeof opened === 'number') continue;
      assert.match(String(opened), /in \/a, which alone knows whether they count, and cannot be found/);
      undecided++;
      const [first, other] = filesOn(disk);
      assert.ok(first !== undefined && other !== undefined);
      const repository = await Repository.open(first, 'write');
      const isThere = repository.requireManifest().versions.length === 2;
      if (isThere) {
        await backUpOne(first, changed(next[0] ?? Buffer.alloc(0), randomFrom(7), 3));
        const again = await Repository.open(first, 'write');
        await pruneVersions(again, [3]);
      }
      assert.equal((await readAll(other)).size, isThere ? 2 : 1, `cut at effect ${cutAt}`);
    }
    assert.ok(undecided > 5, `${undecided} times`);
  });
});
