/** What tracking inside the kernel costs whoever writes, and how much memory its map takes. */
import { closeSync, mkdirSync, openSync, readFileSync, truncateSync } from 'node:fs';
import { startTracking, stopTracking } from '../src/live/tracking.js';
import { runFio, type Workload } from './fio.js';
import { requireSpace } from './images.js';
import { GIB, type Lab, MIB } from './lab.js';
import type { Scale } from './options.js';
import { median } from './statistics.js';

const TEBIBYTE_GIB = 1024;
/** A user is one repository; the bench is one. */
const USER = 'bench';
const ROUNDS_LEAST = 3;

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

/** Pairs of cells, tracked and untracked in turn; which of the two comes first changes from round to round. */
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
    for (let round = 0; round < Math.max(scale.rounds, ROUNDS_LEAST); round++) {
      for (const depth of [1, 16]) {
        const cell = async (isTracked: boolean): Promise<number> => {
          if (isTracked) startTracking(device, USER, runDir).close();
          try {
            return (await runFio(lab, workload(depth), target, { cellMs: scale.cellMs, seed: round })).iops;
          } finally {
            if (isTracked) stopTracking(device, runDir);
          }
        };
        const trackedFirst = round % 2 === 1;
        const early = await cell(trackedFirst);
        const late = await cell(!trackedFirst);
        rounds.push({
          depth,
          untrackedIops: trackedFirst ? late : early,
          trackedIops: trackedFirst ? early : late,
        });
      }
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
  const ratio = median(rounds.map(({ trackedIops, untrackedIops }) => trackedIops / untrackedIops));
  say(
    `tracked writes are ${ratio.toFixed(3)} times as fast as untracked ones; a map of 1 TiB takes ${mapMib.toFixed(1)} MiB`,
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
