/** The workloads, and fio that runs them. */
import * as v from 'valibot';
import { type Lab, MIB } from './lab.js';
import type { Scale } from './options.js';

export interface Workload {
  name: string;
  title: string;
  unit: 'IOPS' | 'MiB/s';
  direction: 'read' | 'write';
  depth: number;
  /** Arguments for fio beyond what all have. */
  args: string[];
  /** Undefined: bounded by time. */
  passBytes: number | undefined;
}

const BLOCK_BYTES = 4096;

/**
 * Reads, and the writes of depth 32, go on for a fixed time. The other writes are a pass: a fixed number of I/Os, spread
 * over the whole file, none of them to a block that was written before in the same pass; so that in a fresh snapshot each
 * is a first overwrite, and everybody does the same.
 */
export function workloadsOf(scale: Scale): Workload[] {
  const all: Workload[] = [
    random('read', 1, undefined),
    random('read', 32, undefined),
    random('write', 1, scale.passIos.depth1),
    random('write', 16, scale.passIos.depth16),
    random('write', 32, undefined),
    sequential('read', undefined),
    sequential('write', scale.fileMib),
  ];
  return all.filter(({ name }) => scale.workloads?.includes(name) ?? true);
}

function random(direction: 'read' | 'write', depth: number, ios: number | undefined): Workload {
  return {
    name: `random-${direction}-${depth}`,
    title: `4 KiB random ${direction}s, depth ${depth}`,
    unit: 'IOPS',
    direction,
    depth,
    args: [`--rw=rand${direction}`, '--bs=4k', `--iodepth=${depth}`],
    passBytes: ios === undefined ? undefined : ios * BLOCK_BYTES,
  };
}

function sequential(direction: 'read' | 'write', mib: number | undefined): Workload {
  return {
    name: `sequential-${direction}`,
    title: `1 MiB sequential ${direction}s`,
    unit: 'MiB/s',
    direction,
    depth: 1,
    args: [`--rw=${direction}`, '--bs=1m', '--iodepth=1'],
    passBytes: mib === undefined ? undefined : mib * MIB,
  };
}

const Side = v.object({
  io_bytes: v.number(),
  total_ios: v.number(),
  iops: v.number(),
  runtime: v.number(),
  clat_ns: v.object({ mean: v.number(), percentile: v.optional(v.record(v.string(), v.number())) }),
});
const Output = v.object({ jobs: v.array(v.object({ error: v.number(), read: Side, write: Side })) });

export interface FioResult {
  ios: number;
  bytes: number;
  runtimeMs: number;
  iops: number;
  mibPerSecond: number;
  p50Us: number | null;
  p99Us: number | null;
}

/** Runs one workload on a file. `seed` makes the order of blocks the same for all subjects of a round. */
export async function runFio(
  lab: Lab,
  workload: Workload,
  target: { file: string; fileMib: number },
  options: { cellMs: number; seed: number },
): Promise<FioResult> {
  const { passBytes } = workload;
  const bound =
    passBytes === undefined ? ['--time_based', `--runtime=${options.cellMs}ms`] : [`--io_size=${passBytes}`];
  const args = [
    '--name=cell',
    '--thread',
    '--ioengine=libaio',
    '--direct=1',
    `--filename=${target.file}`,
    `--size=${target.fileMib}m`,
    `--randseed=${options.seed}`,
    '--allrandrepeat=1',
    ...workload.args,
    ...bound,
    '--output-format=json',
  ];
  const { stdout } = await lab.run('fio', args, { timeoutMs: options.cellMs + 120_000 });
  // fio may say something before its JSON.
  const output = v.parse(Output, JSON.parse(stdout.slice(stdout.indexOf('{'))));
  const [job] = output.jobs;
  if (job === undefined || job.error !== 0) throw new Error(`fio: ${workload.name} ended with error ${job?.error}`);
  return resultOf(job[workload.direction]);
}

function resultOf(side: v.InferOutput<typeof Side>): FioResult {
  const percentile = (key: string): number | null => {
    const ns = side.clat_ns.percentile?.[key];
    return ns === undefined ? null : ns / 1_000;
  };
  const seconds = side.runtime / 1_000;
  return {
    ios: side.total_ios,
    bytes: side.io_bytes,
    runtimeMs: side.runtime,
    iops: side.iops,
    mibPerSecond: seconds === 0 ? Number.NaN : side.io_bytes / MIB / seconds,
    p50Us: percentile('50.000000'),
    p99Us: percentile('99.000000'),
  };
}
