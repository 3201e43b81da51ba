/** A thread of the {@link WorkerPool}: takes the regions of a job from a shared counter until there are none left. */
import { parentPort } from 'node:worker_threads';
import { CowbirdError, messageOf, type Outcome } from '../sys/errors.js';
import { PageFile, type PageFileHandle } from '../sys/page-file.js';
import { countOf, type JobSpec, type Regions, startJob } from './jobs.js';
import type { JobFiles, JobTotals } from './jobs-common.js';

export interface JobHandles {
  source?: PageFileHandle;
  image?: PageFileHandle;
  checksums?: PageFileHandle;
  delta?: PageFileHandle;
  target?: PageFileHandle;
  chain?: PageFileHandle[];
}

export interface ToWorker {
  spec: JobSpec;
  handles: JobHandles;
  /** Shared: next index, regions done, 1 to stop. */
  control: Int32Array;
  regions: Regions;
}

export type WorkerError =
  | { kind: 'cowbird'; code: string; message: string; outcome: Outcome }
  | { kind: 'other'; code?: string; message: string };

export type FromWorker = { totals: JobTotals } | { error: WorkerError };

function perform({ spec, handles, control, regions }: ToWorker): JobTotals {
  const { chain, ...singles } = handles;
  const files: JobFiles = {};
  for (const role of ['image', 'checksums', 'delta', 'target', 'source'] as const) {
    const handle = singles[role];
    if (handle !== undefined) files[role] = new PageFile(handle);
  }
  if (chain !== undefined) files.chain = chain.map((handle) => new PageFile(handle));
  const job = startJob(spec, files, regions);
  const count = countOf(regions);
  while (Atomics.load(control, 2) === 0) {
    const at = Atomics.add(control, 0, 1);
    if (at >= count) break;
    job.run(at);
    Atomics.add(control, 1, 1);
  }
  return job.totals;
}

function describe(error: unknown): WorkerError {
  if (error instanceof CowbirdError)
    return { kind: 'cowbird', code: error.code, message: error.message, outcome: error.outcome };
  const code = error instanceof Error && 'code' in error && typeof error.code === 'string' ? { code: error.code } : {};
  return {
    kind: 'other',
    message: error instanceof Error && !('code' in error) ? (error.stack ?? error.message) : messageOf(error),
    ...code,
  };
}

parentPort?.on('message', (message: ToWorker) => {
  let answer: FromWorker;
  try {
    answer = { totals: perform(message) };
  } catch (error) {
    answer = { error: describe(error) };
  }
  parentPort?.postMessage(answer);
});
