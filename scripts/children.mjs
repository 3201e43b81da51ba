/**
 * The programs that set-up runs, one at a time, so that a set-up may end at any point:
 * - each is in a process group of its own: Ctrl-C reaches us, and we pass it on, once, or hold it back where stopping half-way
 *   would leave a mess (dpkg);
 * - each writes down who it is before it starts: when `kill -9` took the set-up and left its child, the next one sees to that.
 */
import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { constants } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..');
export const STATE = join(ROOT, '.cowbird-setup');
/** Where the administrator's programs are; not on the path of every root shell (`su`). */
export const ADMIN_PATHS = ['/usr/local/sbin', '/usr/sbin', '/sbin'];

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'];
const CHILD = join(STATE, 'child');
const POLL_MS = 100;
/** Under `npm run`, one Ctrl-C comes twice: from the terminal and from npm. Only a later one is a second one. */
export const SECOND_SIGNAL_MS = 1000;
/** How long a program may take to stop (npm waits for what it fetches); nothing that it leaves is used. */
const STOP_MS = 1500;
/** pid and start time (together unique), and whether it may be stopped; then the program itself takes the place of the shell. */
const NOTE_AND_EXEC =
  'echo "$$ $(cut -d" " -f22 /proc/$$/stat) $1" >"$0.new" && mv "$0.new" "$0" && shift && exec "$@"';

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export function say(message) {
  process.stderr.write(`setup: ${message}\n`);
}

/** The environment with the administrator's programs on the path. */
export function environment(more = {}) {
  return { ...process.env, PATH: [process.env.PATH ?? '/usr/bin:/bin', ...ADMIN_PATHS].join(':'), ...more };
}

/** Set-up was told to stop; `exitCode` is what a shell expects then. */
export class Interrupted extends Error {
  constructor(signal) {
    super(`interrupted by ${signal}; run it again to go on`);
    this.exitCode = 128 + constants.signals[signal];
  }
}

export class ProgramFailed extends Error {}

/** Runs programs, and stops them when this process is told to stop. One for each set-up. */
export class Children {
  #current;
  #signal;
  #signalledAt;
  #onSignal = (signal) => this.#stop(signal);

  constructor() {
    for (const signal of SIGNALS) process.on(signal, this.#onSignal);
  }

  /** From here on, signals mean what they meant before. */
  close() {
    for (const signal of SIGNALS) process.off(signal, this.#onSignal);
  }

  throwIfInterrupted() {
    if (this.#signal !== undefined) throw new Interrupted(this.#signal);
  }

  /** Runs a program to its end. `whole`: never stopped half-way, whoever asks. */
  async run(command, args, { env = environment(), stdout = 2, whole = false } = {}) {
    this.throwIfInterrupted();
    mkdirSync(STATE, { recursive: true });
    const shellArgs = ['-c', NOTE_AND_EXEC, CHILD, whole ? 'whole' : 'stoppable', command, ...args];
    const child = spawn('sh', shellArgs, { cwd: ROOT, env, detached: true, stdio: ['ignore', stdout, 'inherit'] });
    this.#current = { pid: child.pid, whole };
    const code = await new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', (exitCode, signal) => resolve(exitCode ?? signal));
    });
    this.#current = undefined;
    rmSync(CHILD, { force: true });
    // Interrupted, but whole: it was not stopped, so its own failure is what counts.
    if (!whole || code === 0) this.throwIfInterrupted();
    if (code !== 0) throw new ProgramFailed(`${command} ${args.join(' ')} ended with ${code}`);
  }

  /** Ends, or waits for, what a killed set-up left running. Call it with the lock held. */
  async endLeftover() {
    const [pid, started, kind] = (readIfThere(CHILD) ?? '').trim().split(' ');
    const isLeft = () => pid !== '' && startTime(pid) === started && started !== undefined;
    if (isLeft()) {
      say(`a set-up that was killed left process ${pid}; ${kind === 'whole' ? 'waiting for' : 'stopping'} it`);
      if (kind !== 'whole') killGroup(Number(pid), 'SIGKILL');
    }
    for (; isLeft(); await pause(POLL_MS)) this.throwIfInterrupted();
    rmSync(CHILD, { force: true });
  }

  #stop(signal) {
    const isFirst = this.#signal === undefined;
    this.#signal ??= signal;
    this.#signalledAt ??= Date.now();
    if (this.#current === undefined) return;
    if (this.#current.whole) {
      if (isFirst) say('stopping when these packages are in place');
    } else if (isFirst) {
      const { pid } = this.#current;
      killGroup(pid, signal);
      setTimeout(() => this.#current?.pid === pid && killGroup(pid, 'SIGKILL'), STOP_MS).unref();
    } else if (Date.now() - this.#signalledAt > SECOND_SIGNAL_MS) killGroup(this.#current.pid, 'SIGKILL');
  }
}

/** Whether there was such a process to get the signal; 0 only asks. */
export function sendSignal(pid, signal) {
  try {
    process.kill(pid, signal);
    return true;
  } catch (error) {
    if (error.code === 'ESRCH') return false;
    throw error;
  }
}

export function killGroup(pid, signal) {
  return sendSignal(-pid, signal);
}

export function readIfThere(path) {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (error.code === 'ENOENT' || error.code === 'ESRCH') return undefined;
    throw error;
  }
}

/** Start time of a live process in clock ticks: with the pid it names one process for good. */
function startTime(pid) {
  const [state, ...fields] = readIfThere(`/proc/${pid}/stat`)?.split(') ').at(-1)?.split(' ') ?? [];
  return state === undefined || state === 'Z' ? undefined : fields[18];
}
