/** What is asked of Cowbird, as ratios of medians to its peers; met or not is computed from the raw data. */
import type { CacheFamily } from './options.js';
import type { Cell, Results, VolumesResult } from './results.js';
import { quantileOf, type Spread, spreadOf } from './statistics.js';
import { DEPTHS, STORES, trackedRatios } from './tracking.js';

export interface Bar {
  text: string;
  cache: CacheFamily;
  workload: string;
  subject: string;
  reference: string;
  atLeast: number;
}

export interface Judged {
  text: string;
  /** Undefined where it was not measured. */
  spread: Spread | undefined;
  bound: number;
  /** A ratio is to be at least the bound; an amount, at most. */
  kind: 'atLeast' | 'atMost';
  unit: '' | 'MiB' | 'ms';
}

export const isMet = ({ spread, bound, kind }: Judged): boolean | undefined =>
  spread === undefined ? undefined : kind === 'atLeast' ? spread.median >= bound : spread.median <= bound;

const WORDS: Record<string, string> = {
  'random-read-1': '4 KiB random reads, depth 1',
  'random-read-32': '4 KiB random reads, depth 32',
  'random-write-1': '4 KiB random writes, depth 1',
  'random-write-16': '4 KiB random writes, depth 16',
  'random-write-32': '4 KiB random writes, depth 32',
  'sequential-read': '1 MiB sequential reads',
  'sequential-write': '1 MiB sequential writes',
};

const STEADY = [
  'random-read-1',
  'random-write-1',
  'random-read-32',
  'random-write-32',
  'sequential-read',
  'sequential-write',
];
const WRITES = ['random-write-1', 'random-write-16', 'sequential-write'];

function bar(
  subject: string,
  reference: string,
  workload: string,
  atLeast: number,
  cache: CacheFamily = 'direct',
): Bar {
  const names = `${subject} / ${reference}, ${WORDS[workload] ?? workload}`;
  return {
    text: cache === 'direct' ? names : `${names}, through the page cache`,
    cache,
    workload,
    subject,
    reference,
    atLeast,
  };
}

function againstQemu(workload: string): number {
  if (workload.endsWith('-32')) return 1.3;
  return workload.startsWith('random') ? 1.1 : 1;
}

export const VOLUME_BARS: readonly Bar[] = [
  ...['cowbird-passthrough', 'cowbird-incremental'].flatMap((subject) =>
    STEADY.map((workload) => bar(subject, 'qemu-export', workload, againstQemu(workload))),
  ),
  ...STEADY.map((workload) => bar('cowbird-incremental', 'cowbird-passthrough', workload, 0.9)),
  ...['cowbird-first', 'cowbird-first-tmpfs'].flatMap((subject) => [
    bar(subject, 'cowbird-passthrough', 'sequential-write', 0.25),
    bar(subject, 'cowbird-passthrough', 'sequential-write', 0.35, 'buffered'),
    bar(subject, 'cowbird-passthrough', 'random-write-16', 0.55),
  ]),
  ...WRITES.map((workload) => bar('cowbird-first', 'qemu-first', workload, 1.3)),
  ...WRITES.map((workload) => bar('cowbird-first-tmpfs', 'qemu-first-tmpfs', workload, 1.3)),
  ...['cowbird-saved', 'cowbird-saved-tmpfs'].flatMap((subject) =>
    [...STEADY, 'random-write-16']
      .filter((workload) => workload.includes('write'))
      .map((workload) => bar(subject, 'cowbird-passthrough', workload, 0.9)),
  ),
];

/** The real dattobd's ratios to a plain device, median of two boots in a virtual machine (writes). */
export const DATTOBD: Record<string, Record<string, number>> = {
  'cowbird-first': { 'random-write-1': 0.38, 'random-write-16': 0.55, 'sequential-write': 0.18 },
  'cowbird-first-tmpfs': { 'random-write-1': 0.38, 'random-write-16': 0.55, 'sequential-write': 0.18 },
  'cowbird-saved': { 'random-write-1': 0.37, 'random-write-16': 0.33, 'sequential-write': 0.23 },
  'cowbird-saved-tmpfs': { 'random-write-1': 0.37, 'random-write-16': 0.33, 'sequential-write': 0.23 },
  'cowbird-incremental': { 'random-write-1': 0.56, 'random-write-16': 0.91, 'sequential-write': 0.76 },
};

/** How fast a cell was, in the unit of its workload. */
export function speedOf(result: VolumesResult, cell: Cell): number {
  const unit = result.workloads.find(({ name }) => name === cell.workload)?.unit;
  return unit === 'MiB/s' ? (cell.mibPerSecond ?? Number.NaN) : cell.iops;
}

/** One ratio for each round, of two cells that were measured one after the other. */
export function ratiosOf(result: VolumesResult, workload: string, subject: string, reference: string): number[] {
  const find = (round: number, name: string): Cell | undefined =>
    result.cells.find((cell) => cell.round === round && cell.workload === workload && cell.subject === name);
  const ratios: number[] = [];
  for (let round = 1; round <= result.rounds; round++) {
    const above = find(round, subject);
    const below = find(round, reference);
    if (above !== undefined && below !== undefined) ratios.push(speedOf(result, above) / speedOf(result, below));
  }
  return ratios;
}

export function judgeAll(results: Results): Judged[] {
  return [
    ...judgeVolumes(results),
    ...judgeUpdateImg(results),
    ...judgeReads(results),
    ...judgeMemory(results),
    ...judgeBackup(results),
    ...judgeTracking(results),
    ...judgeLive(results),
  ];
}

function judgeVolumes(results: Results): Judged[] {
  return VOLUME_BARS.flatMap(({ text, cache, workload, subject, reference, atLeast }) => {
    const result = results[`volumes-${cache}`];
    const spread = result === undefined ? undefined : spreadOf(ratiosOf(result, workload, subject, reference));
    return [{ text, spread, bound: atLeast, kind: 'atLeast', unit: '' } as const];
  });
}

function judgeUpdateImg(results: Results): Judged[] {
  const result = results['update-img'];
  if (result === undefined) return [];
  const startUp = spreadOf(result.startUpMs)?.median ?? 0;
  const bounds = { run: { warm: 2, cold: 4 }, random: { warm: 1, cold: 4 } };
  return result.cases.map(({ pattern, cache, rounds }) => {
    const ratios = rounds.map(({ cowbirdMs, plainMs }) => plainMs / Math.max(cowbirdMs - startUp, 1));
    const how = `5 % changed ${pattern === 'run' ? 'on a run' : 'at random'}, ${cache}`;
    const text = `update-img / plain C program, ${how}`;
    return { text, spread: spreadOf(ratios), bound: bounds[pattern][cache], kind: 'atLeast', unit: '' } as const;
  });
}

function judgeReads(results: Results): Judged[] {
  const result = results['snapshot-reads'];
  if (result === undefined) return [];
  return [true, false].map((direct) => {
    const ratios = result.rounds
      .filter((round) => round.direct === direct)
      .map((round) => round.snapshotMibPerSecond / round.volumeMibPerSecond);
    const text = `reads of a snapshot / of its volume, dd bs=1M${direct ? ' iflag=direct' : ''}`;
    return { text, spread: spreadOf(ratios), bound: 0.9, kind: 'atLeast', unit: '' } as const;
  });
}

function judgeTracking(results: Results): Judged[] {
  const result = results.tracking;
  if (result === undefined) return [];
  const writes = STORES.flatMap((store) =>
    DEPTHS.map((depth): Judged => {
      const text = `4 KiB random writes, depth ${depth}, image on ${store}, tracked in the kernel / not tracked`;
      return {
        text,
        spread: spreadOf(trackedRatios(result.rounds, store, depth)),
        bound: 0.97,
        kind: 'atLeast',
        unit: '',
      };
    }),
  );
  // 32 MiB of bits; the notes and hints beside them (0.2 MiB) are counted, and do not grow with the disk but for the hints.
  const text = 'kernel memory of the map of 1 TiB';
  return [...writes, { text, spread: spreadOf([result.mapMib]), bound: 32.25, kind: 'atMost', unit: 'MiB' }];
}

const FREEZE_MS_P95 = 100;

function judgeLive({ live }: Results): Judged[] {
  if (live === undefined) return [];
  const freezes = live.freezes.map(({ freezeMs }) => freezeMs);
  const p95 = quantileOf(freezes, 0.95);
  const spread = spreadOf(freezes);
  if (spread === undefined) return [];
  const text = `freeze of a live backup, 95th percentile of ${freezes.length}, under a writer of ${live.writerMibPerSecond} MiB/s`;
  return [{ text, spread: { ...spread, median: p95 }, bound: FREEZE_MS_P95, kind: 'atMost', unit: 'ms' }];
}

function judgeMemory(results: Results): Judged[] {
  return (results.memory?.cases ?? []).flatMap(({ title, keeperMib, engineMib, limitMib }) => {
    if (limitMib === null) return [];
    const text = `memory of keeper and engine, ${title}`;
    return [{ text, spread: spreadOf([keeperMib + engineMib]), bound: limitMib, kind: 'atMost', unit: 'MiB' } as const];
  });
}

function judgeBackup({ backup }: Results): Judged[] {
  if (backup === undefined) return [];
  const { full, fromMemory, next, nextInRuns, verify } = backup;
  const judged = (text: string, bound: number, ratios: number[]): Judged => {
    return { text, spread: spreadOf(ratios), bound, kind: 'atLeast', unit: '' };
  };
  return [
    judged(
      'first backup / dd bs=1M, half-full volume',
      1.6,
      full.map(({ cowbirdMs, ddMs }) => ddMs / cowbirdMs),
    ),
    judged(
      'first backup / dd bs=1M, half-full volume on a tmpfs',
      1.6,
      fromMemory.full.map(({ cowbirdMs, ddMs }) => ddMs / cowbirdMs),
    ),
    judged(
      'first backup --whole / dd bs=1M',
      0.95,
      full.map(({ cowbirdWholeMs, ddMs }) => ddMs / cowbirdWholeMs),
    ),
    judged(
      'backup of 1 % changed in runs of 1 MiB, cold / dd bs=1M',
      20,
      nextInRuns.map(({ cowbirdMs, ddMs }) => ddMs / cowbirdMs),
    ),
    judged(
      'backup of 1 % changed in blocks of 4 KiB at random, cold / dd bs=1M',
      20,
      next.map(({ cowbirdMs, ddMs }) => ddMs / cowbirdMs),
    ),
    judged(
      'verify / cat of the same files, cold',
      0.7,
      verify.map(({ verifyMs, catMs }) => catMs / verifyMs),
    ),
  ];
}
