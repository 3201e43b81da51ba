/**
 * Starting the daemon: a process with a session of its own, `/` as working directory and none of the caller's descriptors,
 * so that `$(cowbird attach …)` returns at once and the terminal's Ctrl-C does not reach it.
 */
import { execFile, spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CowbirdError } from '../sys/errors.js';
import { closeOnExecFrom } from '../sys/libc.js';
import { type Paths, pathsFrom } from './paths.js';
import { API_MAJOR } from './schema.js';
import { otherMajor, strangeAnswer } from './skew.js';

/** Exit code of a daemon that finds another one in its run directory. */
export const EXIT_RUNS_ALREADY = 75;
const START_TIMEOUT_MS = 60_000;
const RETRY_MS = 20;

/**
 * Starts a daemon for these directories and resolves when it answers. Two starts at once end with one daemon.
 *
 * @throws {CowbirdError} EPROTO at once where a daemon of another major runs: waiting would not make it ours.
 */
export async function launchDaemon(paths: Paths, env: NodeJS.ProcessEnv): Promise<void> {
  if (process.getuid?.() !== 0) {
    throw new CowbirdError('EPERM', 'Cowbird needs root: it opens disks and binds loop devices');
  }
  if (await answers(paths)) return;
  if (hasUnit(paths)) return startUnit(paths);
  mkdirSync(paths.runDir, { recursive: true, mode: 0o755 });
  // Whatever the caller was started with must not live on in the daemon: a pipe held open would keep its reader waiting.
  closeOnExecFrom(3);
  const failure = `${paths.runDir}/start-error.${process.pid}`;
  const log = openSync(paths.log, 'a', 0o640);
  const program = fileURLToPath(new URL('./keeper-main.js', import.meta.url));
  const child = spawn(process.execPath, [program], {
    cwd: '/',
    detached: true,
    // The sign of storage that must outlive the last unmounting at shutdown; see `sameName` in engine/keeper.ts.
    argv0: '@cowbird',
    stdio: ['ignore', log, log],
    env: { ...env, COWBIRD_RUN_DIR: paths.runDir, COWBIRD_STATE_DIR: paths.stateDir, COWBIRD_START_ERROR: failure },
  });
  closeSync(log);
  let exitCode: number | null = null;
  child.once('exit', (code) => {
    exitCode = code ?? 1;
  });
  child.unref();
  await answering(paths, paths.log, () => {
    // Another start was faster: its daemon answers soon.
    if (exitCode !== null && exitCode !== 0 && exitCode !== EXIT_RUNS_ALREADY) throw startFailed(paths, failure);
  });
}

/** Resolves when the daemon answers; `check` throws when it never will. `log`: where to look otherwise. */
async function answering(paths: Paths, log: string, check: () => void): Promise<void> {
  const deadline = Date.now() + START_TIMEOUT_MS;
  while (!(await answers(paths))) {
    check();
    if (Date.now() > deadline) {
      throw new CowbirdError('ETIMEDOUT', `The daemon did not answer within ${START_TIMEOUT_MS} ms: see ${log}`, {
        outcome: 'failed',
      });
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

export const UNIT = 'cowbird.service';
const UNIT_FOLDERS = ['etc/systemd/system', 'run/systemd/system', 'usr/lib/systemd/system', 'lib/systemd/system'];

/**
 * Whether systemd runs this machine and has a unit for the daemon. One that a command started would lie in the session of
 * whoever called it, and be killed with that before the last file system is unmounted.
 */
export function hasUnit(paths: Pick<Paths, 'runDir' | 'stateDir'>, root = '/'): boolean {
  const { runDir, stateDir } = pathsFrom({});
  return (
    paths.runDir === runDir &&
    paths.stateDir === stateDir &&
    existsSync(join(root, 'run/systemd/system')) &&
    UNIT_FOLDERS.some((folder) => existsSync(join(root, folder, UNIT)))
  );
}

/** Has systemd start the daemon; resolves when it answers. */
export async function startUnit(paths: Paths, systemctl = 'systemctl'): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    execFile(systemctl, ['start', '--no-block', UNIT], (error, _stdout, stderr) => {
      const why = stderr.trim() || (error?.message ?? '');
      if (error === null) resolve();
      else reject(new CowbirdError('EIO', `systemd did not start ${UNIT}: ${why}`, { outcome: 'failed' }));
    });
  });
  await answering(paths, `\`journalctl -u ${UNIT}\``, () => undefined);
}

const END_TIMEOUT_MS = 15_000;

/** Resolves when a daemon that was told to stop has gone, so that the next one can start. */
export async function ended(pid: number): Promise<void> {
  const deadline = Date.now() + END_TIMEOUT_MS;
  while (existsSync(`/proc/${pid}`) && !isZombie(pid)) {
    if (Date.now() > deadline) {
      throw new CowbirdError('ETIMEDOUT', `The daemon (pid ${pid}) did not end within ${END_TIMEOUT_MS} ms`, {
        outcome: 'failed',
      });
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

/** Ended, but its parent has not looked yet. */
function isZombie(pid: number): boolean {
  try {
    return /^State:\s*Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch (error) {
    if (error instanceof Error && 'code' in error) return true;
    throw error;
  }
}

function startFailed(paths: Paths, failure: string): CowbirdError {
  let reason = `see ${paths.log}`;
  try {
    reason = readFileSync(failure, 'utf8').trim();
    rmSync(failure);
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) throw error;
  }
  return new CowbirdError('EIO', `The daemon did not start: ${reason}`, { outcome: 'failed' });
}

function answers(paths: Paths): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const req = request({ socketPath: paths.socket, path: `/v${API_MAJOR}/ping` }, (response) => {
      response.resume();
      if (response.statusCode === 200 && otherMajor(paths, response) === undefined) resolve(true);
      else reject(otherMajor(paths, response) ?? strangeAnswer(paths, 'ping'));
    });
    req.on('error', () => resolve(false));
    req.end();
  });
}
