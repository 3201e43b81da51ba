/** What tracking inside the kernel costs whoever writes, and how much memory its map takes. */

import { closeSync, mkdirSync, openSync, readFileSync, rmSync, truncateSync } from 'node:fs';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { startTracking, stopTracking } from '../src/live/tracking.js';
import { runFio, type Workload } from './fio.js';
import { requireSpace } from './images.js';
import { GIB, type Lab, MIB } from './lab.js';
import type { Scale } from './options.js';
import { median } from './statistics.js';
import { tmpfs } from './subjects.js';

export const DEPTHS = [1, 16] as const;
const CELLS_LEAST = 4;
const WRITES_FIELD = 4;
const TEBIBYTE_GIB = 1024;
/** A user is one repository; the bench is one. */
const USER = 'bench';
/**
 * What is looked for is a few percent, and the same cell of 1.5 s swings by twenty from one time to the next. So one fio writes all the
 * while, and tracking is switched on and off under it: windows that lie next to each other are compared, hundreds of times.
 */
const WINDOWS_PER_CELL = 10;
const CELLS_PER_ROUND = 12;
/** After a switch, the kernel puts its code right on all processors, and frees what is not used any more. */
const SETTLE_MS = 60;

/** On a tmpfs writes take a fifth of the time, so that tracking is five times as much of it, and nobody else uses the device. */
export const STORES = ['disk', 'tmpfs'] as const;
type Store = (typeof STORES)[number];

export interface TrackingMeasured {
  fileMib: number;
  /** `store`: where the image of the loop device lies. */
  rounds: Array<{ store: Store; depth: number; untrackedIops: number; trackedIops: number }>;
  /** Memory of the kernel for a disk of one tebibyte. */
  mapMib: number;
}

export function trackedRatios(rounds: TrackingMeasured['rounds'], store: Store, depth: number): number[] {
  return rounds
    .filter((one) => one.store === store && one.depth === depth)
    .map(({ trackedIops, untrackedIops }) => trackedIops / untrackedIops);
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

async function onLoop<T>(lab: Lab, store: Store, gib: number, use: (device: string) => Promise<T>): Promise<T> {
  const path = join(store === 'tmpfs' ? await tmpfs(lab) : lab.folder, 'tracked.img');
  closeSync(openSync(path, 'w'));
  truncateSync(path, gib * GIB);
  const { stdout } = await lab.run('losetup', ['-f', '--show', '--direct-io=on', path]);
  const device = stdout.trim();
  try {
    return await use(device);
  } finally {
    await lab.run('losetup', ['-d', device]);
    rmSync(path);
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
async function pairsUnder(
  writing: Promise<unknown>,
  tracked: Tracked,
  windowMs: number,
): Promise<Array<{ untrackedIops: number; trackedIops: number }>> {
  const pairs: Array<{ untrackedIops: number; trackedIops: number }> = [];
  let isOver = false;
  const end = (): boolean => (isOver = true);
  void writing.then(end, end);
  const window = async (isTracked: boolean): Promise<number> => {
    if (isTracked) startTracking(tracked.device, USER, tracked.runDir).close();
    try {
      await sleep(SETTLE_MS);
      return await writesPerSecond(tracked.device, windowMs);
    } finally {
      if (isTracked) stopTracking(tracked.device, tracked.runDir);
    }
  };
  // fio is at its speed soon.
  await sleep(2 * SETTLE_MS);
  for (let pair = 0; !isOver; pair++) {
    const trackedFirst = pair % 2 === 1;
    const early = await window(trackedFirst);
    const late = await window(!trackedFirst);
    // A window that the end fell into is none.
    if (isOver) break;
    pairs.push({ untrackedIops: trackedFirst ? late : early, trackedIops: trackedFirst ? early : late });
  }
  await writing;
  return pairs;
}

interface Tracked {
  device: string;
  runDir: string;
}

export async function measureTracking(lab: Lab, scale: Scale, say: (text: string) => void): Promise<TrackingMeasured> {
  requireSpace(lab, scale.fileMib + 256);
  const runDir = lab.path('tracking-run');
  mkdirSync(runDir, { recursive: true });
  const cellMs = scale.cellMs * (scale.rounds === 1 ? CELLS_LEAST : CELLS_PER_ROUND * scale.rounds);
  const rounds: TrackingMeasured['rounds'] = [];
  for (const store of STORES)
    await onLoop(lab, store, Math.ceil(scale.fileMib / 1024), async (device) => {
      const target = { file: device, fileMib: scale.fileMib };
      const count = `count=${scale.fileMib}`;
      await lab.run('dd', ['if=/dev/urandom', `of=${device}`, 'bs=1M', count, 'oflag=direct', 'status=none']);
      for (const depth of DEPTHS) {
        const writing = runFio(lab, workload(depth), target, { cellMs, seed: depth });
        const pairs = await pairsUnder(writing, { device, runDir }, scale.cellMs / WINDOWS_PER_CELL);
        rounds.push(...pairs.map((pair) => ({ store, depth, ...pair })));
      }
    });
  const mapMib = await onLoop(lab, 'disk', TEBIBYTE_GIB, async (device) => {
    const before = mappedMapBytes();
    const tracking = startTracking(device, USER, runDir);
    const bytes = mappedMapBytes() - before;
    tracking.close();
    stopTracking(device, runDir);
    return bytes / MIB;
  });
  for (const store of STORES) {
    const ratios = DEPTHS.map((depth) => median(trackedRatios(rounds, store, depth)).toFixed(3));
    say(`tracked writes, image on ${store}: ${ratios.join(' (depth 1) and ')} (depth 16) of untracked ones`);
  }
  say(`a map of 1 TiB takes ${mapMib.toFixed(1)} MiB`);
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
