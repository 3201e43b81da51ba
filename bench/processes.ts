/**
 * The programs that the bench runs. Each is in a process group of its own, so that the terminal's Ctrl-C reaches only the
 * bench, and is noted in a folder by pid and start time (together unique), so that the run after a `kill -9` can end what
 * that one left.
 */
import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';

const ADMIN_PATHS = '/usr/local/sbin:/usr/sbin:/sbin';
const END_WAIT_MS = 10_000;
const POLL_MS = 20;
export const OUTPUT_BYTES_MAX = 64 * 1_048_576;

export class Interrupted extends Error {}

/** It cannot be measured here, and the message says what to do. */
export class Refused extends Error {}

/** A load works on a mounted volume; a server is under one, so it ends after the volume is unmounted. */
export type ProcessKind = 'load' | 'server';

export interface RunOptions {
  timeoutMs?: number;
  env?: NodeJS.ProcessEnv;
  /** Exit codes that are no failure. @default [0] */
  accept?: number[];
}

export interface Ran {
  stdout: string;
  stderr: string;
  elapsedMs: number;
}

export const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until something is so; each wait has an end. */
export async function until(what: string, isSo: () => boolean | Promise<boolean>, timeoutMs = 10_000): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!(await isSo())) {
    if (Date.now() > deadline) throw new Error(`Not within ${timeoutMs} ms: ${what}`);
    await pause(POLL_MS);
  }
}

export function environment(more: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  return { ...process.env, PATH: `${process.env['PATH'] ?? '/usr/bin:/bin'}:${ADMIN_PATHS}`, LC_ALL: 'C', ...more };
}

export class Processes {
  readonly #folder: string;
  readonly #cwd: string;
  readonly #signal: AbortSignal;
  #started = 0;

  /** `folder` is where the notes go; `signal` ends what runs when the bench is interrupted. */
  constructor(folder: string, cwd: string, signal: AbortSignal) {
    this.#folder = folder;
    this.#cwd = cwd;
    this.#signal = signal;
    mkdirSync(folder, { recursive: true });
  }

  throwIfInterrupted(): void {
    if (this.#signal.aborted) throw new Interrupted('interrupted');
  }

  /** Runs a program to its end, and returns what it wrote. @throws {Interrupted} or an Error with its stderr */
  async run(program: string, args: readonly string[], options: RunOptions = {}): Promise<Ran> {
    this.throwIfInterrupted();
    const startedAt = performance.now();
    const child = this.#spawn('load', program, args, options.env, ['ignore', 'pipe', 'pipe']);
    const timeoutMs = options.timeoutMs ?? 60_000;
    let timedOut = false;
    const end = (): void => void child.kill('SIGKILL');
    const timer = setTimeout(() => {
      timedOut = true;
      end();
    }, timeoutMs);
    this.#signal.addEventListener('abort', end);
    try {
      const [stdout, stderr, code] = await Promise.all([collect(child.stdout), collect(child.stderr), exitOf(child)]);
      const elapsedMs = performance.now() - startedAt;
      this.throwIfInterrupted();
      if (timedOut) throw new Error(`${program} ${args.join(' ')} did not end within ${timeoutMs} ms`);
      if (!(options.accept ?? [0]).includes(code))
        throw new Error(`${program} ${args.join(' ')} ended with ${code}: ${stderr.trim().slice(0, 2_000)}`);
      return { stdout, stderr, elapsedMs };
    } finally {
      clearTimeout(timer);
      this.#signal.removeEventListener('abort', end);
      this.#forget(child.pid);
    }
  }

  /** Starts a program that goes on; the caller ends it, or `endLeftover` does. */
  start(kind: ProcessKind, program: string, args: readonly string[], env?: NodeJS.ProcessEnv): Started {
    this.throwIfInterrupted();
    // A file, not a pipe: the bench can end, whatever it could not end.
    const errors = join(this.#folder, `errors-${++this.#started}`);
    const fd = openSync(errors, 'w');
    const child = this.#spawn(kind, program, args, env, ['ignore', 'ignore', fd]);
    closeSync(fd);
    child.unref();
    const ended = exitOf(child).finally(() => this.#forget(child.pid));
    // Who waits for the end hears of it; an unexpected end shows in what it was to serve.
    ended.catch(() => undefined);
    return {
      pid: child.pid ?? 0,
      stderr: () => readFileSync(errors, 'utf8'),
      hasEnded: () => child.exitCode !== null || child.signalCode !== null,
      end: async (signal) => {
        if (child.exitCode === null && child.signalCode === null) child.kill(signal);
        await withLimit(ended, `${program} ends after ${signal}`);
      },
    };
  }

  /** Ends every noted process of a kind that still runs, of this run or of one before. */
  async endLeftover(kind: ProcessKind): Promise<void> {
    for (const name of readdirSync(this.#folder).filter((entry) => entry.endsWith(`.${kind}`))) {
      const [pid = ''] = name.split('.');
      const [started, program] = readFileSync(join(this.#folder, name), 'utf8').split(' ');
      const isSame = (): boolean => startTimeOf(Number(pid)) === started;
      if (isSame()) {
        process.kill(Number(pid), 'SIGKILL');
        await until(`${program} (${pid}) ends`, () => !isSame(), END_WAIT_MS);
      }
      rmSync(join(this.#folder, name), { force: true });
    }
  }

  #spawn(
    kind: ProcessKind,
    program: string,
    args: readonly string[],
    env: NodeJS.ProcessEnv = {},
    stdio: StdioOptions,
  ): ChildProcess {
    const child = spawn(program, args, { cwd: this.#cwd, env: environment(env), detached: true, stdio });
    const started = child.pid === undefined ? undefined : startTimeOf(child.pid);
    if (started !== undefined && existsSync(this.#folder))
      writeFileSync(join(this.#folder, `${child.pid}.${kind}`), `${started} ${basename(program)}`);
    return child;
  }

  #forget(pid: number | undefined): void {
    for (const kind of ['load', 'server']) rmSync(join(this.#folder, `${pid}.${kind}`), { force: true });
  }
}

export interface Started {
  pid: number;
  stderr(): string;
  hasEnded(): boolean;
  end(signal: NodeJS.Signals): Promise<void>;
}

function exitOf(child: ChildProcess): Promise<number> {
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code) => resolve(code ?? -1));
  });
}

async function collect(stream: NodeJS.ReadableStream | null): Promise<string> {
  if (stream === null) return '';
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of stream) {
    const piece = Buffer.from(chunk);
    bytes += piece.byteLength;
    // The rest is read all the same, so that the program does not wait for us.
    if (bytes <= OUTPUT_BYTES_MAX) chunks.push(piece);
  }
  return Buffer.concat(chunks).toString('utf8');
}

async function withLimit<T>(promise: Promise<T>, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`Not within ${END_WAIT_MS} ms: ${what}`)), END_WAIT_MS);
  });
  try {
    return await Promise.race([promise, limit]);
  } finally {
    clearTimeout(timer);
  }
}

/** Fields of /proc/PID/stat from the state on, or undefined when there is no such process. */
export function processStat(pid: number): string[] | undefined {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)?.split(' ');
  } catch (error) {
    if (error instanceof Error && 'code' in error) return undefined;
    throw error;
  }
}

/** With the pid this names one process for good; undefined for a process that has ended. */
function startTimeOf(pid: number): string | undefined {
  const [state, ...fields] = processStat(pid) ?? [];
  return state === undefined || state === 'Z' ? undefined : fields[18];
}
