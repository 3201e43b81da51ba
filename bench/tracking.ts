/** What tracking inside the kernel costs whoever writes, and how much memory its map takes. */

import { closeSync, mkdirSync, openSync, readFileSync, truncateSync } from 'node:fs';
import { basename } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { startTracking, stopTracking } from '../src/live/tracking.js';
import { runFio, type Workload } from './fio.js';
import { requireSpace } from './images.js';
import { GIB, type Lab, MIB } from './lab.js';
import type { Scale } from './options.js';
import { median } from './statistics.js';

const WRITES_FIELD = 4;
const TEBIBYTE_GIB = 1024;
/** A user is one repository; the bench is one. */
const USER = 'bench';
/**
 * What is looked for is a few percent, and the same cell of 1.5 s swings by twenty from one time to the next. So one fio writes all the
 * while, and tracking is switched on and off under it: windows that lie next to each other are compared, hundreds of times.
 */
const WINDOWS_PER_CELL = 10;
const CELLS_PER_ROUND = 16;
/** After a switch, the kernel puts its code right on all processors, and frees what is not used any more. */
const SETTLE_MS = 60;

export interface TrackingMeasured {
  fileMib: number;
  rounds: Array<{ depth: number; untrackedIops: number; trackedIops: number }>;
  /** Memory of the kernel for a disk of one tebibyte. */
  mapMib: number;
}

function workload(depth: number): Workload {
  return {
    name: `tracked-writes-${depth}`,
    title: `4 KiB random writes, depth ${depth}`,
    unit: 'IOPS',
    direction: 'write',
    depth,
    args: ['--rw=randwrite', '--bs=4k', `--iodepth=${depth}`, '--norandommap'],
    passBytes: undefined,
  };
}

async function onLoop<T>(lab: Lab, gib: number, use: (device: string, path: string) => Promise<T>): Promise<T> {
  const path = lab.path('tracked.img');
  closeSync(openSync(path, 'w'));
  truncateSync(path, gib * GIB);
  const { stdout } = await lab.run('losetup', ['-f', '--show', '--direct-io=on', path]);
  const device = stdout.trim();
  try {
    return await use(device, path);
  } finally {
    await lab.run('losetup', ['-d', device]);
  }
}

/** Writes that a disk finished in a second, by its own statistics. */
async function writesPerSecond(device: string, windowMs: number): Promise<number> {
  const read = (): number =>
    Number(
      readFileSync(`/sys/block/${basename(device)}/stat`, 'utf8')
        .trim()
        .split(/\s+/)[WRITES_FIELD],
    );
  const startedMs = performance.now();
  const before = read();
  await sleep(windowMs);
  const after = read();
  return ((after - before) * 1000) / (performance.now() - startedMs);
}

/** Pairs of windows, tracked and untracked in turn; which of the two comes first changes from pair to pair. */
export async function measureTracking(lab: Lab, scale: Scale, say: (text: string) => void): Promise<TrackingMeasured> {
  requireSpace(lab, scale.fileMib + 256);
  const runDir = lab.path('tracking-run');
  mkdirSync(runDir, { recursive: true });
  const rounds: TrackingMeasured['rounds'] = [];
  await onLoop(lab, Math.ceil(scale.fileMib / 1024), async (device) => {
    const target = { file: device, fileMib: scale.fileMib };
    await lab.run('dd', [
      'if=/dev/urandom',
      `of=${device}`,
      'bs=1M',
      `count=${scale.fileMib}`,
      'oflag=direct',
      'status=none',
    ]);
    for (const depth of [1, 16]) {
      const writing = runFio(lab, workload(depth), target, {
        cellMs: scale.cellMs * CELLS_PER_ROUND * scale.rounds,
        seed: depth,
      });
      let isOver = false;
      void writing.then(
        () => (isOver = true),
        () => (isOver = true),
      );
      const window = async (isTracked: boolean): Promise<number> => {
        if (isTracked) startTracking(device, USER, runDir).close();
        try {
          await sleep(SETTLE_MS);
          return await writesPerSecond(device, scale.cellMs / WINDOWS_PER_CELL);
        } finally {
          if (isTracked) stopTracking(device, runDir);
        }
      };
      // fio lays out nothing, and is at its speed soon.
      await sleep(2 * SETTLE_MS);
      for (let pair = 0; !isOver; pair++) {
        const trackedFirst = pair % 2 === 1;
        const early = await window(trackedFirst);
        const late = await window(!trackedFirst);
        // A window that the end fell into is none.
        if (isOver) break;
        rounds.push({
          depth,
          untrackedIops: trackedFirst ? late : early,
          trackedIops: trackedFirst ? early : late,
        });
      }
      await writing;
    }
  });
  const mapMib = await onLoop(lab, TEBIBYTE_GIB, async (device) => {
    const before = mappedMapBytes();
    const tracking = startTracking(device, USER, runDir);
    const bytes = mappedMapBytes() - before;
    tracking.close();
    stopTracking(device, runDir);
    return bytes / MIB;
  });
  const ratios = [1, 16].map((depth) =>
    median(rounds.filter((one) => one.depth === depth).map((one) => one.trackedIops / one.untrackedIops)),
  );
  say(
    `tracked writes are ${ratios.map((ratio) => ratio.toFixed(3)).join(' (depth 1) and ')} (depth 16) times as fast as untracked ones; a map of 1 TiB takes ${mapMib.toFixed(1)} MiB`,
  );
  return { fileMib: scale.fileMib, rounds, mapMib };
}

/** Maps that this process has mapped: as large as they are in the kernel. */
function mappedMapBytes(): number {
  return readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.endsWith('bpf-map'))
    .map((line) => {
      const [from = '0', to = '0'] = (line.split(' ')[0] ?? '').split('-');
      return Number.parseInt(to, 16) - Number.parseInt(from, 16);
    })
    .reduce((sum, size) => sum + size, 0);
}
