/**
 * The volumes part: fio on a file of the ext4 on each subject, in interleaved rounds.
 *
 * In each round every workload goes over all subjects, one after another, beginning with another one each time: what is
 * compared was measured within a minute, and a ratio is taken of two cells of the same round.
 */
import type { CpuCost } from './cpu.js';
import { measureCpu } from './cpu.js';
import { runFio, type Workload, workloadsOf } from './fio.js';
import { makeMaster, requireSpace } from './images.js';
import type { Lab } from './lab.js';
import type { CacheFamily, Scale } from './options.js';
import type { Cell } from './results.js';
import { median } from './statistics.js';
import {
  CowbirdVolume,
  PlainLoop,
  type QemuAio,
  QemuExport,
  type Setting,
  type Subject,
  takesPart,
} from './subjects.js';

export interface VolumesMeasured {
  cache: CacheFamily;
  rounds: number;
  qemuAio: QemuAio;
  fileMib: number;
  subjects: Array<{ name: string; title: string }>;
  workloads: Array<{ name: string; title: string; unit: 'IOPS' | 'MiB/s'; ios: number | null }>;
  cells: Cell[];
}

const SUBJECT_COUNT_MAX = 11;
const WARM_TIMEOUT_MS = 120_000;

export async function measureVolumes(
  lab: Lab,
  scale: Scale,
  cache: CacheFamily,
  say: (text: string) => void,
): Promise<VolumesMeasured> {
  requireSpace(lab, scale.imageMib * (SUBJECT_COUNT_MAX + 3));
  say('making the image that every subject gets a copy of');
  const master = await makeMaster(lab, scale);
  const qemuAio = await fasterAio({ lab, scale, cache, master, qemuAio: 'native' }, say);
  const setting: Setting = { lab, scale, cache, master, qemuAio };
  const subjects: Subject[] = [
    new PlainLoop(setting),
    new CowbirdVolume(setting, 'passthrough'),
    new CowbirdVolume(setting, 'incremental'),
    new CowbirdVolume(setting, 'first'),
    new CowbirdVolume(setting, 'first', true),
    new CowbirdVolume(setting, 'saved'),
    new CowbirdVolume(setting, 'saved', true),
    new QemuExport(setting, 'export'),
    new QemuExport(setting, 'first'),
    new QemuExport(setting, 'first', true),
    new QemuExport(setting, 'saved'),
  ];
  for (const subject of subjects) {
    say(`starting: ${subject.title}`);
    await subject.start();
  }
  const workloads = workloadsOf(scale);
  const cells: Cell[] = [];
  for (let round = 1; round <= scale.rounds; round++) {
    for (const [i, workload] of workloads.entries()) {
      const taking = subjects.filter((subject) => takesPart(subject, workload));
      const shift = (round - 1 + i) % taking.length;
      const order = [...taking.slice(shift), ...taking.slice(0, shift)];
      for (const [place, subject] of order.entries()) {
        const cell = await measureCell(setting, subject, workload, round, place);
        cells.push(cell);
        say(lineOf(cell, workload, scale.rounds));
      }
    }
  }
  for (const subject of subjects) await subject.stop();
  return {
    cache,
    rounds: scale.rounds,
    qemuAio,
    fileMib: scale.fileMib,
    subjects: subjects.map(({ name, title }) => ({ name, title })),
    workloads: workloads.map(({ name, title, unit, passBytes }) => ({
      name,
      title,
      unit,
      ios: passBytes === undefined ? null : passBytes / (unit === 'IOPS' ? 4_096 : 1_048_576),
    })),
    cells,
  };
}

async function measureCell(
  { lab, scale, cache }: Setting,
  subject: Subject,
  workload: Workload,
  round: number,
  place: number,
): Promise<Cell> {
  await subject.prepare();
  await settle(lab, cache, subject.image);
  const pids = await subject.pids();
  const target = { file: subject.file, fileMib: scale.fileMib };
  const endCpu = measureCpu(pids);
  const result = await runFio(lab, workload, target, { cellMs: scale.cellMs, seed: round });
  const cpu: CpuCost = endCpu();
  return {
    round,
    place,
    workload: workload.name,
    subject: subject.name,
    ...result,
    mibPerSecond: Number.isFinite(result.mibPerSecond) ? result.mibPerSecond : null,
    systemCpuSeconds: cpu.systemSeconds,
    servingCpuSeconds: cpu.servingSeconds,
  };
}

/** The same state of the caches for every cell: nothing dirty; nothing cached, or all of the image. */
async function settle(lab: Lab, cache: CacheFamily, image: string): Promise<void> {
  await lab.run('sync', [], { timeoutMs: WARM_TIMEOUT_MS });
  await dropCaches(lab);
  if (cache === 'buffered')
    await lab.run('dd', [`if=${image}`, 'of=/dev/null', 'bs=1M', 'status=none'], { timeoutMs: WARM_TIMEOUT_MS });
}

export async function dropCaches(lab: Lab): Promise<void> {
  await lab.run('sh', ['-c', 'echo 3 >/proc/sys/vm/drop_caches'], { timeoutMs: WARM_TIMEOUT_MS });
}

const TRIALS = 3;

/** Tries both of QEMU's fast ways to do I/O, in turns, and takes the faster: the peer is to show its best. */
async function fasterAio(setting: Setting, say: (text: string) => void): Promise<QemuAio> {
  if (setting.cache === 'buffered') return 'io_uring';
  const workload = workloadsOf({ ...setting.scale, workloads: ['random-read-32'] })[0];
  if (workload === undefined) throw new Error('There is a workload of random reads at depth 32');
  const figures: Record<QemuAio, number[]> = { native: [], io_uring: [] };
  const trials = setting.scale.name === 'full' ? TRIALS : 1;
  for (let trial = 0; trial < trials; trial++) {
    for (const qemuAio of ['native', 'io_uring'] as const) {
      const subject = new QemuExport({ ...setting, qemuAio }, 'export');
      await subject.start();
      const cell = await measureCell(setting, subject, workload, 1, 0);
      figures[qemuAio].push(cell.iops);
      await subject.stop();
    }
  }
  const faster = median(figures.native) >= median(figures.io_uring) ? 'native' : 'io_uring';
  const both = `native ${Math.round(median(figures.native))}, io_uring ${Math.round(median(figures.io_uring))} IOPS`;
  say(`QEMU takes aio=${faster} (${both})`);
  return faster;
}

function lineOf(cell: Cell, workload: Workload, rounds: number): string {
  const value = workload.unit === 'IOPS' ? Math.round(cell.iops) : Math.round(cell.mibPerSecond ?? 0);
  const name = `${cell.round}/${rounds} ${workload.name.padEnd(18)} ${cell.subject.padEnd(22)}`;
  return `${name} ${String(value).padStart(8)} ${workload.unit}`;
}
