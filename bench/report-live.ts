/** Sections of the report about disks that are not attached, and about free blocks. */
import type { Results } from './results.js';
import { median, quantileOf, spreadOf } from './statistics.js';
import { type Row, round, spreadText, table } from './tables.js';
import { DEPTHS, STORES, trackedRatios } from './tracking.js';

export function trackingSection({ tracking }: Results): string[] {
  if (tracking === undefined) return [];
  const rows = STORES.flatMap((store) =>
    DEPTHS.map((depth): Row => {
      const of = tracking.rounds.filter((entry) => entry.store === store && entry.depth === depth);
      const ratios = spreadOf(trackedRatios(tracking.rounds, store, depth));
      return [
        `image on ${store}, depth ${depth}`,
        String(of.length),
        round(median(of.map(({ untrackedIops }) => untrackedIops)), 0),
        round(median(of.map(({ trackedIops }) => trackedIops)), 0),
        round(ratios?.median ?? Number.NaN, 3),
        spreadText(ratios, 3),
      ];
    }),
  );
  return [
    '## Tracking inside the kernel',
    `4 KiB random writes to a loop device with direct I/O; one fio writes all the while, tracking is switched on and off under it, and windows next to each other are compared, of which the first changes from pair to pair. The map of 1 TiB takes ${round(tracking.mapMib, 1)} MiB, notes of what is under way among them.`,
    table(['', 'pairs', 'not tracked, IOPS', 'tracked, IOPS', 'ratio', 'min / quartiles / max'], rows),
  ];
}

export function liveSection({ live }: Results): string[] {
  if (live === undefined) return [];
  const sizes = [...new Set(live.incremental.map(({ gib }) => gib))];
  const changed = [...new Set(live.incremental.map(({ changedMib }) => changedMib))];
  const rows = sizes.map((gib): Row => {
    const times = changed.map((mib) => {
      const of = live.incremental.filter((entry) => entry.gib === gib && entry.changedMib === mib);
      return `${round(median(of.map(({ elapsedMs }) => elapsedMs)), 0)} ms`;
    });
    return [`${gib} GiB, sparse`, ...times];
  });
  const freezes = live.freezes.map(({ freezeMs }) => freezeMs);
  const spread = spreadOf(freezes);
  const rest = median(live.freezes.map(({ restBytes }) => restBytes)) / 1_048_576;
  return [
    '## Live backups',
    'Whole runs of `cowbird backup` of a mounted ext4 that is tracked, caches dropped before each, start-up included, by the size of the disk and by how much has changed.',
    table(['disk', ...changed.map((mib) => `${mib} MiB changed`)], rows),
    `${freezes.length} freezes under a writer of ${live.writerMibPerSecond} MiB/s through the page cache: median ${round(spread?.median ?? Number.NaN, 0)} ms, 95th percentile ${round(quantileOf(freezes, 0.95), 0)} ms, longest ${round(spread?.max ?? Number.NaN, 0)} ms, from the call of FIFREEZE to the return of FITHAW; ${round(rest, 1)} MiB were read meanwhile (median).`,
  ];
}

const MODES: ReadonlyArray<readonly [string, string]> = [
  ['passthrough', 'nothing tracked'],
  ['snapshot', 'snapshot'],
  ['free-aware', 'snapshot --free-aware'],
];

export function freeAwareSection(results: Results): string[] {
  const measured = results['free-aware'];
  if (measured === undefined) return [];
  const { cells, newFileMib } = measured;
  const rows = MODES.map(([mode, title]): Row => {
    const of = cells.filter((cell) => cell.mode === mode);
    const ratios = of.flatMap(({ round: number, mibPerSecond }) => {
      const plain = cells.find((cell) => cell.mode === 'passthrough' && cell.round === number);
      return plain === undefined ? [] : [mibPerSecond / plain.mibPerSecond];
    });
    return [
      title,
      round(median(of.map(({ mibPerSecond }) => mibPerSecond)), 0),
      round(median(ratios), 2),
      spreadText(spreadOf(ratios)),
      round(median(of.map(({ savedBlocks }) => savedBlocks)), 0),
    ];
  });
  return [
    '## A writer of new files',
    `A new file of ${newFileMib} MiB on ext4, 1 MiB a write, ended by an fsync, on a volume whose free blocks all had been written before; a fresh snapshot before each, its store on the volume.`,
    table(['', 'MiB/s', '/ nothing tracked', 'min / quartiles / max', 'blocks in the store'], rows),
  ];
}
