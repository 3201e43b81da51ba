/** A bar with rate and time left, on a terminal only. */
import type { SingleBar } from 'cli-progress';
import type { Progress } from '../index.js';
import { formatSize } from './quantities.js';

const LABELS: Readonly<Record<Progress['phase'], string>> = {
  compare: 'comparing',
  save: 'saving old blocks',
  copy: 'copying',
  verify: 'verifying',
  restore: 'restoring',
  check: 'reading back',
};

export interface ProgressBar {
  update(progress: Progress): void;
  stop(): void;
}

/** A bar with this text around it, not started yet. Its library is loaded only here. */
export async function singleBar(stream: NodeJS.WritableStream, format: string): Promise<SingleBar> {
  const { default: progress } = await import('cli-progress');
  return new progress.SingleBar({
    stream,
    format,
    hideCursor: false,
    clearOnComplete: true,
    barCompleteChar: '#',
    barIncompleteChar: '.',
  });
}

/** Undefined where nobody looks. */
export async function progressBar(terminal: NodeJS.WritableStream | undefined): Promise<ProgressBar | undefined> {
  if (terminal === undefined) return undefined;
  const bar = await singleBar(
    terminal,
    '{label} {bar} {percentage}% | {done} of {all} | {rate}/s | {eta_formatted} left',
  );
  let phase: Progress['phase'] | undefined;
  let startedMs = 0;
  return {
    update: (now) => {
      if (now.phase !== phase) {
        if (phase !== undefined) bar.stop();
        phase = now.phase;
        startedMs = Date.now();
        bar.start(now.totalBytes, 0, payload(now, startedMs));
      }
      bar.update(now.doneBytes, payload(now, startedMs));
    },
    stop: () => {
      if (phase !== undefined) bar.stop();
    },
  };
}

function payload({ phase, doneBytes, totalBytes }: Progress, startedMs: number): Record<string, string> {
  const seconds = Math.max(0.1, (Date.now() - startedMs) / 1000);
  return {
    label: LABELS[phase],
    done: formatSize(Math.round(doneBytes)),
    all: formatSize(totalBytes),
    rate: formatSize(Math.round(doneBytes / seconds)),
  };
}
