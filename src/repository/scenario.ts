/** What the tests of the repository share: sources, versions read back, and cuts at every effect. */
import assert from 'node:assert/strict';
import { setTimeout as pause } from 'node:timers/promises';
import { BLOCK_SIZE_BYTES, blockCount } from '../cow/geometry.js';
import { makeBits, setBit } from './bits.js';
import type { ReadableFile, RepositoryFiles } from './files.js';
import { REGION_BYTES, regionCount } from './layout.js';
import { Repository } from './repository.js';
import { runInThisThread } from './runner.js';
import type { BackupSource } from './source.js';
import { memorySource, PowerCut, randomFrom, SimulatedDisk, SimulatedFiles } from './testing.js';
import { createVersion, type UpdateResult } from './update.js';
import type { UpdateOptions } from './update-options.js';
import { verifyRepository } from './verify.js';
import { openVersion } from './version.js';
import { View } from './view.js';

/** Not a multiple of anything. */
export const SIZE_BYTES = 2 * REGION_BYTES + 3 * BLOCK_SIZE_BYTES + 517;

export const IDENTITY = { kind: 'file', path: '/disk.img', place: '/disk.img', content: null } as const;

/** The contents of versions by their number. */
export type Versions = ReadonlyMap<number, Buffer>;

/** Writes random blocks, zeroes some, over a copy. */
export function changed(bytes: Buffer, random: () => number, blocks: number, sizeBytes = bytes.byteLength): Buffer {
  const next = Buffer.alloc(sizeBytes);
  bytes.copy(next);
  const total = blockCount(sizeBytes);
  for (let i = 0; i < blocks; i++) {
    const at = Math.floor(random() * total) * BLOCK_SIZE_BYTES;
    const run = Math.min((1 + Math.floor(random() * 3)) * BLOCK_SIZE_BYTES, sizeBytes - at);
    const zero = random() < 0.25;
    for (let byte = at; byte < at + run; byte += 64) next.writeUInt8(zero ? 0 : Math.floor(random() * 256), byte);
    if (zero) next.fill(0, at, at + run);
  }
  return next;
}

export function updateOptions(more: Partial<UpdateOptions> = {}): UpdateOptions {
  return {
    engine: 'scan',
    reason: 'test',
    whole: false,
    skipBadBlocks: false,
    time: new Date(0),
    run: runInThisThread,
    ...more,
  };
}

/** One backup of these bytes. */
export async function backUp(
  files: SimulatedFiles,
  bytes: Buffer,
  more: Partial<UpdateOptions> = {},
  bad?: ReadonlySet<number>,
): Promise<UpdateResult> {
  const repository = await Repository.open(files, 'write', { mayBegin: true });
  try {
    const source = { sizeBytes: bytes.byteLength, identity: IDENTITY, file: memorySource(bytes, bad) };
    return await createVersion(repository, source, updateOptions(more));
  } finally {
    repository.close();
  }
}

/**
 * One backup of a source that goes through these states while it is read: a pass sees each block as it is in its state or in
 * the next one. What differs between the two is to be read again. `known`: what differs from the newest version is, too.
 */
export async function backUpMoving(
  files: SimulatedFiles,
  states: readonly Buffer[],
  random: () => number,
  known?: Buffer,
): Promise<UpdateResult> {
  const repository = await Repository.open(files, 'write', { mayBegin: true });
  let at = 0;
  const fileOf = (state: number): ReadableFile => {
    const [now, next] = [states[state] ?? Buffer.alloc(0), states[state + 1] ?? states[state] ?? Buffer.alloc(0)];
    const mixed = Buffer.from(now);
    for (let block = 0; block < blockCount(now.byteLength); block++)
      if (random() < 0.5)
        next.copy(mixed, block * BLOCK_SIZE_BYTES, block * BLOCK_SIZE_BYTES, (block + 1) * BLOCK_SIZE_BYTES);
    return memorySource(mixed);
  };
  try {
    const [first = Buffer.alloc(0)] = states;
    const source: BackupSource = {
      sizeBytes: first.byteLength,
      identity: IDENTITY,
      file: fileOf(0),
      candidates: known === undefined ? undefined : differing(known, first),
      nextPass: async () => {
        const [before, now] = [states[at], states[at + 1]];
        at++;
        return before === undefined || now === undefined
          ? undefined
          : { file: fileOf(at), blocks: differing(before, now) };
      },
    };
    return await createVersion(repository, source, updateOptions());
  } finally {
    repository.close();
  }
}

/** The blocks in which two states of a source differ, one bit a block. */
export function differing(a: Buffer, b: Buffer): Uint8Array {
  const bits = makeBits(regionCount(b.byteLength));
  for (let block = 0; block < blockCount(b.byteLength); block++) {
    const [start, end] = [block * BLOCK_SIZE_BYTES, (block + 1) * BLOCK_SIZE_BYTES];
    if (!a.subarray(start, end).equals(b.subarray(start, end))) setBit(bits, block);
  }
  return bits;
}

/** A disk with versions 1 to `count` in its repository, and what they are. */
export async function diskWith(
  count: number,
  seed: number,
): Promise<{ disk: SimulatedDisk; versions: Map<number, Buffer> }> {
  const random = randomFrom(seed);
  const disk = new SimulatedDisk();
  const versions = new Map<number, Buffer>();
  let bytes = changed(Buffer.alloc(SIZE_BYTES), random, 24);
  for (let number = 1; number <= count; number++) {
    if (number > 1) bytes = changed(bytes, random, 10);
    await backUp(new SimulatedFiles(disk), bytes);
    versions.set(number, bytes);
  }
  disk.effects = 0;
  return { disk, versions };
}

/** The contents of every listed version, each checked block by block. */
export async function readAll(files: RepositoryFiles): Promise<Map<number, Buffer>> {
  const repository = await Repository.open(files, 'read', { mayBegin: true });
  try {
    const found = new Map<number, Buffer>();
    for (const record of repository.manifest?.versions ?? []) {
      const opened = openVersion(files, repository.requireManifest(), record);
      const view = new View(opened.view, opened.files);
      const bytes = Buffer.alloc(regionCount(record.sizeBytes) * REGION_BYTES);
      for (let region = 0; region < regionCount(record.sizeBytes); region++)
        view.readData(region, bytes.subarray(region * REGION_BYTES, (region + 1) * REGION_BYTES));
      found.set(record.number, bytes.subarray(0, record.sizeBytes));
    }
    if (repository.manifest !== undefined) {
      const report = await verifyRepository(repository, { run: runInThisThread });
      assert.deepEqual(report.damage, []);
    }
    return found;
  } finally {
    repository.close();
  }
}

function sameVersions(found: Versions, expected: Versions): boolean {
  if (found.size !== expected.size) return false;
  return [...expected].every(([number, bytes]) => found.get(number)?.equals(bytes) === true);
}

/** The versions are one of the sets, each exactly. */
export async function expectOneOf(
  files: SimulatedFiles,
  allowed: readonly Versions[],
  what: string,
): Promise<Versions> {
  const found = await readAll(files);
  const at = allowed.find((versions) => sameVersions(found, versions));
  assert.ok(
    at !== undefined,
    `${what}: versions ${[...found.keys()].join(', ')} are old or new, and read back exactly`,
  );
  return at;
}

/** Opening makes a repository whole. */
async function settle(files: SimulatedFiles): Promise<void> {
  (await Repository.open(files, 'write', { mayBegin: true })).close();
}

async function isCut(action: () => Promise<unknown>): Promise<boolean> {
  try {
    await action();
    return false;
  } catch (error) {
    if (error instanceof PowerCut || (error instanceof Error && error.message.includes('the machine is off')))
      return true;
    throw error;
  }
}

/**
 * Cuts the power at every effect of an operation, then again at an effect of making that good, and again; and checks each
 * time that the versions are one of `allowed`, of which the last is that of the finished operation, and that a further
 * backup works. Returns how many effects there are.
 */
export async function cutEverywhere(
  start: SimulatedDisk,
  operation: (files: SimulatedFiles) => Promise<unknown>,
  allowed: readonly Versions[],
  options: { seed: number; tries: number },
): Promise<number> {
  for (let cutAt = 1; ; cutAt++) {
    // The runner of the tests hears nothing while a synchronous loop goes on.
    await pause(0);
    for (let attempt = 0; attempt < options.tries; attempt++) {
      const seed = options.seed + cutAt * 1000 + attempt;
      const what = `seed ${seed}, cut at effect ${cutAt}`;
      const random = randomFrom(seed);
      const disk = start.copy();
      disk.cutAt = cutAt;
      const files = new SimulatedFiles(disk);
      if (!(await isCut(() => operation(files)))) {
        disk.reboot(random);
        await expectOneOf(files, allowed.slice(-1), 'uncut, and a power cut after it');
        return cutAt - 1;
      }
      disk.reboot(random);
      for (let again = 0; again < 2; again++) {
        disk.cutAt = 1 + Math.floor(random() * 40);
        if (!(await isCut(() => settle(files)))) break;
        disk.reboot(random);
      }
      disk.cutAt = 0;
      const found = await expectOneOf(files, allowed, what);
      // What was made good is durable.
      disk.reboot(random);
      await expectOneOf(files, [found], `${what}, and once more when idle`);
      if (attempt > 0) continue;
      const newest = [...found.values()].at(-1) ?? Buffer.alloc(SIZE_BYTES);
      const next = changed(newest, random, 4);
      const { version } = await backUp(files, next);
      await expectOneOf(files, [new Map([...found, [version.number, next]])], `${what}, and the next backup`);
    }
  }
}
