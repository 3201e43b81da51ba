/**
 * `update-img` against a small C program that copies the same blocks one at a time.
 *
 * A volume is backed up whole, then a share of its blocks changes (on one run, then at random), and the image is brought up
 * to the next snapshot. Updating twice writes the same bytes to the same places, so each round measures the same work.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { blockCount, dataOffsetBytes } from '../src/cow/geometry.js';
import * as cowbird from '../src/index.js';
import { fillRandom, makeFileSystem, mountAt, requireSpace } from './images.js';
import { type Lab, MIB } from './lab.js';
import type { Scale } from './options.js';
import { median } from './statistics.js';
import { unusedMinor } from './subjects.js';
import { dropCaches } from './volumes.js';

/** This file runs from `dist/bench`. */
const ROOT = join(fileURLToPath(new URL('.', import.meta.url)), '..', '..');
const CHANGED_SHARE = 0.05;
const STEP_TIMEOUT_MS = 600_000;

type Pattern = 'run' | 'random';
type Cache = 'warm' | 'cold';

interface Round {
  cowbirdMs: number;
  plainMs: number;
  plainSyncedMs: number;
}

export interface UpdateMeasured {
  imageMib: number;
  startUpMs: number[];
  cases: Array<{ pattern: Pattern; cache: Cache; changedBlocks: number; rounds: Round[] }>;
}

interface Bench {
  lab: Lab;
  scale: Scale;
  client: { env: NodeJS.ProcessEnv };
  minor: number;
  mountPoint: string;
  snapshot: string;
  image: string;
  plain: string;
  storeBytes: number;
}

export async function measureUpdateImg(lab: Lab, scale: Scale, say: (text: string) => void): Promise<UpdateMeasured> {
  const { imageMib, rounds } = scale.update;
  requireSpace(lab, 2 * imageMib + 1_024);
  const bench = await setUp(lab, scale, say);
  const startUpMs: number[] = [];
  for (let i = 0; i < rounds + 2; i++) startUpMs.push((await updateImg(bench, ['--version'])).elapsedMs);
  const cases: UpdateMeasured['cases'] = [];
  for (const [i, pattern] of (['run', 'random'] as const).entries()) {
    await cowbird.transitionToIncremental(bench.minor, bench.client);
    await change(bench, pattern);
    const next = cowPath(bench, i + 2);
    await cowbird.transitionToSnapshot(bench.minor, next, { storeBytes: bench.storeBytes }, bench.client);
    const cow = cowPath(bench, i + 1);
    const changedBlocks = await updateAndCompare(bench, cow);
    for (const cache of ['warm', 'cold'] as const) {
      const measured: Round[] = [];
      for (let round = 0; round < rounds; round++) measured.push(await measureRound(bench, cow, cache, round));
      cases.push({ pattern, cache, changedBlocks, rounds: measured });
      const ours = median(measured.map((entry) => entry.cowbirdMs)) - median(startUpMs);
      const theirs = median(measured.map((entry) => entry.plainMs));
      say(`update-img ${pattern}, ${cache}: ${Math.round(ours)} ms without start-up; plain C ${Math.round(theirs)} ms`);
    }
  }
  return { imageMib, startUpMs, cases };
}

/** A volume with a snapshot, and an image of that snapshot. */
async function setUp(lab: Lab, scale: Scale, say: (text: string) => void): Promise<Bench> {
  const { imageMib, fileMib } = scale.update;
  const client = lab.client('update');
  const origin = lab.path('update.img');
  say(`a volume of ${imageMib} MiB with ${fileMib} MiB of random data`);
  await lab.run('truncate', ['-s', `${imageMib}M`, origin]);
  await cowbird.startDaemon(client);
  const { device } = await cowbird.attach(origin, { name: `bench-update-${process.pid}` }, client);
  await makeFileSystem(lab, device);
  const mountPoint = await mountAt(lab, device, 'update');
  await fillRandom(lab, `${mountPoint}/data`, fileMib);
  const minor = unusedMinor();
  const bench: Bench = {
    lab,
    scale,
    client,
    minor,
    mountPoint,
    snapshot: `/dev/cowbird${minor}`,
    image: lab.path('backup.img'),
    plain: lab.path('update-blocks'),
    storeBytes: dataOffsetBytes(blockCount(imageMib * MIB)) + Math.floor(imageMib / 32) * MIB + 16 * MIB,
  };
  await lab.run('gcc', ['-O2', '-Wall', '-o', bench.plain, join(ROOT, 'bench', 'update-blocks.c')]);
  await cowbird.setupSnapshot(device, cowPath(bench, 1), minor, { storeBytes: bench.storeBytes }, client);
  await lab.run(
    'dd',
    [`if=${bench.snapshot}`, `of=${bench.image}`, 'bs=1M', 'iflag=direct', 'conv=sparse,fsync', 'status=none'],
    { timeoutMs: STEP_TIMEOUT_MS },
  );
  await lab.run('truncate', ['-s', `${imageMib}M`, bench.image]);
  return bench;
}

function cowPath({ mountPoint }: Bench, number: number): string {
  return `${mountPoint}/.cow${number}`;
}

/** Changes a share of the image's blocks: one run of them, or each somewhere else. */
async function change({ lab, scale, mountPoint }: Bench, pattern: Pattern): Promise<void> {
  const bytes = Math.floor((scale.update.imageMib * CHANGED_SHARE * MIB) / 4_096) * 4_096;
  const order = pattern === 'run' ? ['--rw=write', '--bs=1m', '--iodepth=4'] : ['--rw=randwrite', '--bs=4k'];
  await lab.run(
    'fio',
    [
      '--name=change',
      '--thread',
      '--ioengine=libaio',
      '--direct=1',
      '--iodepth=16',
      ...order,
      `--filename=${mountPoint}/data`,
      `--size=${scale.update.fileMib}m`,
      `--io_size=${bytes}`,
      '--end_fsync=1',
    ],
    { timeoutMs: STEP_TIMEOUT_MS },
  );
}

function updateImg({ lab, client }: Bench, args: string[]) {
  const program = join(ROOT, 'bin', 'update-img');
  return lab.run(process.execPath, [program, ...args], { env: client.env, timeoutMs: STEP_TIMEOUT_MS });
}

/** The first update, with a proof that image and snapshot are the same then; both programs must count the same blocks. */
async function updateAndCompare(bench: Bench, cow: string): Promise<number> {
  const { lab, snapshot, image, plain } = bench;
  const { stdout } = await updateImg(bench, [snapshot, cow, image]);
  const blocks = Number(/(\d+) blocks changed/.exec(stdout)?.[1]);
  await lab.run('cmp', [snapshot, image], { timeoutMs: STEP_TIMEOUT_MS });
  const other = Number((await lab.run(plain, [snapshot, cow, image])).stdout.trim());
  if (blocks !== other || !(blocks > 0) || !existsSync(image))
    throw new Error(`update-img copied ${blocks} blocks, and the C program ${other}`);
  return blocks;
}

/** One round: each program once, in rotated order, with the caches in the same state. */
async function measureRound(bench: Bench, cow: string, cache: Cache, round: number): Promise<Round> {
  const { lab, snapshot, image, plain } = bench;
  const result: Round = { cowbirdMs: Number.NaN, plainMs: Number.NaN, plainSyncedMs: Number.NaN };
  const runs: Array<() => Promise<void>> = [
    async () => {
      result.cowbirdMs = (await updateImg(bench, [snapshot, cow, image])).elapsedMs;
    },
    async () => {
      result.plainMs = (await lab.run(plain, [snapshot, cow, image])).elapsedMs;
    },
    async () => {
      result.plainSyncedMs = (await lab.run(plain, ['--sync', snapshot, cow, image])).elapsedMs;
    },
  ];
  const shift = round % runs.length;
  for (const run of [...runs.slice(shift), ...runs.slice(0, shift)]) {
    await lab.run('sync', [], { timeoutMs: STEP_TIMEOUT_MS });
    if (cache === 'cold') await dropCaches(lab);
    // Warm: what both will read and write has been read and written by one of the two just before, at first in `updateAndCompare`.
    await run();
  }
  return result;
}
