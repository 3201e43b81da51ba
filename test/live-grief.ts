/** Live backups that come to grief in the freeze, and how long a file system then stands still. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type Lab, until } from './lab.js';

const CHILD = fileURLToPath(new URL('./live-frozen-child.js', import.meta.url));
export const TIMEOUT_SECONDS = 1;
/** For a machine that has other things to do. */
export const MARGIN_MS = 1_500;
/** A write that has not gone on by then never does by itself. */
const STUCK_MS = 15_000;

export interface Grief {
  child: ChildProcess;
  said: () => string;
  ended: Promise<void>;
}

/** What is backed up, and to where: several at one moment, with commas between. */
export interface Griever {
  lab: Lab;
  node: string;
  repository: string;
}

/** Starts a backup that comes to grief, and waits for the freeze. */
export async function grief({ lab, node, repository }: Griever, how: string): Promise<Grief> {
  const postThaw = `echo thawed >> ${lab.path('thawed')}`;
  const child = spawn(process.execPath, [CHILD, node, repository, String(TIMEOUT_SECONDS), how, postThaw], {
    env: lab.env,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let said = '';
  child.stdout.on('data', (bytes: Buffer) => {
    said += bytes.toString();
  });
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  lab.onEnd(async () => {
    child.kill('SIGKILL');
    await ended;
  });
  await until('the file system is frozen', () => said.includes('frozen'), 20_000);
  return { child, said: () => said, ended };
}

/** How long a write to the file system waits from now on. In a process of its own: on a frozen one nothing ends it. */
export async function writeMs(at: string): Promise<number> {
  const startedMs = performance.now();
  const child = spawn('sh', ['-c', 'echo probe > "$0"', join(at, 'probe')], { stdio: 'ignore' });
  const controller = new AbortController();
  const { signal } = controller;
  const late = pause(STUCK_MS, 'late', { signal }).catch(() => 'in time');
  const ended = await Promise.race([once(child, 'exit'), late]);
  controller.abort();
  child.unref();
  assert.notEqual(ended, 'late', `${at} is frozen, and nobody thaws it`);
  return performance.now() - startedMs;
}
