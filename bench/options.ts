/** What is asked for on the command line, and how large everything is. */
import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';

export const PARTS = [
  'volumes',
  'update-img',
  'snapshot-reads',
  'memory',
  'times',
  'backup',
  'tracking',
  'live',
  'free-aware',
] as const;
export type Part = (typeof PARTS)[number] | 'profile';
export type CacheFamily = 'direct' | 'buffered';

export interface Scale {
  name: 'full' | 'quick' | 'tiny';
  rounds: number;
  caches: CacheFamily[];
  /** Length of a cell that is bounded by time. */
  cellMs: number;
  imageMib: number;
  /** The file that fio works on; fully written. */
  fileMib: number;
  /** Number of I/Os of a pass of 4 KiB writes, by depth. No block is written twice in one pass. */
  passIos: { depth1: number; depth16: number };
  /** Undefined: all of them. */
  workloads: string[] | undefined;
  update: { imageMib: number; fileMib: number; rounds: number };
  /** A sparse volume and the random data in it; and another on a tmpfs. */
  backup: {
    volumeMib: number;
    dataMib: number;
    memoryVolumeMib: number;
    memoryDataMib: number;
    rounds: number;
    /** In the repository, when its size is compared. */
    versions: number;
  };
  /** Sparse disks, how much of them is changed, and how many freezes are measured. */
  live: { gib: number[]; changedMib: number[]; rounds: number; freezes: number };
  /** The new file of the part `free-aware`. */
  newFileMib: number;
  readsMib: number;
  /** Sizes of volumes whose setup and transitions are timed. */
  timedGib: number[];
  timedRounds: number;
  idleVolumes: number;
  /** The large sparse volume whose memory is measured. */
  largeGib: number;
  profileMs: number;
  /** How long an idle daemon is left alone before its memory is read. */
  settleMs: number;
}

const FULL: Scale = {
  name: 'full',
  rounds: 7,
  caches: ['direct', 'buffered'],
  cellMs: 1_500,
  imageMib: 2_560,
  fileMib: 1_024,
  passIos: { depth1: 8_192, depth16: 32_768 },
  workloads: undefined,
  update: { imageMib: 8_192, fileMib: 6_144, rounds: 7 },
  backup: { volumeMib: 16_384, dataMib: 8_192, memoryVolumeMib: 6_144, memoryDataMib: 3_072, rounds: 3, versions: 10 },
  live: { gib: [1, 10, 100], changedMib: [4, 32, 256], rounds: 3, freezes: 50 },
  newFileMib: 512,
  readsMib: 2_048,
  timedGib: [1, 64, 1_024],
  timedRounds: 3,
  idleVolumes: 24,
  largeGib: 1_024,
  profileMs: 10_000,
  settleMs: 3_000,
};

const QUICK: Scale = {
  ...FULL,
  name: 'quick',
  // The other family is one flag more.
  caches: ['direct'],
  rounds: 1,
  cellMs: 300,
  imageMib: 256,
  fileMib: 64,
  passIos: { depth1: 1_024, depth16: 4_096 },
  workloads: ['random-read-32', 'random-write-16'],
  update: { imageMib: 256, fileMib: 160, rounds: 1 },
  backup: { volumeMib: 512, dataMib: 256, memoryVolumeMib: 128, memoryDataMib: 64, rounds: 1, versions: 3 },
  live: { gib: [1], changedMib: [4], rounds: 1, freezes: 2 },
  newFileMib: 32,
  readsMib: 128,
  timedGib: [1, 64],
  timedRounds: 1,
  idleVolumes: 8,
  largeGib: 64,
  profileMs: 1_500,
  settleMs: 500,
};

const TINY: Scale = {
  ...QUICK,
  name: 'tiny',
  cellMs: 100,
  imageMib: 128,
  fileMib: 16,
  passIos: { depth1: 256, depth16: 512 },
  workloads: ['random-read-32', 'random-write-16'],
  update: { imageMib: 96, fileMib: 48, rounds: 1 },
  backup: { volumeMib: 128, dataMib: 64, memoryVolumeMib: 64, memoryDataMib: 32, rounds: 1, versions: 3 },
  live: { gib: [1], changedMib: [1], rounds: 1, freezes: 2 },
  newFileMib: 16,
  readsMib: 48,
  timedGib: [1],
  idleVolumes: 3,
  largeGib: 2,
  settleMs: 100,
};

export interface Options {
  scale: Scale;
  parts: Part[];
  /** Where images lie. */
  dir: string;
  /** Where results go; undefined: the folder of the repository for this scale. */
  out: string | undefined;
}

export const USAGE = `Usage: npm run bench -- [options]

  --quick           every part once, with small sizes: for its working, not for its figures
  --tiny            as --quick, smaller still
  --rounds N        rounds of volumes, update-img, snapshot-reads and free-aware (7), backup and live (3)
  --only NAME       only this part, may be repeated: ${PARTS.join(', ')}
  --cache FAMILY    origins with O_DIRECT, through the page cache, or both: direct, buffered, both
  --dir DIR         where the images lie (/var/tmp); its file system must take O_DIRECT
  --out DIR         where the results go (bench/results, with --quick bench/results/quick)
  --profile         where a worker's time goes, instead of the parts above
`;

export class UsageError extends Error {}

/** @throws {UsageError} */
export function parseOptions(args: string[]): Options | 'help' {
  const { values } = parse(args);
  if (values.help === true) return 'help';
  const base = values.tiny === true ? TINY : values.quick === true ? QUICK : FULL;
  const rounds = values.rounds === undefined ? base.rounds : Number(values.rounds);
  if (!Number.isInteger(rounds) || rounds < 1 || rounds > 1_000)
    throw new UsageError(`--rounds must be a whole number from 1 to 1000: ${values.rounds}`);
  return {
    scale: {
      ...base,
      rounds,
      backup: { ...base.backup, rounds: values.rounds === undefined ? base.backup.rounds : rounds },
      live: { ...base.live, rounds: values.rounds === undefined ? base.live.rounds : rounds },
      update: { ...base.update, rounds: values.rounds === undefined ? base.update.rounds : rounds },
      caches: values.cache === undefined ? base.caches : cacheFamilies(values.cache),
    },
    parts: values.profile === true ? ['profile'] : partsFrom(values.only),
    dir: values.dir ?? '/var/tmp',
    out: values.out,
  };
}

function parse(args: string[]) {
  try {
    return parseArgs({
      args,
      options: {
        help: { type: 'boolean', short: 'h' },
        quick: { type: 'boolean' },
        tiny: { type: 'boolean' },
        rounds: { type: 'string' },
        only: { type: 'string', multiple: true },
        cache: { type: 'string' },
        dir: { type: 'string' },
        out: { type: 'string' },
        profile: { type: 'boolean' },
      },
    });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

function partsFrom(only: string[] | undefined): Part[] {
  if (only === undefined) return [...PARTS];
  const unknown = only.find((name) => !PARTS.some((part) => part === name));
  if (unknown !== undefined) throw new UsageError(`--only ${unknown}: the parts are ${PARTS.join(', ')}`);
  return PARTS.filter((part) => only.includes(part));
}

function cacheFamilies(value: string): CacheFamily[] {
  if (value === 'both') return ['direct', 'buffered'];
  if (value === 'direct' || value === 'buffered') return [value];
  throw new UsageError(`--cache must be direct, buffered or both: ${value}`);
}

export const CPU_COUNT = availableParallelism();
