/**
 * The keeper's helpers: started, called, ended; and the last watch over what they freeze.
 *
 * A helper that hangs is left to the kernel: it dies when its call returns. One that dies while it holds a file system frozen
 * would leave it so for ever: another one thaws it.
 *
 * Starting a process is most of what a short operation takes. So one whose session has ended, every call of which was answered
 * without an error, gives up all that it holds and rests for a few seconds: whoever wants a helper next goes on with it.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { reportOutput } from './child-output.js';
import type { EventInput } from './events.js';
import { sameName } from './process-name.js';
import { ENGINE_PROTOCOL } from './protocol.js';
import { childChannel, Rpc } from './rpc.js';
import { REST_CALL } from './services.js';

/** How long the helpers of a dead engine may take to clean up behind them. */
const LEAVE_MS_MAX = 10_000;
const THAW_TIMEOUT_MS = 60_000;
/** How long one rests before it ends. */
const REST_MS = 5_000;
const REST_TIMEOUT_MS = 1_000;

interface Helper {
  readonly child: ChildProcess;
  readonly rpc: Rpc;
  /** Of whoever asks for it. */
  readonly protocol: number;
  /** A call failed: what that has left is not known. */
  isSpent: boolean;
  /** Mount points that it was told to freeze, and whether it may have done so. */
  mountPoints: string[];
  isFreezing: boolean;
}

export class Helpers {
  readonly #report: (event: EventInput) => void;
  readonly #onEngineHang: () => void;
  readonly #beforeProcess: () => void;
  readonly #running = new Map<number, Helper>();
  readonly #leaving = new Set<ChildProcess>();
  #resting: { number: number; timer: NodeJS.Timeout } | undefined;
  #waiting: Array<() => void> = [];
  #next = 1;

  constructor(report: (event: EventInput) => void, onEngineHang: () => void, beforeProcess: () => void) {
    this.#report = report;
    this.#onEngineHang = onEngineHang;
    this.#beforeProcess = beforeProcess;
  }

  /** Starts a helper, or takes the one that rests; `protocol`: of the process that asks for it. */
  start(protocol: number): number {
    const rested = this.#endRest();
    if (rested !== undefined) {
      const helper = this.#running.get(rested);
      if (helper?.protocol === protocol && helper.child.connected) return rested;
      this.#dismiss(rested);
    }
    const program = fileURLToPath(new URL('./helper.js', import.meta.url));
    this.#beforeProcess();
    const child = fork(program, [String(protocol)], {
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
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
    const helper: Helper = { child, rpc, protocol, isSpent: false, mountPoints: [], isFreezing: false };
    this.#running.set(number, helper);
    child.on('error', (error) =>
      this.#report({ event: 'helper.error', level: 'warning', message: `A helper: ${messageOf(error)}` }),
    );
    child.once('exit', (code) => {
      this.#running.delete(number);
      if (this.#resting?.number === number) this.#endRest();
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
      helper.isSpent = true;
      if (error instanceof CowbirdError && error.code === 'ETIMEDOUT') helper.child.kill('SIGKILL');
      throw error;
    }
  }

  /** The end of a session: the helper rests, or ends. */
  async end(number: number): Promise<void> {
    const helper = this.#running.get(number);
    if (helper === undefined) return;
    const canRest = !helper.isSpent && (await this.#rests(helper));
    if (!canRest || this.#resting !== undefined || this.#leaving.has(helper.child)) {
      this.#dismiss(number);
      return;
    }
    const timer = setTimeout(() => {
      this.#endRest();
      this.#dismiss(number);
    }, REST_MS);
    this.#resting = { number, timer };
  }

  async #rests({ rpc }: Helper): Promise<boolean> {
    return rpc.call(REST_CALL, {}, REST_TIMEOUT_MS).then(
      () => true,
      () => false,
    );
  }

  /** The number of the one that rests: it is somebody's from now on. */
  #endRest(): number | undefined {
    const resting = this.#resting;
    this.#resting = undefined;
    clearTimeout(resting?.timer);
    return resting?.number;
  }

  #dismiss(number: number): void {
    const helper = this.#running.get(number);
    if (helper?.child.connected === true) helper.child.disconnect();
  }

  /** The engine is dead: its helpers have nobody to tell. They thaw what they froze, remove what nobody keeps, and end. */
  dismissAll(): void {
    this.#endRest();
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
    this.#endRest();
    for (const { child } of this.#running.values()) child.kill('SIGKILL');
  }

  #thawFor(dead: Helper): void {
    const { mountPoints } = dead;
    const number = this.start(ENGINE_PROTOCOL);
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
