/**
 * Where the time of the workers goes: perf samples the engine while fio works on a volume in passthrough.
 *
 * Each sample is put into one group: by the system call it was in, or else by the library that ran. Node writes a map of the
 * functions that it compiled (`--perf-basic-prof`), which costs nothing once they are compiled. Calls are counted in a run of
 * their own, by the kernel's tracepoints.
 */
import { readdirSync, rmSync } from 'node:fs';
import { measureCpu } from './cpu.js';
import { type FioResult, runFio, type Workload, workloadsOf } from './fio.js';
import { makeMaster, requireSpace } from './images.js';
import { type Lab, MIB } from './lab.js';
import type { Scale } from './options.js';
import { pause } from './processes.js';
import { groupSamples, parseSamples } from './samples.js';
import { type CowbirdState, CowbirdVolume } from './subjects.js';

export interface ProfiledWorkload {
  title: string;
  requests: number;
  iops: number;
  samples: number;
  cpuUsPerRequest: number;
  systemCpuUsPerRequest: number;
  syscallsPerRequest: Record<string, number> | null;
  shares: Array<{ name: string; share: number; copyShare: number }>;
  topSymbols: Array<{ symbol: string; share: number }>;
}

/** Odd, so as not to beat in time with the kernel's tick. */
const SAMPLES_PER_SECOND = 1_999;
const WARM_UP_MS = 3_000;
const SYSCALLS = ['read', 'write', 'writev', 'pread64', 'pwrite64', 'poll', 'futex', 'fdatasync'];
const MAPS = '/tmp';

const CASES: ReadonlyArray<{ state: CowbirdState; workloads: readonly string[] }> = [
  {
    state: 'passthrough',
    workloads: ['random-read-1', 'random-read-32', 'random-write-32', 'sequential-read', 'sequential-write'],
  },
  { state: 'incremental', workloads: ['random-write-32'] },
  { state: 'saved', workloads: ['random-write-32'] },
  { state: 'first', workloads: ['random-write-16', 'sequential-write'] },
];

export async function measureProfile(lab: Lab, scale: Scale, say: (text: string) => void): Promise<ProfiledWorkload[]> {
  requireSpace(lab, 3 * scale.imageMib + 1_024);
  await lab.run('perf', ['--version']);
  const master = await makeMaster(lab, scale);
  const mapsBefore = new Set(functionMaps());
  const results: ProfiledWorkload[] = [];
  try {
    for (const { state, workloads } of CASES) {
      const setting = { lab, scale, cache: 'direct', master, qemuAio: 'native' } as const;
      const volume = new CowbirdVolume(setting, state, false, { NODE_OPTIONS: '--perf-basic-prof' });
      await volume.start();
      for (const workload of workloadsOf(scale).filter(({ name }) => workloads.includes(name))) {
        results.push(await profileOne(lab, scale, volume, workload));
        say(`profiled: ${volume.title}, ${workload.title}`);
      }
      await volume.stop();
    }
  } finally {
    // Every Node of the daemons has left a map there; what was there before, or belongs to a live process, is not ours.
    for (const name of functionMaps().filter((map) => !mapsBefore.has(map))) rmSync(`${MAPS}/${name}`, { force: true });
  }
  return results;
}

function functionMaps(): string[] {
  return readdirSync(MAPS).filter((name) => /^perf-\d+\.map$/.test(name));
}

async function profileOne(
  lab: Lab,
  scale: Scale,
  volume: CowbirdVolume,
  workload: Workload,
): Promise<ProfiledWorkload> {
  const pids = await volume.pids();
  const engine = pids[1];
  if (engine === undefined) throw new Error('The engine runs');
  const target = { file: volume.file, fileMib: scale.fileMib };
  const profiled = lengthened(workload, volume, scale);
  // A fresh snapshot is for one pass: it is taken before anything is observed.
  const work = (ms: number, seed: number): Promise<FioResult> =>
    runFio(lab, profiled, target, { cellMs: Math.min(ms, scale.profileMs), seed });
  await volume.prepare();
  await work(WARM_UP_MS, 1);
  await volume.prepare();
  const data = lab.path('perf.data');
  const record = ['record', '-q', '-e', 'cpu-clock', '-F', String(SAMPLES_PER_SECOND), '-g', '-o', data];
  const endCpu = measureCpu([engine]);
  const { result } = await beside(lab, 'perf', [...record, '-p', String(engine)], () => work(scale.profileMs, 2));
  const cpu = endCpu();
  const { stdout } = await lab.run('perf', ['script', '-i', data, '-F', 'comm,tid,ip,sym,dso'], { timeoutMs: 120_000 });
  await volume.prepare();
  return {
    title: `${volume.title}: ${workload.title}`,
    requests: result.ios,
    iops: result.iops,
    cpuUsPerRequest: (cpu.servingSeconds * 1e6) / result.ios,
    systemCpuUsPerRequest: (cpu.systemSeconds * 1e6) / result.ios,
    syscallsPerRequest: await countSyscalls(lab, engine, () => work(WARM_UP_MS, 3)),
    ...groupSamples(parseSamples(stdout)),
  };
}

/** For longer than a cell of the volumes part: a fresh snapshot takes one pass over the whole file, others any time. */
function lengthened(workload: Workload, volume: CowbirdVolume, scale: Scale): Workload {
  return { ...workload, passBytes: volume.overwrites ? scale.fileMib * MIB : undefined };
}

/** Runs a program that observes until it gets SIGINT, beside some work. */
async function beside<T>(lab: Lab, program: string, args: string[], work: () => Promise<T>) {
  const observer = lab.processes.start('load', program, args);
  // It has to attach to every thread first.
  await pause(300);
  if (observer.hasEnded()) throw new Error(`${program} ended: ${observer.stderr().trim()}`);
  const result = await work();
  await observer.end('SIGINT');
  return { result, stderr: observer.stderr() };
}

/** System calls of the engine for a request, or null where the kernel has no tracepoints for them. */
async function countSyscalls(
  lab: Lab,
  engine: number,
  work: () => Promise<FioResult>,
): Promise<Record<string, number> | null> {
  const events = SYSCALLS.map((name) => `syscalls:sys_enter_${name}`).join(',');
  const observed = await beside(lab, 'perf', ['stat', '-x', ',', '-e', events, '-p', String(engine)], work).catch(
    () => undefined,
  );
  if (observed === undefined) return null;
  const counts: Record<string, number> = {};
  for (const line of observed.stderr.split('\n')) {
    const [count = '', , event = ''] = line.split(',');
    const name = /sys_enter_(\w+)/.exec(event)?.[1];
    if (name !== undefined && /^\d+$/.test(count)) counts[name] = Number(count) / observed.result.ios;
  }
  return Object.keys(counts).length === 0 ? null : counts;
}
