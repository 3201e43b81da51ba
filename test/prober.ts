/** What a program that reads past the cache sees of a pause: 4 KiB O_DIRECT reads in a thread of their own, each timed. */
import { once } from 'node:events';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { DirectReader } from '../src/sys/direct-reader.js';
import type { Lab } from './lab.js';

/** Shorter ones are no pause of an engine that was started again, but a slow disk or a busy machine. */
const PAUSE_MS_MIN = 50;
const READ_BYTES = 4096;
const BETWEEN_MS = 2;
const STOP_MS_MAX = 30_000;

interface Start {
  device: string;
  stop: Int32Array;
}

export class Prober {
  readonly #worker: Worker;
  readonly #stop = new Int32Array(new SharedArrayBuffer(4));

  constructor(lab: Lab, device: string) {
    const start: Start = { device, stop: this.#stop };
    this.#worker = new Worker(new URL(import.meta.url), { workerData: start });
    lab.onEnd(() => this.#worker.terminate());
  }

  /** Ends reading; how long the reads took that were held up, in milliseconds. Rejects when one failed. */
  async stop(): Promise<number[]> {
    const answer = once(this.#worker, 'message', { signal: AbortSignal.timeout(STOP_MS_MAX) });
    Atomics.store(this.#stop, 0, 1);
    const [pausesMs] = await answer;
    return pausesMs;
  }
}

/** The value below which a part of the (not empty) values lies. */
export function quantile(values: readonly number[], part: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? Number.NaN;
}

function probe({ device, stop }: Start): number[] {
  const reader = new DirectReader(device);
  const buffer = Buffer.alloc(READ_BYTES);
  const blocks = Math.floor(reader.lengthBytes / READ_BYTES);
  const pausesMs: number[] = [];
  try {
    while (Atomics.wait(stop, 0, 0, BETWEEN_MS) === 'timed-out') {
      const startedAt = performance.now();
      reader.read(buffer, Math.floor(Math.random() * blocks) * READ_BYTES);
      const tookMs = performance.now() - startedAt;
      if (tookMs >= PAUSE_MS_MIN) pausesMs.push(tookMs);
    }
  } finally {
    reader.close();
  }
  return pausesMs;
}

if (!isMainThread) parentPort?.postMessage(probe(workerData));
