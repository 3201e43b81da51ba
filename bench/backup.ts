/**
 * `cowbird backup` against what copies a disk: `dd`, `rsync`, `qemu-img`; `verify` against `cat`; and what versions take.
 *
 * The volume is sparse, half of it is one wholly written file on ext4. Nobody writes while something is measured, so that all
 * programs copy the same bytes; each ends with them on the disk, and begins with cold caches.
 *
 * What is copied to the disk that it comes from is bound by what that disk transfers: a half-full volume is 24 GiB for dd and 16 GiB
 * for a backup, so 1.5 is all that can be had. Therefore the first backup is also measured with the volume on a tmpfs.
 */
import { existsSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import * as cowbird from '../src/index.js';
import { fillRandom, makeFileSystem, mountAt, requireSpace } from './images.js';
import { type Lab, MIB, unmounted } from './lab.js';
import type { Scale } from './options.js';
import { median } from './statistics.js';
import { tmpfs } from './subjects.js';
import { dropCaches } from './volumes.js';

/** This file runs from `dist/bench`. */
const ROOT = join(fileURLToPath(new URL('.', import.meta.url)), '..', '..');
const STEP_TIMEOUT_MS = 3_600_000;
const CHANGED_SHARE = 0.01;
const SCATTERED_KIB = 4;
const RUNS_KIB = 1_024;
const BYTES_A_STAT_BLOCK = 512;
const SETTLE_MS = 5_000;
/** Smaller ones are not measured for their figures. */
const SETTLED_VOLUME_MIB = 1_024;

/** Milliseconds of each program; null where it is not installed, or not run in this round. */
export interface FullRound {
  cowbirdMs: number;
  cowbirdWholeMs: number;
  ddMs: number;
}
export interface NextRound {
  cowbirdMs: number;
  ddMs: number;
  rsyncMs: number | null;
  qemuMs: number | null;
}
export interface VerifyRound {
  verifyMs: number;
  catMs: number;
}

export interface BackupMeasured {
  volumeMib: number;
  dataMib: number;
  full: FullRound[];
  /** The volume is on a tmpfs. */
  fromMemory: { volumeMib: number; dataMib: number; full: FullRound[] };
  /** Changed in blocks of 4 KiB. */
  next: NextRound[];
  /** Changed in runs of 1 MiB. */
  nextInRuns: Array<Pick<NextRound, 'cowbirdMs' | 'ddMs'>>;
  verify: VerifyRound[];
  /** Of what is verified. */
  verifiedBytes: number;
  /** After ten versions, allocated on the disk; null without qemu-io. */
  sizes: { versions: number; repositoryBytes: number; qcow2Bytes: number | null };
}

interface Bench {
  lab: Lab;
  env: NodeJS.ProcessEnv;
  node: string;
  name: string;
  at: string;
  origin: string;
  file: string;
  volumeMib: number;
  dataMib: number;
  repository: string;
  copy: string;
}

export async function measureBackup(lab: Lab, scale: Scale, say: (text: string) => void): Promise<BackupMeasured> {
  const { volumeMib, dataMib, memoryVolumeMib, memoryDataMib, rounds } = scale.backup;
  requireSpace(lab, 2 * volumeMib + 2 * dataMib + 1_024);
  await cowbird.startDaemon(lab.client('backup'));
  const bench = await setUp(lab, 'disk', lab.folder, { volumeMib, dataMib }, say);
  const full = await measureFull(bench, rounds, say);
  const inMemory = await setUp(
    lab,
    'memory',
    await tmpfs(lab),
    { volumeMib: memoryVolumeMib, dataMib: memoryDataMib },
    say,
  );
  const fromMemory = {
    volumeMib: memoryVolumeMib,
    dataMib: memoryDataMib,
    full: await measureFull(inMemory, rounds, say),
  };
  await takeDown(inMemory);
  rmSync(bench.repository, { recursive: true, force: true });
  await backup(bench);
  const next: NextRound[] = [];
  for (let round = 0; round < rounds; round++) next.push(await measureNext(bench, round));
  say(`1 % changed, 4 KiB at random: cowbird ${middle(next, 'cowbirdMs')} ms, dd ${middle(next, 'ddMs')} ms`);
  const nextInRuns: BackupMeasured['nextInRuns'] = [];
  for (let round = 0; round < rounds; round++) nextInRuns.push(await measureNextInRuns(bench, round));
  say(`1 % changed, 1 MiB: cowbird ${middle(nextInRuns, 'cowbirdMs')} ms, dd ${middle(nextInRuns, 'ddMs')} ms`);
  rmSync(bench.copy, { force: true });
  const verify: VerifyRound[] = [];
  for (let round = 0; round < rounds; round++) verify.push(await measureVerify(bench, round));
  const verifiedBytes = (await cowbird.verify(bench.repository)).bytesRead;
  say(`verify ${middle(verify, 'verifyMs')} ms, cat ${middle(verify, 'catMs')} ms`);
  const sizes = await measureSizes(bench, scale.backup.versions);
  return { volumeMib, dataMib, full, fromMemory, next, nextInRuns, verify, verifiedBytes, sizes };
}

function middle<K extends string>(rounds: ReadonlyArray<Record<K, number>>, key: K): number {
  return Math.round(median(rounds.map((round) => round[key])));
}

async function setUp(
  lab: Lab,
  where: 'disk' | 'memory',
  folder: string,
  { volumeMib, dataMib }: { volumeMib: number; dataMib: number },
  say: (text: string) => void,
): Promise<Bench> {
  say(`a sparse volume of ${volumeMib} MiB with ${dataMib} MiB of random data, ${where}`);
  const client = lab.client('backup');
  const origin = join(folder, 'backup-source.img');
  await lab.run('truncate', ['-s', `${volumeMib}M`, origin]);
  const name = `bench-backup-${where}-${process.pid}`;
  const { device: node } = await cowbird.attach(origin, { name }, client);
  await makeFileSystem(lab, node);
  const at = await mountAt(lab, node, `backup-${where}`);
  const file = `${at}/data`;
  await fillRandom(lab, file, dataMib);
  const repository = lab.path(`repository-${where}`);
  const copy = lab.path(`copy-${where}.img`);
  return { lab, env: client.env, node, name, at, origin, file, volumeMib, dataMib, repository, copy };
}

async function takeDown({ lab, at, name, origin, repository, copy }: Bench): Promise<void> {
  const client = lab.client('backup');
  const { devices } = await cowbird.info(undefined, client);
  const volumes = await cowbird.listVolumes(client);
  const minor = volumes.find((volume) => volume.name === name)?.minor;
  if (devices.some((device) => device.minor === minor)) await cowbird.destroy(minor ?? 0, client);
  await unmounted(at);
  await cowbird.detach(name, client);
  for (const path of [origin, repository, copy]) rmSync(path, { recursive: true, force: true });
}

/** Caches cold before, and what was written on the disk: every program here syncs what it wrote. */
async function timed(bench: Bench, program: string, args: readonly string[]): Promise<number> {
  const { lab, env } = bench;
  await lab.run('sync', [], { timeoutMs: STEP_TIMEOUT_MS });
  await dropCaches(lab);
  // A virtual disk may go on with what the program before has written: who comes behind dd's 16 GiB would pay for them.
  if (bench.volumeMib >= SETTLED_VOLUME_MIB) await pause(SETTLE_MS);
  return (await lab.run(program, args, { env, timeoutMs: STEP_TIMEOUT_MS })).elapsedMs;
}

function backup(bench: Bench, ...options: string[]): Promise<number> {
  const args = [join(ROOT, 'bin', 'cowbird'), 'backup', bench.node, bench.repository, ...options];
  return timed(bench, process.execPath, args);
}

/** `conv=fsync` is dd's own end on the disk. */
function dd(bench: Bench, ...conv: string[]): Promise<number> {
  const args = [`if=${bench.node}`, `of=${bench.copy}`, 'bs=1M', `conv=${['fsync', ...conv].join()}`, 'status=none'];
  return timed(bench, 'dd', args);
}

/** Runs each in rotated order. */
async function rotated(round: number, runs: ReadonlyArray<() => Promise<void>>): Promise<void> {
  const shift = round % runs.length;
  for (const run of [...runs.slice(shift), ...runs.slice(0, shift)]) await run();
}

async function measureFull(bench: Bench, rounds: number, say: (text: string) => void): Promise<FullRound[]> {
  const fresh = (): void => {
    rmSync(bench.repository, { recursive: true, force: true });
    rmSync(bench.copy, { force: true });
  };
  const full: FullRound[] = [];
  for (let round = 0; round < rounds; round++) {
    const result: FullRound = { cowbirdMs: Number.NaN, cowbirdWholeMs: Number.NaN, ddMs: Number.NaN };
    const measured = (key: keyof FullRound, action: () => Promise<number>) => async (): Promise<void> => {
      fresh();
      result[key] = await action();
    };
    await rotated(round, [
      measured('cowbirdMs', () => backup(bench)),
      measured('cowbirdWholeMs', () => backup(bench, '--whole')),
      measured('ddMs', () => dd(bench)),
    ]);
    full.push(result);
  }
  const [own, whole, copied] = (['cowbirdMs', 'cowbirdWholeMs', 'ddMs'] as const).map((key) => middle(full, key));
  say(`full: cowbird ${own} ms, --whole ${whole}, dd ${copied}`);
  return full;
}

/** Blocks of so many KiB at random, 1 % of the volume. */
async function change({ lab, file, volumeMib, dataMib }: Bench, blockKib: number): Promise<void> {
  const blockBytes = blockKib * 1024;
  const bytes = Math.ceil((volumeMib * CHANGED_SHARE * MIB) / blockBytes) * blockBytes;
  const order = ['--rw=randwrite', `--bs=${blockKib}k`, '--ioengine=libaio', '--direct=1', '--iodepth=16'];
  const size = [`--filename=${file}`, `--size=${dataMib}m`, `--io_size=${bytes}`, '--end_fsync=1'];
  await lab.run('fio', ['--name=change', '--thread', ...order, ...size], { timeoutMs: STEP_TIMEOUT_MS });
}

async function measureNext(bench: Bench, round: number): Promise<NextRound> {
  if (!existsSync(bench.copy)) await dd(bench);
  await change(bench, SCATTERED_KIB);
  const result: NextRound = { cowbirdMs: Number.NaN, ddMs: Number.NaN, rsyncMs: null, qemuMs: null };
  // Each brings a copy of the state before up to this one; the copy is shared, so it is put back for rsync.
  const old = `${bench.copy}.old`;
  await bench.lab.run('cp', ['--sparse=always', bench.copy, old], { timeoutMs: STEP_TIMEOUT_MS });
  await rotated(round, [
    async () => {
      result.cowbirdMs = await backup(bench);
    },
    async () => {
      result.ddMs = await dd(bench, 'notrunc');
    },
    async () => {
      const script = 'rsync --inplace --no-whole-file "$0" "$1" && sync "$1"';
      // It takes longer than all the others together.
      if (round === 0 && (await isInstalled(bench, 'rsync')))
        result.rsyncMs = await timed(bench, 'sh', ['-c', script, bench.origin, old]);
    },
    async () => {
      const script = 'qemu-img convert -f raw -O raw "$0" "$1" && sync "$1"';
      const target = `${bench.copy}.qemu`;
      if (await isInstalled(bench, 'qemu-img'))
        result.qemuMs = await timed(bench, 'sh', ['-c', script, bench.node, target]);
      rmSync(target, { force: true });
    },
  ]);
  rmSync(old);
  return result;
}

async function measureNextInRuns(bench: Bench, round: number): Promise<{ cowbirdMs: number; ddMs: number }> {
  await change(bench, RUNS_KIB);
  const result = { cowbirdMs: Number.NaN, ddMs: Number.NaN };
  await rotated(round, [
    async () => {
      result.cowbirdMs = await backup(bench);
    },
    async () => {
      result.ddMs = await dd(bench, 'notrunc');
    },
  ]);
  return result;
}

async function isInstalled({ lab }: Bench, program: string): Promise<boolean> {
  const { stdout } = await lab.run('sh', ['-c', 'command -v "$0" || true', program]);
  return stdout !== '';
}

async function measureVerify(bench: Bench, round: number): Promise<VerifyRound> {
  const result: VerifyRound = { verifyMs: Number.NaN, catMs: Number.NaN };
  await rotated(round, [
    async () => {
      const args = [join(ROOT, 'bin', 'cowbird'), 'verify', bench.repository];
      result.verifyMs = await timed(bench, process.execPath, args);
    },
    async () => {
      const script = 'find "$0" -type f -exec cat {} + > /dev/null';
      result.catMs = await timed(bench, 'sh', ['-c', script, bench.repository]);
    },
  ]);
  return result;
}

/** Some versions, 1 % changed each; and an overlay each with the same blocks written. */
async function measureSizes(bench: Bench, wanted: number): Promise<BackupMeasured['sizes']> {
  const { lab, repository } = bench;
  const { versions } = await cowbird.listVersions(repository);
  for (let made = versions.length; made < wanted; made++) {
    await change(bench, SCATTERED_KIB);
    await backup(bench);
  }
  await cowbird.prune(repository, { last: wanted });
  const numbers = (await cowbird.listVersions(repository)).versions.map(({ number }) => number);
  const hasQemu = await isInstalled(bench, 'qemu-io');
  const base = join(repository, 'image');
  let qcow2Bytes = hasQemu ? allocated(base) : null;
  for (const [i, number] of numbers.slice(1).entries()) {
    if (qcow2Bytes === null) break;
    const { extents } = await cowbird.versionChanges(repository, numbers[i] ?? 0, number);
    const overlay = lab.path('overlay.qcow2');
    await lab.run('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', base, overlay]);
    const commands = lab.path('overlay.commands');
    writeFileSync(commands, extents.map(({ offset, length }) => `write -q ${offset} ${length}\n`).join(''));
    // Only its size counts: nothing of it has to reach the disk.
    const script = 'qemu-io -t unsafe -f qcow2 "$0" < "$1" > /dev/null';
    await lab.run('sh', ['-c', script, overlay, commands], { timeoutMs: STEP_TIMEOUT_MS });
    qcow2Bytes += allocated(overlay);
    rmSync(overlay);
  }
  return { versions: numbers.length, repositoryBytes: allocated(repository), qcow2Bytes };
}

function allocated(path: string): number {
  const stats = statSync(path);
  const own = stats.blocks * BYTES_A_STAT_BLOCK;
  return stats.isDirectory() ? readdirSync(path).reduce((sum, name) => sum + allocated(join(path, name)), own) : own;
}
