/**
 * The helper's part of a hook: a command of the administrator's, run around a freeze with a time limit.
 *
 * It has a process group of its own, so that all of it can be ended: when its time is over, and when the parent goes.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { messageOf } from '../sys/errors.js';
import type { HelperCalls } from './helper-calls.js';

/** How much of what a hook prints is kept: the end says why it failed. */
const OUTPUT_CHARS_MAX = 2_000;
/** For output that comes after the end. What the hook has left running may keep its streams open for ever. */
const DRAIN_MS = 200;

let running: ChildProcess | undefined;

/** Runs a command by `sh -c` as whoever runs the daemon, in `/`. Resolves however it ends. */
export function runHook(params: HelperCalls['runHook']['params']): Promise<HelperCalls['runHook']['result']> {
  const startedAt = performance.now();
  const { COWBIRD_FAIL_POINTS: _, ...inherited } = process.env;
  const child = spawn('sh', ['-c', params.command], {
    cwd: '/',
    detached: true,
    env: { ...inherited, ...params.environment },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  running = child;
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (text: Buffer) => {
      output = (output + text.toString()).slice(-OUTPUT_CHARS_MAX);
    });
  return new Promise((resolve) => {
    let end = '';
    const timer = setTimeout(() => {
      end = `did not end within ${params.timeoutSeconds} s, and was killed`;
      endHook();
    }, params.timeoutSeconds * 1000);
    const ended = (how: string, ok: boolean): void => {
      clearTimeout(timer);
      running = undefined;
      const durationMs = Math.round(performance.now() - startedAt);
      resolve({ ok: ok && end === '', end: end === '' ? how : end, output: output.trim(), durationMs });
      for (const stream of [child.stdout, child.stderr]) stream.destroy();
    };
    child.once('error', (error) => ended(`could not be started: ${messageOf(error)}`, false));
    child.once('exit', (code, signal) => {
      const how = signal === null ? `ended with exit code ${code}` : `was ended by ${signal}`;
      const late = setTimeout(() => ended(how, code === 0), DRAIN_MS);
      child.once('close', () => {
        clearTimeout(late);
        ended(how, code === 0);
      });
    });
  });
}

/** Ends a hook that runs, with all that it has started. */
export function endHook(): void {
  if (running?.pid === undefined) return;
  try {
    process.kill(-running.pid, 'SIGKILL');
  } catch (error) {
    // It ended between the look and the kill.
    if (!(error instanceof Error && 'code' in error && error.code === 'ESRCH')) throw error;
  }
}
