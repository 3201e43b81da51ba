/**
 * A command of the administrator's around a freeze, with a time limit: `sh -c`, in `/`, as whoever runs the caller.
 *
 * It has a process group of its own, so that all of it can be ended: when its time is over, and when its caller's caller goes.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { messageOf } from './errors.js';

/** How much of what a hook prints is kept: the end says why it failed. */
const OUTPUT_CHARS_MAX = 2_000;
/** For output that comes after the end. What the hook has left running may keep its streams open for ever. */
const DRAIN_MS = 200;

export interface HookOrder {
  command: string;
  timeoutMs: number;
  /** Beside what the caller's has. */
  environment: Record<string, string>;
}

export interface HookEnd {
  ok: boolean;
  /** In words: "ended with exit code 1". */
  end: string;
  output: string;
  durationMs: number;
}

let running: ChildProcess | undefined;

/** Resolves however it ends. One at a time. */
export function runHook({ command, timeoutMs, environment }: HookOrder): Promise<HookEnd> {
  const startedAt = performance.now();
  const { COWBIRD_FAIL_POINTS: _, ...inherited } = process.env;
  const child = spawn('sh', ['-c', command], {
    cwd: '/',
    detached: true,
    env: { ...inherited, ...environment },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  running = child;
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (text: Buffer) => {
      output = (output + text.toString()).slice(-OUTPUT_CHARS_MAX);
    });
  return new Promise((resolve) => {
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      endHook();
    }, timeoutMs);
    const ended = (end: string, ok: boolean): void => {
      clearTimeout(timer);
      running = undefined;
      resolve({ ok, end, output: output.trim(), durationMs: Math.round(performance.now() - startedAt) });
      for (const stream of [child.stdout, child.stderr]) stream.destroy();
    };
    child.once('error', (error) => ended(`could not be started: ${messageOf(error)}`, false));
    child.once('exit', (code, signal) => {
      const how = signal === null ? `ended with exit code ${code}` : `was ended by ${signal}`;
      const end = isLate ? `did not end within ${timeoutMs / 1000} s, and was killed` : how;
      const late = setTimeout(() => ended(end, code === 0 && !isLate), DRAIN_MS);
      child.once('close', () => {
        clearTimeout(late);
        ended(end, code === 0 && !isLate);
      });
    });
  });
}

/** Ends the hook that runs, with all that it has started. */
export function endHook(): void {
  if (running?.pid === undefined) return;
  try {
    process.kill(-running.pid, 'SIGKILL');
  } catch (error) {
    // It ended between the look and the kill.
    if (!(error instanceof Error && 'code' in error && error.code === 'ESRCH')) throw error;
  }
}
