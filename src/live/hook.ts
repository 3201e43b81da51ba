/** A command of the administrator's around a freeze, with a time limit: `sh -c`, in `/`, in a process group of its own. */
import { spawn } from 'node:child_process';
import { messageOf } from '../sys/errors.js';
import type { HookOrder } from './freeze-helper.js';

/** How much of what a hook prints is kept: the end says why it failed. */
const OUTPUT_CHARS_MAX = 2_000;
/** For output that comes after the end. What the hook has left running may keep its streams open for ever. */
const DRAIN_MS = 200;

export interface HookEnd {
  ok: boolean;
  /** In words: "ended with exit code 1". */
  end: string;
  output: string;
}

/** Resolves however it ends. */
export function runHook({ command, timeoutMs, environment }: HookOrder): Promise<HookEnd> {
  const child = spawn('sh', ['-c', command], {
    cwd: '/',
    detached: true,
    env: { ...process.env, ...environment },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (text: Buffer) => {
      output = (output + text.toString()).slice(-OUTPUT_CHARS_MAX);
    });
  return new Promise((resolve) => {
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      if (child.pid !== undefined) endGroup(child.pid);
    }, timeoutMs);
    const ended = (end: string, ok: boolean): void => {
      clearTimeout(timer);
      resolve({ ok, end, output: output.trim() });
      for (const stream of [child.stdout, child.stderr]) stream.destroy();
    };
    child.once('error', (error) => ended(`could not be started: ${messageOf(error)}`, false));
    child.once('exit', (code, signal) => {
      const how = signal === null ? `ended with exit code ${code}` : `was ended by ${signal}`;
      const end = isLate ? `did not end within ${timeoutMs / 1000} s, and was killed` : how;
      const late = setTimeout(() => ended(end, code === 0), DRAIN_MS);
      child.once('close', () => {
        clearTimeout(late);
        ended(end, code === 0);
      });
    });
  });
}

function endGroup(pid: number): void {
  try {
    process.kill(-pid, 'SIGKILL');
  } catch (error) {
    // It ended between the look and the kill.
    if (!(error instanceof Error && 'code' in error && error.code === 'ESRCH')) throw error;
  }
}
