/**
 * The keeper's helpers: started, called, ended; and the last watch over what they freeze.
 *
 * A helper that hangs is left to the kernel: it dies when its call returns. One that dies while it holds a file system frozen
 * would leave it so for ever: another one thaws it.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { reportOutput } from './child-output.js';
import type { EventInput } from './events.js';
import { sameName } from './process-name.js';
import { ENGINE_PROTOCOL } from './protocol.js';
import { childChannel, Rpc } from './rpc.js';

/** How long the helpers of a dead engine may take to clean up behind them. */
const LEAVE_MS_MAX = 10_000;
const THAW_TIMEOUT_MS = 60_000;

interface Helper {
  child: ChildProcess;
  rpc: Rpc;
  /** Mount points that it was told to freeze, and whether it may have done so. */
  mountPoints: string[];
  isFreezing: boolean;
}

export class Helpers {
  readonly #report: (event: EventInput) => void;
  readonly #onEngineHang: () => void;
  readonly #running = new Map<number, Helper>();
  readonly #leaving = new Set<ChildProcess>();
  #waiting: Array<() => void> = [];
  #next = 1;

  constructor(report: (event: EventInput) => void, onEngineHang: () => void) {
    this.#report = report;
    this.#onEngineHang = onEngineHang;
  }

  /** Starts a helper that inherits the named descriptors as 4, 5, …; `protocol`: of the process that asks for it. */
  start(fds: number[], protocol: number): number {
    const program = fileURLToPath(new URL('./helper.js', import.meta.url));
    const child = fork(program, [String(protocol)], {
      stdio: ['ignore', 'pipe', 'pipe', 'ipc', ...fds],
      execArgv: process.execArgv,
      cwd: '/',
      ...sameName(),
    });
    reportOutput(child, 'helper', this.#report);
    const number = this.#next++;
    const rpc = new Rpc(childChannel(child), async (name) => {
      if (name !== 'engineHangs') throw new CowbirdError('ENOSYS', `A helper does not ask for ${name}`);
      this.#onEngineHang();
    });
    const helper: Helper = { child, rpc, mountPoints: [], isFreezing: false };
    this.#running.set(number, helper);
    child.on('error', (error) =>
      this.#report({ event: 'helper.error', level: 'warning', message: `A helper: ${messageOf(error)}` }),
    );
    child.once('exit', (code) => {
      this.#running.delete(number);
      this.#leaving.delete(child);
      if (this.#leaving.size === 0) for (const wake of this.#waiting.splice(0)) wake();
      if (helper.isFreezing && code !== 0) this.#thawFor(helper);
    });
    return number;
  }

  async call(number: number, call: string, params: unknown, timeoutMs: number): Promise<unknown> {
    const helper = this.#running.get(number);
    if (helper === undefined)
      throw new CowbirdError('EPIPE', `Helper ${number} has ended before ${call}`, { outcome: 'failed' });
    if (call === 'prepareFreeze') helper.mountPoints = mountPointsOf(params);
    if (call === 'freeze') helper.isFreezing = true;
    try {
      const result = await helper.rpc.call(call, params, timeoutMs);
      if (call === 'thaw') helper.isFreezing = false;
      return result;
    } catch (error) {
      if (error instanceof CowbirdError && error.code === 'ETIMEDOUT') helper.child.kill('SIGKILL');
      throw error;
    }
  }

  end(number: number): void {
    const helper = this.#running.get(number);
    if (helper?.child.connected === true) helper.child.disconnect();
  }

  /** The engine is dead: its helpers have nobody to tell. They thaw what they froze, remove what nobody keeps, and end. */
  dismissAll(): void {
    for (const { child } of this.#running.values()) {
      this.#leaving.add(child);
      if (child.connected) child.disconnect();
    }
  }

  /** Resolves when the dismissed ones have ended, or when that takes too long. */
  async gone(): Promise<void> {
    if (this.#leaving.size === 0) return;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, LEAVE_MS_MAX);
    });
    await Promise.race([late, new Promise<void>((resolve) => this.#waiting.push(resolve))]);
    clearTimeout(timer);
  }

  killAll(): void {
    for (const { child } of this.#running.values()) child.kill('SIGKILL');
  }

  #thawFor(dead: Helper): void {
    const { mountPoints } = dead;
    const number = this.start([], ENGINE_PROTOCOL);
    this.call(number, 'thawAfterDeath', { mountPoints }, THAW_TIMEOUT_MS)
      .catch((error: unknown) =>
        this.#report({
          event: 'thaw.failed',
          level: 'error',
          message: `${mountPoints.join(', ')} may be frozen (\`fsfreeze -u\` thaws): ${messageOf(error)}`,
        }),
      )
      .finally(() => this.end(number));
  }
}

function mountPointsOf(params: unknown): string[] {
  const isObject = typeof params === 'object' && params !== null && 'mountPoints' in params;
  if (!isObject || !Array.isArray(params.mountPoints)) return [];
  return params.mountPoints.filter((point): point is string => typeof point === 'string');
}
