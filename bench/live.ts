/**
 * Engine `live`: how long a backup takes by what has changed and by how large the disk is, and how long a freeze lasts under a
 * steady writer.
 *
 * Each disk is a loop device over a sparse image, with ext4 on it, mounted; nothing of Cowbird has it but the tracker. The
 * incremental backups are whole runs of the command with cold caches, start-up included.
 */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as cowbird from '../src/index.js';
import { stopTracking } from '../src/live/tracking.js';
import { bindPlainLoop, fillRandom, makeFileSystem, mountAt, requireSpace } from './images.js';
import { type Lab, released, unmounted } from './lab.js';
import type { Scale } from './options.js';
import { median, spreadOf } from './statistics.js';
import { dropCaches } from './volumes.js';

/** This file runs from `dist/bench`. */
const COWBIRD = join(fileURLToPath(new URL('.', import.meta.url)), '..', '..', 'bin', 'cowbird');
const STEP_TIMEOUT_MS = 1_800_000;
/** Of the disk whose freezes are measured. */
const FROZEN_DISK_GIB = 4;
const WRITER_FILE_MIB = 512;
const WRITER_MIB_PER_SECOND = 50;
/** Longer than all of it. */
const WRITER_SECONDS = 3_600;
const KEPT_VERSIONS = 2;

export interface LiveMeasured {
  /** Backups of so much changed, of a disk so large. */
  incremental: Array<{ gib: number; changedMib: number; bytesRead: number; elapsedMs: number; freezeMs: number }>;
  /** Of backups under a writer of so many MiB a second. */
  writerMibPerSecond: number;
  freezes: Array<{ freezeMs: number; restBytes: number; passes: number }>;
}

interface Disk {
  node: string;
  at: string;
  repository: string;
  client: { env: NodeJS.ProcessEnv };
}

export async function measureLive(lab: Lab, scale: Scale, say: (text: string) => void): Promise<LiveMeasured> {
  const { gib: sizes, changedMib, rounds, freezes: count } = scale.live;
  requireSpace(lab, 4 * Math.max(...changedMib) + 4 * WRITER_FILE_MIB + 2_048);
  const incremental: LiveMeasured['incremental'] = [];
  for (const gib of sizes) {
    const measured = await onDisk(lab, gib, (disk) => incrementals(lab, disk, gib, changedMib, rounds));
    incremental.push(...measured);
    for (const mib of changedMib) {
      const of = measured.filter((entry) => entry.changedMib === mib).map(({ elapsedMs }) => elapsedMs);
      say(`${gib} GiB, ${mib} MiB changed: ${Math.round(median(of))} ms`);
    }
  }
  const freezes = await onDisk(lab, FROZEN_DISK_GIB, (disk) => freezesUnderLoad(lab, disk, count));
  const spread = spreadOf(freezes.map(({ freezeMs }) => freezeMs));
  say(`${count} freezes: median ${spread?.median.toFixed(0)} ms, longest ${spread?.max.toFixed(0)} ms`);
  return { incremental, writerMibPerSecond: WRITER_MIB_PER_SECOND, freezes };
}

async function onDisk<T>(lab: Lab, gib: number, use: (disk: Disk) => Promise<T>): Promise<T> {
  const image = lab.path(`live-${gib}.img`);
  await lab.run('truncate', ['-s', `${gib}G`, image]);
  const node = await bindPlainLoop(lab, image, true);
  await makeFileSystem(lab, node, '-E', 'lazy_itable_init=1,nodiscard', '-J', 'size=64');
  const at = await mountAt(lab, node, `live-${gib}`, '-o', 'noinit_itable');
  const repository = lab.path(`live-repository-${gib}`);
  const client = lab.client(`live-${gib}`);
  const runDir = client.env['COWBIRD_RUN_DIR'] ?? '';
  mkdirSync(runDir, { recursive: true });
  try {
    return await use({ node, at, repository, client });
  } finally {
    stopTracking(node, runDir);
    await unmounted(at);
    await released(node);
    rmSync(image);
    rmSync(repository, { recursive: true, force: true });
  }
}

async function incrementals(
  lab: Lab,
  { node, at, repository, client }: Disk,
  gib: number,
  changedMib: readonly number[],
  rounds: number,
): Promise<LiveMeasured['incremental']> {
  const file = join(at, 'data');
  await fillRandom(lab, file, Math.max(...changedMib));
  await cowbird.backup(node, repository, { client });
  const measured: LiveMeasured['incremental'] = [];
  for (let round = 0; round < rounds; round++) {
    for (const mib of changedMib) {
      await fillRandom(lab, file, mib);
      await lab.run('sync', [], { timeoutMs: STEP_TIMEOUT_MS });
      await dropCaches(lab);
      const args = [COWBIRD, 'backup', node, repository, '--keep', String(KEPT_VERSIONS), '--json'];
      const { stdout, elapsedMs } = await lab.run(process.execPath, args, {
        env: client.env,
        timeoutMs: STEP_TIMEOUT_MS,
      });
      const summary: cowbird.BackupSummary = JSON.parse(stdout.trim().split('\n').at(-1) ?? '');
      if (!summary.reason.startsWith('the kernel lists')) throw new Error(`${node}: ${summary.reason}`);
      const { bytesRead, freezeMs } = summary;
      measured.push({ gib, changedMib: mib, bytesRead, elapsedMs, freezeMs: freezeMs ?? 0 });
    }
  }
  return measured;
}

async function freezesUnderLoad(
  lab: Lab,
  { node, at, repository, client }: Disk,
  count: number,
): Promise<LiveMeasured['freezes']> {
  const file = join(at, 'written');
  await fillRandom(lab, file, WRITER_FILE_MIB);
  await cowbird.backup(node, repository, { client });
  // Through the page cache, as programs write: what a freeze has to wait for is what is dirty then.
  const writer = lab.processes.start('load', 'fio', [
    '--name=writer',
    '--thread',
    '--ioengine=psync',
    '--rw=write',
    '--bs=256k',
    `--filename=${file}`,
    `--size=${WRITER_FILE_MIB}m`,
    `--rate=${WRITER_MIB_PER_SECOND}m`,
    '--time_based',
    `--runtime=${WRITER_SECONDS}`,
  ]);
  const freezes: LiveMeasured['freezes'] = [];
  try {
    while (freezes.length < count) {
      if (writer.hasEnded()) throw new Error(`fio ended: ${writer.stderr().trim()}`);
      const summary = await cowbird.backup(node, repository, { client, keep: KEPT_VERSIONS });
      const { freezeMs, restBytes, passes } = summary;
      freezes.push({ freezeMs: freezeMs ?? 0, restBytes, passes });
    }
  } finally {
    await writer.end('SIGTERM');
  }
  return freezes;
}
