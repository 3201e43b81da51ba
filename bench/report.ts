/** Tables and plots from all raw results of a folder. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DATTOBD, isMet, type Judged, judgeAll, ratiosOf, speedOf } from './bars.js';
import { plotVolumes } from './plot.js';
import { freeAwareSection, liveSection, trackingSection } from './report-live.js';
import { type Machine, type Results, readResults, type VolumesResult } from './results.js';
import { median, type Spread, spreadOf } from './statistics.js';
import { type Row, round, spreadText, table } from './tables.js';

/** Writes the report of a folder; returns the paths. */
export function writeReport(folder: string): string[] {
  const results = readResults(folder);
  const paths: string[] = [];
  const write = (name: string, text: string): void => {
    const path = join(folder, name);
    writeFileSync(path, text);
    paths.push(path);
  };
  write('README.md', reportText(results));
  for (const cache of ['direct', 'buffered'] as const) {
    const result = results[`volumes-${cache}`];
    if (result !== undefined) write(`volumes-${cache}.svg`, plotVolumes(result));
  }
  return paths;
}

function reportText(results: Results): string {
  const sections = [
    '# Results of the bench',
    'Made by `npm run bench` from the raw data beside it; do not edit. How it measures, and what the words mean: `bench/README.md`.',
    ...machineSection(results),
    ...barsSection(results),
    ...(results['volumes-direct'] === undefined ? [] : volumesSection(results['volumes-direct'])),
    ...(results['volumes-buffered'] === undefined ? [] : volumesSection(results['volumes-buffered'])),
    ...updateSection(results),
    ...readsSection(results),
    ...memorySection(results),
    ...timesSection(results),
    ...backupSection(results),
    ...trackingSection(results),
    ...liveSection(results),
    ...freeAwareSection(results),
    ...profileSection(results),
  ];
  return `${sections.join('\n\n')}\n`;
}

function machineSection(results: Results): string[] {
  const parts = Object.entries(results).map(([name, part]) => ({ name, part }));
  const [first] = parts;
  if (first === undefined) return ['Nothing was measured yet.'];
  const rows = parts.map(({ name, part }) => [name, part.scale, part.takenAt, `${part.seconds} s`]);
  const differ = parts.some(({ part }) => machineText(part.machine) !== machineText(first.part.machine));
  return [
    machineText(first.part.machine),
    ...(differ ? ['Some parts were measured on other machines or versions: see the raw data.'] : []),
    table(['part', 'scale', 'taken at', 'took'], rows),
  ];
}

function machineText(machine: Machine): string {
  const versions = Object.entries(machine.versions).map(([name, version]) => `${name} ${version}`);
  return [
    `Linux ${machine.kernel} (${machine.architecture}), ${machine.cpuCount} × ${machine.cpu}, ${machine.memoryMib} MiB of memory.`,
    `Images on ${machine.fileSystem} on ${machine.device}. ${versions.join(', ')}.`,
  ].join('\n');
}

function barsSection(results: Results): string[] {
  const rows = judgeAll(results).map((judged): Row => {
    const { text, spread, bound, kind, unit } = judged;
    const digits = unit === '' || !Number.isInteger(bound) ? 2 : 0;
    const suffix = unit === '' ? '' : ` ${unit}`;
    const wanted = `${kind === 'atLeast' ? '≥' : '≤'} ${round(bound, digits)}${suffix}`;
    const got = spread === undefined ? 'not measured' : `${round(spread.median, digits)}${suffix}`;
    return [text, wanted, got, spreadText(spread, digits), `${spread?.count ?? 0}`, verdict(judged)];
  });
  return [
    '## Bars',
    table(['median of the ratios of each round', 'asked', 'median', 'min / quartiles / max', 'measured', ''], rows),
  ];
}

function verdict(judged: Judged): string {
  const met = isMet(judged);
  return met === undefined ? '' : met ? 'met' : '**not met**';
}

function volumesSection(result: VolumesResult): string[] {
  const title = result.cache === 'direct' ? 'origins with O_DIRECT' : 'origins through the page cache';
  const note =
    result.cache === 'direct'
      ? 'Before each cell: sync, page cache dropped.'
      : 'Before each cell: sync, page cache dropped, the whole image read into it. Cowbird opens its origins with O_DIRECT always, so its cells are the volume as it is.';
  const intro = `${result.rounds} ${result.rounds === 1 ? 'round' : 'rounds'}; QEMU with aio=${result.qemuAio}; fio on a file of ${result.fileMib} MiB, O_DIRECT. ${note}`;
  return [
    `## Volumes: ${title}`,
    intro,
    `![Ratios to the plain loop device](volumes-${result.cache}.svg)`,
    ...result.workloads.map((workload) => workloadTable(result, workload)),
  ];
}

function workloadTable(result: VolumesResult, workload: VolumesResult['workloads'][number]): string {
  const rows = result.subjects.flatMap((subject): Row[] => {
    const cells = result.cells.filter((cell) => cell.subject === subject.name && cell.workload === workload.name);
    if (cells.length === 0) return [];
    const values = cells.map((cell) => speedOf(result, cell));
    const toLoop = spreadOf(ratiosOf(result, workload.name, subject.name, 'loop'));
    const perGib = (pick: (cell: (typeof cells)[number]) => number): number =>
      median(cells.map((cell) => (pick(cell) / cell.bytes) * 1_073_741_824));
    const per100k = (pick: (cell: (typeof cells)[number]) => number): number =>
      median(cells.map((cell) => (pick(cell) / cell.ios) * 100_000));
    const dattobd = DATTOBD[subject.name]?.[workload.name];
    const both = (of: typeof perGib, digits: number): string =>
      `${round(
        of((cell) => cell.systemCpuSeconds),
        digits,
      )} (${round(
        of((cell) => cell.servingCpuSeconds),
        digits,
      )})`;
    return [
      [
        subject.title,
        round(median(values), 0),
        round(median(cells.map((cell) => cell.p50Us ?? Number.NaN)), 0),
        round(median(cells.map((cell) => cell.p99Us ?? Number.NaN)), 0),
        round(toLoop?.median ?? Number.NaN, 2),
        spreadText(toLoop),
        dattobd === undefined ? '' : round(dattobd, 2),
        both(perGib, 2),
        both(per100k, 2),
      ],
    ];
  });
  const ios = workload.ios === null ? '' : `, a pass of ${workload.ios} I/Os`;
  const head = ['subject', workload.unit, 'p50 µs', 'p99 µs', '/ loop', 'min / quartiles / max', 'dattobd / plain'];
  const cpu = ['CPU s per GiB: all (serving)', 'per 100k I/Os: all (serving)'];
  return `### ${workload.title}${ios}\n\n${table([...head, ...cpu], rows)}`;
}

function updateSection(results: Results): string[] {
  const result = results['update-img'];
  if (result === undefined) return [];
  const startUp = median(result.startUpMs);
  const rows = result.cases.map(({ pattern, cache, changedBlocks, rounds }): Row => {
    const of = (key: keyof (typeof rounds)[number]): number => median(rounds.map((entry) => entry[key]));
    const ratio = (key: 'plainMs' | 'plainSyncedMs'): Spread | undefined =>
      spreadOf(rounds.map((entry) => entry[key] / Math.max(entry.cowbirdMs - startUp, 1)));
    const times = [of('cowbirdMs') - startUp, of('plainMs'), of('plainSyncedMs')].map((ms) => round(ms, 0));
    const ratios = [ratio('plainMs'), ratio('plainSyncedMs')];
    const texts = ratios.map((spread) => `${round(spread?.median ?? Number.NaN, 2)} (${spreadText(spread)})`);
    return [`${pattern === 'run' ? 'on a run' : 'at random'}, ${cache}`, String(changedBlocks), ...times, ...texts];
  });
  const head = ['changed', 'blocks', 'update-img ms', 'plain C ms', 'plain C + fsync ms', 'ratio', 'ratio, C + fsync'];
  return [
    '## update-img',
    `An image of ${result.imageMib} MiB. Start-up (\`update-img --version\`, ${round(startUp, 0)} ms) is subtracted. update-img ends with an fsync of the image; the plain program, as the original tool, does not, so both are shown.`,
    table(head, rows),
  ];
}

function backupSection({ backup }: Results): string[] {
  if (backup === undefined) return [];
  const { full, fromMemory, next, nextInRuns, verify, sizes } = backup;
  const ms = (values: Array<number | null>): string => {
    const measured = values.filter((value) => value !== null);
    return measured.length === 0 ? 'not installed' : `${round(median(measured), 0)} ms`;
  };
  const speed = backup.verifiedBytes / 1e6 / median(verify.map(({ verifyMs }) => verifyMs));
  const first = (name: string, rounds: typeof full): Row[] => [
    [name, ms(rounds.map((one) => one.cowbirdMs)), `dd ${ms(rounds.map((one) => one.ddMs))}`],
    [`${name}, --whole`, ms(rounds.map((one) => one.cowbirdWholeMs)), `dd ${ms(rounds.map((one) => one.ddMs))}`],
  ];
  const rows: Row[] = [
    ...first('first backup', full),
    ...first(
      `first backup of ${fromMemory.dataMib} MiB in ${fromMemory.volumeMib}, the volume on a tmpfs`,
      fromMemory.full,
    ),
    [
      'backup of 1 % changed, in runs of 1 MiB',
      ms(nextInRuns.map((one) => one.cowbirdMs)),
      `dd ${ms(nextInRuns.map((one) => one.ddMs))}`,
    ],
    [
      'backup of 1 % changed, 4 KiB at random',
      ms(next.map((one) => one.cowbirdMs)),
      `dd ${ms(next.map((one) => one.ddMs))}; rsync --inplace --no-whole-file ${ms(next.map((one) => one.rsyncMs))}; qemu-img convert ${ms(next.map((one) => one.qemuMs))}`,
    ],
    [
      'verify',
      `${ms(verify.map((one) => one.verifyMs))}, ${round(speed, 2)} GB/s`,
      `cat ${ms(verify.map((one) => one.catMs))}`,
    ],
    [
      `${sizes.versions} versions`,
      `${round(sizes.repositoryBytes / 1_048_576, 0)} MiB`,
      sizes.qcow2Bytes === null
        ? 'qemu-io not installed'
        : `qcow2 overlays ${round(sizes.qcow2Bytes / 1_048_576, 0)} MiB`,
    ],
  ];
  return [
    '## Backups',
    `A sparse volume of ${backup.volumeMib} MiB, attached and mounted, with ${backup.dataMib} MiB of random data; caches dropped before each run, start-up included, all ended by an fsync. The overlays are of one raw image, each with the blocks written that a version changed.`,
    table(['', 'cowbird', 'others'], rows),
  ];
}

function readsSection(results: Results): string[] {
  const result = results['snapshot-reads'];
  if (result === undefined) return [];
  const rows = [true, false].map((direct): Row => {
    const rounds = result.rounds.filter((entry) => entry.direct === direct);
    const ratios = spreadOf(rounds.map((entry) => entry.snapshotMibPerSecond / entry.volumeMibPerSecond));
    return [
      `dd bs=1M${direct ? ' iflag=direct' : ''}`,
      round(median(rounds.map((entry) => entry.volumeMibPerSecond)), 0),
      round(median(rounds.map((entry) => entry.snapshotMibPerSecond)), 0),
      round(ratios?.median ?? Number.NaN, 2),
      spreadText(ratios),
    ];
  });
  return [
    '## Reads of a snapshot',
    `The first ${result.mib} MiB, page cache dropped; ${result.savedBlocks} blocks come from the store.`,
    table(['', 'volume MiB/s', 'snapshot MiB/s', 'ratio', 'min / quartiles / max'], rows),
  ];
}

function memorySection(results: Results): string[] {
  if (results.memory === undefined) return [];
  const rows = results.memory.cases.map(
    ({ title, keeperMib, engineMib, limitMib }): Row => [
      title,
      round(keeperMib, 0),
      round(engineMib, 0),
      round(keeperMib + engineMib, 0),
      limitMib === null ? '' : round(limitMib, 0),
    ],
  );
  return ['## Memory', 'RssAnon + RssShmem, MiB.', table(['', 'keeper', 'engine', 'together', 'limit'], rows)];
}

function timesSection(results: Results): string[] {
  if (results.times === undefined) return [];
  const { cases } = results.times;
  const sizes = [...new Set(cases.map(({ gib }) => gib))];
  const rows = sizes.map((gib): Row => {
    const same = cases.filter((entry) => entry.gib === gib);
    const of = (key: Exclude<keyof (typeof cases)[number], 'gib'>): string =>
      round(median(same.map((entry) => entry[key] ?? Number.NaN)), 0);
    const times = [of('attachMs'), of('setupMs'), of('setupFreezeMs'), of('toIncrementalMs')];
    return [`${gib} GiB`, ...times, of('toSnapshotMs'), of('toSnapshotFreezeMs')];
  });
  const head = ['volume, sparse', 'attach', 'setup-snapshot', 'frozen', 'to incremental', 'to snapshot', 'frozen'];
  return ['## Times', 'Medians in ms, file system idle.', table(head, rows)];
}

function profileSection(results: Results): string[] {
  if (results.profile === undefined) return [];
  const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;
  const parts = results.profile.workloads.map((workload) => {
    const { title, iops, samples, cpuUsPerRequest, systemCpuUsPerRequest, syscallsPerRequest, shares, topSymbols } =
      workload;
    const rows = shares.map(({ name, share, copyShare }): Row => {
      const copy = copyShare === 0 ? '' : percent(copyShare);
      return [name, percent(share), copy, round(share * cpuUsPerRequest, 2)];
    });
    const calls = Object.entries(syscallsPerRequest ?? {})
      .filter(([, count]) => count >= 0.005)
      .map(([name, count]) => `${name} ${round(count, 2)}`);
    const top = topSymbols
      .slice(0, 12)
      .map(({ symbol, share }) => `\`${symbol.replaceAll('|', '')}\` ${percent(share)}`);
    return [
      `### ${title}`,
      `${round(iops, 0)} requests a second under perf, ${round(cpuUsPerRequest, 1)} µs of the engine's CPU each (${round(systemCpuUsPerRequest, 1)} µs of the whole machine's), ${samples} samples. System calls a request: ${calls.join(', ') || 'not counted'}.`,
      table(['where', 'share', 'of it kernel copies', 'µs a request'], rows),
      `Top: ${top.join(', ')}.`,
    ].join('\n\n');
  });
  return ['## Profile of the engine', ...parts];
}
