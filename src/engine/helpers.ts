/**
 * The keeper's helpers: started, called, ended; and the last watch over what they freeze.
 *
 * A helper that hangs is left to the kernel: it dies when its call returns. One that hangs or dies while it holds a file system
 * frozen would leave it so: others thaw in its place (`helper-thaws.ts`).
 *
 * Starting a process is most of what a short operation takes. So one whose session has ended, every call of which was answered
 * without an error, gives up all that it holds and rests for a few seconds: whoever wants a helper next goes on with it.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import * as v from 'valibot';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { whenEnded } from './child-end.js';
import { reportOutput } from './child-output.js';
import type { EventInput } from './events.js';
import { FREEZE_STEPS } from './helper-calls.js';
import { Freeze, type Thawing } from './helper-thaws.js';
import { sameName } from './process-name.js';
import { ENGINE_PROTOCOL } from './protocol.js';
import { childChannel, Rpc } from './rpc.js';
import { REST_CALL } from './services.js';

/** How long the helpers of a dead engine may take to clean up behind them. */
const LEAVE_MS_MAX = 10_000;
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
  readonly freeze: Freeze;
  /** At work for the keeper itself, not for an engine. */
  isKeepers: boolean;
}

const Step = v.object({ mountPoint: v.string(), step: v.picklist(FREEZE_STEPS) });
const Thawed = v.object({ thawed: v.number() });

export class Helpers {
  readonly #report: (event: EventInput) => void;
  readonly #onEngineHang: () => void;
  readonly #beforeProcess: () => void;
  readonly #running = new Map<number, Helper>();
  readonly #leaving = new Set<ChildProcess>();
  #resting: { number: number; timer: NodeJS.Timeout } | undefined;
  readonly #startProcess: (protocol: number) => ChildProcess;
  #waiting: Array<() => void> = [];
  #next = 1;
  #isOver = false;

  constructor(
    report: (event: EventInput) => void,
    onEngineHang: () => void,
    beforeProcess: () => void,
    startProcess = startHelper,
  ) {
    this.#report = report;
    this.#onEngineHang = onEngineHang;
    this.#beforeProcess = beforeProcess;
    this.#startProcess = startProcess;
  }

  /** Starts a helper, or takes the one that rests; `protocol`: of the process that asks for it. */
  start(protocol: number): number {
    const rested = this.#endRest();
    if (rested !== undefined) {
      const helper = this.#running.get(rested);
      if (helper?.protocol === protocol && helper.child.connected) return rested;
      this.#dismiss(rested);
    }
    this.#beforeProcess();
    const child = this.#startProcess(protocol);
    reportOutput(child, 'helper', this.#report);
    const number = this.#next++;
    const rpc = new Rpc(childChannel(child), async (name, params) => this.#asked(helper, name, params));
    const helper: Helper = { child, rpc, protocol, isSpent: false, freeze: new Freeze(), isKeepers: false };
    this.#running.set(number, helper);
    child.on('error', (error) =>
      this.#report({ event: 'helper.error', level: 'warning', message: `A helper: ${messageOf(error)}` }),
    );
    whenEnded(child, (code) => {
      this.#running.delete(number);
      if (this.#resting?.number === number) this.#endRest();
      this.#leaving.delete(child);
      if (this.#leaving.size === 0) for (const wake of this.#waiting.splice(0)) wake();
      helper.freeze.end();
      if (helper.freeze.isOn && code !== 0) helper.freeze.thawAll(this.#thawing);
    });
    return number;
  }

  #asked({ freeze }: Helper, name: string, params: unknown): void {
    if (name === 'engineHangs') this.#onEngineHang();
    else if (name === 'freezeStep') {
      const { mountPoint, step } = v.parse(Step, params);
      freeze.note(mountPoint, step);
    } else throw new CowbirdError('ENOSYS', `A helper does not ask for ${name}`);
  }

  async call(number: number, call: string, params: unknown, timeoutMs: number): Promise<unknown> {
    const helper = this.#running.get(number);
    if (helper === undefined)
      throw new CowbirdError('EPIPE', `Helper ${number} has ended before ${call}`, { outcome: 'failed' });
    const { freeze } = helper;
    if (call === 'prepareFreeze') freeze.prepare(mountPointsOf(params));
    if (call === 'freeze') freeze.isOn = true;
    try {
      const result = await helper.rpc.call(call, params, timeoutMs);
      if (call === 'thaw') freeze.isOn = false;
      return result;
    } catch (error) {
      helper.isSpent = true;
      if (!(error instanceof CowbirdError) || error.code !== 'ETIMEDOUT') throw error;
      const { busy } = freeze;
      this.#endHung(helper);
      if (!freeze.isOn || busy.length === 0) throw error;
      throw new CowbirdError('ETIMEDOUT', `${error.message}: ${busy.join(', ')} does not answer`, {
        outcome: 'failed',
      });
    }
  }

  /** SIGKILL ends it when its call has returned; what it holds frozen does not wait for that. */
  #endHung({ child, freeze }: Helper): void {
    child.kill('SIGKILL');
    if (freeze.isOn) freeze.thawAll(this.#thawing);
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
    for (const [number, helper] of this.#running) {
      const { child, freeze, isKeepers } = helper;
      if (isKeepers) continue;
      this.#leaving.add(child);
      if (child.connected) child.disconnect();
      if (!freeze.isOn) continue;
      // One that hangs in a file system thaws nothing.
      setTimeout(() => {
        if (this.#running.get(number) === helper) this.#endHung(helper);
      }, LEAVE_MS_MAX).unref();
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
    this.#isOver = true;
    this.#endRest();
    for (const { child } of this.#running.values()) child.kill('SIGKILL');
  }

  readonly #thawing: Thawing = {
    thawOne: (mountPoint) => this.#thawOne(mountPoint),
    report: (event) => this.#report(event),
    isOver: () => this.#isOver,
  };

  /** Without a limit: a thaw that hangs is made when the kernel can, and nobody must try it a second time until then. */
  async #thawOne(mountPoint: string): Promise<boolean> {
    const number = this.start(ENGINE_PROTOCOL);
    const helper = this.#running.get(number);
    if (helper === undefined) throw new CowbirdError('EPIPE', 'No helper could be started', { outcome: 'failed' });
    helper.isKeepers = true;
    try {
      const result = await helper.rpc.call('thawAfterDeath', { mountPoints: [mountPoint] });
      // One of an older version does not say: it is asked again where that matters.
      return v.is(Thawed, result) && result.thawed > 0;
    } catch (error) {
      helper.isSpent = true;
      throw error;
    } finally {
      helper.isKeepers = false;
      await this.end(number);
    }
  }
}

function startHelper(protocol: number): ChildProcess {
  const program = fileURLToPath(new URL('./helper.js', import.meta.url));
  return fork(program, [String(protocol)], {
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    execArgv: process.execArgv,
    cwd: '/',
    ...sameName(),
  });
}

function mountPointsOf(params: unknown): string[] {
  const isObject = typeof params === 'object' && params !== null && 'mountPoints' in params;
  if (!isObject || !Array.isArray(params.mountPoints)) return [];
  return params.mountPoints.filter((point): point is string => typeof point === 'string');
}
