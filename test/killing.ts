/** Killing the engine at random moments and at named points, and what a load above it saw. */
import { spawn } from 'node:child_process';
import { existsSync, renameSync, writeFileSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import * as cowbird from '../src/index.js';
import { type Lab, MIB, until } from './lab.js';

/** Environment of a daemon whose engine can be told where to end; see `src/engine/fail-points.ts`. */
export const WITH_FAIL_POINTS = { COWBIRD_FAIL_POINTS: '1' } as const;

const ARM_MS_MAX = 10_000;
const RESTART_MS_MAX = 15_000;

export async function restarts(lab: Lab): Promise<number> {
  return (await cowbird.daemonStatus(lab.client))?.engineRestarts ?? 0;
}

/** The engine will end, or its control thread hang, when this point has been passed so many times more. Resolves when it knows. */
export async function armFailPoint(lab: Lab, name: string, passes = 0, action = 'kill'): Promise<void> {
  const path = lab.path('run/fail-point');
  writeFileSync(`${path}.new`, `${name} ${passes} ${action}`);
  renameSync(`${path}.new`, path);
  await until(`the fail point ${name} is armed`, () => !existsSync(path), ARM_MS_MAX);
}

/** Resolves when the engine was started again more often than `before`. */
export async function untilRestarted(lab: Lab, before: number, what: string): Promise<void> {
  await until(`the engine is started again after ${what}`, async () => (await restarts(lab)) > before, RESTART_MS_MAX);
}

/** Resolves when an engine answers. */
export async function untilServed(lab: Lab): Promise<void> {
  const answers = async (): Promise<boolean> => (await cowbird.daemonStatus(lab.client))?.engineAnswers === true;
  await until('an engine answers', answers, RESTART_MS_MAX);
}

/** Kills the engine that runs now, if one does. */
export async function killEngine(lab: Lab): Promise<boolean> {
  const status = await cowbird.daemonStatus(lab.client);
  if (status?.enginePid == null) return false;
  try {
    return process.kill(status.enginePid, 'SIGKILL');
  } catch (error) {
    // It ended between the look and the kill.
    if (error instanceof Error && 'code' in error && error.code === 'ESRCH') return false;
    throw error;
  }
}

export interface VerifiedLoad {
  /** Rejects when any I/O failed or any checksum was wrong. */
  finished: Promise<void>;
  /** Ends writing; the rest is read back and verified. */
  stop(): Promise<void>;
}

/** fio writes blocks with checksums until it is stopped, reading them back all the while. */
export function verifiedLoad(
  lab: Lab,
  options: { directory: string; blockBytes: number; depth: number; mib: number; rateMib?: number },
): VerifiedLoad {
  const args = [
    '--name=load',
    '--thread',
    `--directory=${options.directory}`,
    '--rw=randwrite',
    `--bs=${options.blockBytes}`,
    '--ioengine=libaio',
    '--direct=1',
    `--iodepth=${options.depth}`,
    '--verify=crc32c',
    '--verify_backlog=64',
    '--verify_fatal=1',
    '--verify_state_save=0',
    `--size=${options.mib * MIB}`,
    '--loops=1000000',
    ...(options.rateMib === undefined ? [] : [`--rate=${options.rateMib}m`]),
  ];
  const child = spawn('fio', args, { cwd: lab.folder, stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (text: Buffer) => {
      output += text.toString();
    });
  let isStopped = false;
  const finished = new Promise<void>((resolve, reject) => {
    child.once('exit', (code, signal) => {
      const bad = /verify:|error=|Input\/output|io_u error/.test(output);
      if ((code === 0 || isStopped) && !bad) resolve();
      else reject(new Error(`fio ended with ${signal ?? code}: ${output.slice(-2000)}`));
    });
  });
  finished.catch(() => undefined);
  const stop = async (): Promise<void> => {
    isStopped = true;
    // On SIGINT fio finishes what is in flight and reports.
    if (child.exitCode === null && child.pid !== undefined) process.kill(-child.pid, 'SIGINT');
    await Promise.race([
      finished,
      pause(30_000, undefined, { ref: false }).then(() => {
        if (child.exitCode === null && child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
        throw new Error('fio did not end within 30 s');
      }),
    ]);
  };
  lab.onEnd(stop);
  return { finished, stop };
}
