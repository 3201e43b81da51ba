/**
 * Runs a job over its regions: in worker threads where the files allow it and there is enough to do, so that large reads,
 * hashing and writes overlap; else in this thread, which looks up between regions.
 *
 * Aborted or failed, it ends between two regions of each thread, and only then returns: nothing is written behind its back.
 */
import { availableParallelism } from 'node:os';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { addTotals, countOf, type JobSpec, type Regions, startJob } from './jobs.js';
import { emptyTotals, type JobFiles, type JobTotals } from './jobs-common.js';
import type { FromWorker, JobHandles, ToWorker } from './region-worker.js';

export interface RunOptions {
  signal?: AbortSignal | undefined;
  /** Hears how many regions are done, of how many, about ten times a second. */
  onProgress?: ((doneRegions: number, regions: number) => void) | undefined;
}

/** Runs a job over regions. */
export type RunJob = (spec: JobSpec, files: JobFiles, regions: Regions, options?: RunOptions) => Promise<JobTotals>;

const REPORT_EVERY_MS = 100;
/** Below this a worker costs more than it saves. */
const WORKER_REGIONS_MIN = 64;
const WORKERS_MAX = 4;

/** @throws {CowbirdError} EINTR when the signal was aborted; whatever the job throws. */
export const runInThisThread: RunJob = async (spec, files, regions, options = {}) => {
  const job = startJob(spec, files, regions);
  const count = countOf(regions);
  let reportedMs = Date.now();
  for (let at = 0; at < count; at++) {
    requireGoingOn(options.signal);
    job.run(at);
    if (Date.now() - reportedMs < REPORT_EVERY_MS) continue;
    reportedMs = Date.now();
    options.onProgress?.(at + 1, count);
    // Signals are heard in the event loop.
    await nextTurn();
  }
  requireGoingOn(options.signal);
  return sorted(job.totals);
};

const INTERRUPTED = 'Interrupted: the repository is whole; run it again with the same arguments';

/** @throws {CowbirdError} EINTR: the caller undoes what it has begun. */
export function requireGoingOn(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw new CowbirdError('EINTR', INTERRUPTED, { outcome: 'failed' });
}

function sorted(totals: JobTotals): JobTotals {
  totals.badBlocks.sort((a, b) => a - b);
  totals.damagedBlocks.sort((a, b) => a - b);
  return totals;
}

/** Worker threads for one command. */
export class WorkerPool {
  readonly #workers: Worker[] = [];

  /** Runs a job in the pool's threads; small ones, and those on files that only this thread has, here. */
  readonly run: RunJob = async (spec, files, regions, options = {}) => {
    const count = countOf(regions);
    const handles = handlesOf(files);
    if (count < WORKER_REGIONS_MIN || handles === undefined) return runInThisThread(spec, files, regions, options);
    requireGoingOn(options.signal);
    this.#start();
    // Next region, regions done, and whether to stop.
    const control = new Int32Array(new SharedArrayBuffer(12));
    const message: ToWorker = { spec, handles, control, regions };
    const stop = (): void => void Atomics.store(control, 2, 1);
    options.signal?.addEventListener('abort', stop);
    const timer = setInterval(() => options.onProgress?.(Atomics.load(control, 1), count), REPORT_EVERY_MS);
    try {
      const outcomes = await Promise.allSettled(this.#workers.map((worker) => ask(worker, message, stop)));
      const totals = emptyTotals();
      for (const outcome of outcomes) {
        if (outcome.status === 'rejected') throw outcome.reason;
        addTotals(totals, outcome.value);
      }
      requireGoingOn(options.signal);
      return sorted(totals);
    } finally {
      clearInterval(timer);
      options.signal?.removeEventListener('abort', stop);
    }
  };

  /** Starts the threads while somebody else is waited for, where jobs of so many regions are to be expected. */
  warm(regions: number): void {
    if (regions >= WORKER_REGIONS_MIN) this.#start();
  }

  #start(): void {
    // One more than there are processors: while one waits for the disk the others compute.
    const wanted = Math.min(WORKERS_MAX, availableParallelism() + 1);
    while (this.#workers.length < wanted) this.#workers.push(startWorker());
  }

  /** Ends the threads. */
  async close(): Promise<void> {
    await Promise.all(this.#workers.splice(0).map((worker) => worker.terminate()));
  }
}

function startWorker(): Worker {
  const worker = new Worker(new URL('./region-worker.js', import.meta.url));
  // An idle pool does not keep the process.
  worker.unref();
  return worker;
}

function handlesOf(files: JobFiles): JobHandles | undefined {
  const { source, image, checksums, delta, target, chain } = files;
  const singles = { source, image, checksums, delta, target };
  const handles: JobHandles = {};
  for (const role of ['source', 'image', 'checksums', 'delta', 'target'] as const) {
    const file = singles[role];
    if (file === undefined) continue;
    if (file.handle === undefined) return undefined;
    handles[role] = file.handle;
  }
  if (chain === undefined) return handles;
  const links = chain.flatMap((file) => (file.handle === undefined ? [] : [file.handle]));
  return links.length === chain.length ? { ...handles, chain: links } : undefined;
}

/** One worker's share of a job. `onFailure` is called at once when it fails, so that the others stop. */
function ask(worker: Worker, message: ToWorker, onFailure: () => void): Promise<JobTotals> {
  return new Promise((resolve, reject) => {
    const settle = (finish: () => void): void => {
      worker.off('message', onMessage);
      worker.off('error', onError);
      worker.unref();
      finish();
    };
    const fail = (error: unknown): void => {
      onFailure();
      settle(() => reject(error));
    };
    const onMessage = (answer: FromWorker): void => {
      if ('totals' in answer) settle(() => resolve(answer.totals));
      else fail(errorOf(answer.error));
    };
    const onError = (error: unknown): void => fail(new Error(`A worker thread ended: ${messageOf(error)}`));
    worker.on('message', onMessage);
    worker.on('error', onError);
    worker.ref();
    worker.postMessage(message);
  });
}

function errorOf(error: Extract<FromWorker, { error: unknown }>['error']): Error {
  if (error.kind === 'cowbird') return new CowbirdError(error.code, error.message, { outcome: error.outcome });
  return Object.assign(new Error(error.message), error.code === undefined ? {} : { code: error.code });
}
