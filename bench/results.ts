/** The raw results of each part, as they are written and read back: the tables and plots are made from these files alone. */
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as v from 'valibot';
import { STORES } from './tracking.js';

const Machine = v.object({
  kernel: v.string(),
  architecture: v.string(),
  cpu: v.string(),
  cpuCount: v.number(),
  memoryMib: v.number(),
  fileSystem: v.string(),
  device: v.string(),
  versions: v.record(v.string(), v.string()),
});
export type Machine = v.InferOutput<typeof Machine>;

const Head = {
  machine: Machine,
  scale: v.string(),
  /** RFC 3339. */
  takenAt: v.string(),
  seconds: v.number(),
};
/** JSON has no NaN. */
const Figure = v.nullable(v.number());

const Cell = v.object({
  round: v.number(),
  /** Place of the cell in its round and workload: the order is rotated. */
  place: v.number(),
  workload: v.string(),
  subject: v.string(),
  ios: v.number(),
  bytes: v.number(),
  runtimeMs: v.number(),
  iops: v.number(),
  mibPerSecond: Figure,
  p50Us: Figure,
  p99Us: Figure,
  systemCpuSeconds: v.number(),
  servingCpuSeconds: v.number(),
});
export type Cell = v.InferOutput<typeof Cell>;

const Named = v.object({ name: v.string(), title: v.string() });
const Volumes = v.object({
  ...Head,
  cache: v.picklist(['direct', 'buffered']),
  rounds: v.number(),
  qemuAio: v.string(),
  fileMib: v.number(),
  subjects: v.array(Named),
  workloads: v.array(v.object({ ...Named.entries, unit: v.picklist(['IOPS', 'MiB/s']), ios: v.nullable(v.number()) })),
  cells: v.array(Cell),
});
export type VolumesResult = v.InferOutput<typeof Volumes>;

const UpdateImg = v.object({
  ...Head,
  imageMib: v.number(),
  startUpMs: v.array(v.number()),
  cases: v.array(
    v.object({
      pattern: v.picklist(['run', 'random']),
      cache: v.picklist(['warm', 'cold']),
      changedBlocks: v.number(),
      rounds: v.array(v.object({ cowbirdMs: v.number(), plainMs: v.number(), plainSyncedMs: v.number() })),
    }),
  ),
});
export type UpdateImgResult = v.InferOutput<typeof UpdateImg>;

const SnapshotReads = v.object({
  ...Head,
  mib: v.number(),
  savedBlocks: v.number(),
  rounds: v.array(v.object({ direct: v.boolean(), volumeMibPerSecond: v.number(), snapshotMibPerSecond: v.number() })),
});
export type SnapshotReadsResult = v.InferOutput<typeof SnapshotReads>;

const Memory = v.object({
  ...Head,
  cases: v.array(
    v.object({
      title: v.string(),
      volumes: v.number(),
      volumeGib: v.number(),
      keeperMib: v.number(),
      engineMib: v.number(),
      limitMib: v.nullable(v.number()),
    }),
  ),
});
export type MemoryResult = v.InferOutput<typeof Memory>;

const Times = v.object({
  ...Head,
  cases: v.array(
    v.object({
      gib: v.number(),
      attachMs: v.number(),
      setupMs: v.number(),
      setupFreezeMs: Figure,
      toIncrementalMs: v.number(),
      toSnapshotMs: v.number(),
      toSnapshotFreezeMs: Figure,
    }),
  ),
});
export type TimesResult = v.InferOutput<typeof Times>;

const Full = v.array(v.object({ cowbirdMs: v.number(), cowbirdWholeMs: v.number(), ddMs: v.number() }));

const Backup = v.object({
  ...Head,
  volumeMib: v.number(),
  dataMib: v.number(),
  full: Full,
  fromMemory: v.object({ volumeMib: v.number(), dataMib: v.number(), full: Full }),
  nextInRuns: v.array(v.object({ cowbirdMs: v.number(), ddMs: v.number() })),
  next: v.array(v.object({ cowbirdMs: v.number(), ddMs: v.number(), rsyncMs: Figure, qemuMs: Figure })),
  verify: v.array(v.object({ verifyMs: v.number(), catMs: v.number() })),
  verifiedBytes: v.number(),
  sizes: v.object({ versions: v.number(), repositoryBytes: v.number(), qcow2Bytes: Figure }),
});
export type BackupResult = v.InferOutput<typeof Backup>;

const Tracking = v.object({
  ...Head,
  fileMib: v.number(),
  rounds: v.array(
    v.object({ store: v.picklist(STORES), depth: v.number(), untrackedIops: v.number(), trackedIops: v.number() }),
  ),
  mapMib: v.number(),
});
export type TrackingResult = v.InferOutput<typeof Tracking>;

const Live = v.object({
  ...Head,
  incremental: v.array(
    v.object({
      gib: v.number(),
      changedMib: v.number(),
      bytesRead: v.number(),
      elapsedMs: v.number(),
      freezeMs: v.number(),
    }),
  ),
  writerMibPerSecond: v.number(),
  freezes: v.array(v.object({ freezeMs: v.number(), restBytes: v.number(), passes: v.number() })),
});
export type LiveResult = v.InferOutput<typeof Live>;

const FreeAware = v.object({
  ...Head,
  newFileMib: v.number(),
  cells: v.array(
    v.object({
      round: v.number(),
      mode: v.picklist(['passthrough', 'snapshot', 'free-aware']),
      mibPerSecond: v.number(),
      savedBlocks: v.number(),
    }),
  ),
});
export type FreeAwareResult = v.InferOutput<typeof FreeAware>;

const Profile = v.object({
  ...Head,
  workloads: v.array(
    v.object({
      title: v.string(),
      requests: v.number(),
      iops: v.number(),
      samples: v.number(),
      /** CPU time of the engine for a request. */
      cpuUsPerRequest: v.number(),
      /** Of the whole machine: fio, the loop device's threads and the disk's interrupts too. */
      systemCpuUsPerRequest: v.number(),
      syscallsPerRequest: v.nullable(v.record(v.string(), v.number())),
      shares: v.array(v.object({ name: v.string(), share: v.number(), copyShare: v.number() })),
      topSymbols: v.array(v.object({ symbol: v.string(), share: v.number() })),
    }),
  ),
});
export type ProfileResult = v.InferOutput<typeof Profile>;

const SCHEMAS = {
  'volumes-direct': Volumes,
  'volumes-buffered': Volumes,
  'update-img': UpdateImg,
  'snapshot-reads': SnapshotReads,
  memory: Memory,
  times: Times,
  backup: Backup,
  tracking: Tracking,
  live: Live,
  'free-aware': FreeAware,
  profile: Profile,
} as const;
export type ResultName = keyof typeof SCHEMAS;

export interface Results {
  'volumes-direct'?: VolumesResult;
  'volumes-buffered'?: VolumesResult;
  'update-img'?: UpdateImgResult;
  'snapshot-reads'?: SnapshotReadsResult;
  memory?: MemoryResult;
  times?: TimesResult;
  backup?: BackupResult;
  tracking?: TrackingResult;
  live?: LiveResult;
  'free-aware'?: FreeAwareResult;
  profile?: ProfileResult;
}

/** Writes one part's raw data; what was there before stays until it is whole. */
export function writeResult<N extends ResultName>(folder: string, name: N, result: Required<Results>[N]): void {
  mkdirSync(folder, { recursive: true });
  const path = join(folder, `${name}.json`);
  // What this module writes it can read back, or it fails now and not when somebody else reads it.
  v.parse(SCHEMAS[name], JSON.parse(JSON.stringify(result)));
  writeFileSync(`${path}.new`, `${compact(result)}\n`);
  renameSync(`${path}.new`, path);
}

/** One line for each element of a list of objects: hundreds of cells stay readable, and differences small. */
function compact(result: object): string {
  return JSON.stringify(result, null, 2).replace(
    /\{\n[^{}[\]]*\}/g,
    (object) => `{ ${object.slice(1, -1).trim().replace(/\n\s*/g, ' ')} }`,
  );
}

function read<S extends v.GenericSchema>(folder: string, name: ResultName, schema: S): v.InferOutput<S> | undefined {
  const path = join(folder, `${name}.json`);
  return existsSync(path) ? v.parse(schema, JSON.parse(readFileSync(path, 'utf8'))) : undefined;
}

/** Every part that has been measured so far. */
export function readResults(folder: string): Results {
  const results: Results = {};
  const direct = read(folder, 'volumes-direct', Volumes);
  if (direct !== undefined) results['volumes-direct'] = direct;
  const buffered = read(folder, 'volumes-buffered', Volumes);
  if (buffered !== undefined) results['volumes-buffered'] = buffered;
  const update = read(folder, 'update-img', UpdateImg);
  if (update !== undefined) results['update-img'] = update;
  const reads = read(folder, 'snapshot-reads', SnapshotReads);
  if (reads !== undefined) results['snapshot-reads'] = reads;
  const memory = read(folder, 'memory', Memory);
  if (memory !== undefined) results.memory = memory;
  const times = read(folder, 'times', Times);
  if (times !== undefined) results.times = times;
  const backup = read(folder, 'backup', Backup);
  if (backup !== undefined) results.backup = backup;
  const tracking = read(folder, 'tracking', Tracking);
  if (tracking !== undefined) results.tracking = tracking;
  const live = read(folder, 'live', Live);
  if (live !== undefined) results.live = live;
  const freeAware = read(folder, 'free-aware', FreeAware);
  if (freeAware !== undefined) results['free-aware'] = freeAware;
  const profile = read(folder, 'profile', Profile);
  if (profile !== undefined) results.profile = profile;
  return results;
}
