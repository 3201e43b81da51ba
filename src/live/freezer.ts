/**
 * Freezes mounted file systems, does something while they stand still, and thaws them, whatever happens.
 *
 * Between the first FIFREEZE and the last FITHAW there is nothing but plain calls in this thread: no event loop, no import, no
 * log, no write to any file. The helper process beside it (freeze-helper.ts) thaws when this process hangs or dies, and
 * forbids what was not begun; that shows here when the state of a file system is not the one that was left.
 *
 * Order: pre-freeze hook, syncfs (in the helper: it may take long), arm the watchdog, syncfs and what is done ahead, in turn, FIFREEZE
 * of each, the action, FITHAW of each in reverse, disarm, post-thaw hook.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { closeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import * as v from 'valibot';
import { CowbirdError, errnoOfError, messageOf } from '../sys/errors.js';
import { freeze, thaw } from '../sys/fsfile.js';
import { type HookOrder, runHook } from '../sys/hook.js';
import * as libc from '../sys/libc.js';
import type { HelperAnswer, HelperOrder } from './freeze-helper.js';
import { FREEZES_MAX, FreezeState, FreezeWords } from './freeze-words.js';

const START_TIMEOUT_MS = 30_000;
/** How often `ahead` is called at most. */
const AHEADS_MAX = 4;
const EBUSY = 16;
const EINVAL = 22;

/** A mounted file system: a descriptor in it, and its name for people. */
export interface FreezePoint {
  fd: number;
  mountPoint: string;
}

export interface FreezerOptions {
  /** After this time the watchdog thaws. */
  timeoutMs: number;
  /** Commands around each freeze. `post-thaw` is run whatever became of `pre-freeze`. */
  preFreeze?: string | undefined;
  postThaw?: string | undefined;
  hookTimeoutMs: number;
  /** For the hooks: the environment variables beside COWBIRD_HOOK. */
  environment: Record<string, string>;
}

export interface Frozen<T> {
  result: T;
  /** From the call of the first FIFREEZE to the return of the last FITHAW; 0 where there was nothing to freeze. */
  freezeMs: number;
  /** What was wrong with `post-thaw`. */
  problem: string | undefined;
}

const Answer = v.union([
  v.object({
    ok: v.literal(true),
    hook: v.optional(v.object({ ok: v.boolean(), end: v.string(), output: v.string(), durationMs: v.number() })),
  }),
  v.object({ ok: v.literal(false), error: v.string() }),
]);

export class Freezer {
  readonly #points: readonly FreezePoint[];
  readonly #options: FreezerOptions;
  readonly #words: FreezeWords;
  readonly #helper: ChildProcess;

  private constructor(
    points: readonly FreezePoint[],
    options: FreezerOptions,
    words: FreezeWords,
    helper: ChildProcess,
  ) {
    this.#points = points;
    this.#options = options;
    this.#words = words;
    this.#helper = helper;
    // What was to be sent to a helper that has just died: whoever waits for its answer hears of its end.
    helper.on('error', () => undefined);
  }

  /** Starts the helper. The descriptors stay the caller's; no points: nothing is frozen, and only hooks are run. */
  static async start(points: readonly FreezePoint[], options: FreezerOptions): Promise<Freezer> {
    if (points.length > FREEZES_MAX)
      throw new CowbirdError('EINVAL', `${points.length} file systems cannot be frozen together: ${FREEZES_MAX} can`);
    const { words, fd } = FreezeWords.make();
    try {
      const program = fileURLToPath(new URL('./freeze-helper.js', import.meta.url));
      const helper = fork(program, [String(points.length)], {
        cwd: '/',
        detached: true,
        stdio: ['ignore', 'ignore', 'ignore', 'ipc', fd, ...points.map((point) => point.fd)],
      });
      const freezer = new Freezer(points, options, words, helper);
      try {
        await freezer.#answer(START_TIMEOUT_MS);
      } catch (error) {
        helper.kill('SIGKILL');
        throw error;
      }
      return freezer;
    } finally {
      closeSync(fd);
    }
  }

  /** Writes out what the file systems have in memory, so that the freeze itself is short. */
  async sync(): Promise<void> {
    await this.#ask({ kind: 'sync' });
  }

  /**
   * Freezes all, does something, thaws all. The action must not wait for a file system, nor give back a promise; the same
   * goes for `ahead`, which is called right before, behind a syncfs, and, as long as it gives true, behind another one.
   *
   * @throws {CowbirdError} EBUSY where somebody else has frozen one; ETIMEDOUT where the watchdog thawed, so that what the
   * action saw is not one state; ECANCELED when `pre-freeze` fails; what the action throws.
   */
  async frozen<T>(action: () => T, ahead: () => boolean = () => false): Promise<Frozen<T>> {
    let problem: string | undefined;
    let done: { result: T; freezeMs: number } | undefined;
    try {
      if (this.#options.preFreeze !== undefined) await this.#hook('pre-freeze', this.#options.preFreeze, true);
      await this.sync();
      this.#words.reset();
      await this.#ask({ kind: 'arm', timeoutMs: this.#options.timeoutMs, undo: this.#undo() });
      done = this.#freezeAndThaw(action, ahead);
    } finally {
      await this.#disarm();
      if (this.#options.postThaw !== undefined)
        problem = await this.#hook('post-thaw', this.#options.postThaw, false).then(() => undefined, messageOf);
    }
    return { ...done, problem };
  }

  /** A helper that has died has nothing to thaw any more: this process did. */
  async #disarm(): Promise<void> {
    try {
      await this.#ask({ kind: 'disarm' });
    } catch (error) {
      if (!this.#isGone()) throw error;
    }
  }

  #isGone(): boolean {
    const { connected, exitCode, signalCode } = this.#helper;
    return !connected || exitCode !== null || signalCode !== null;
  }

  /** The part without an event loop. */
  #freezeAndThaw<T>(action: () => T, ahead: () => boolean): { result: T; freezeMs: number } {
    let goesOn = true;
    for (let round = 0; goesOn && round < AHEADS_MAX; round++) {
      for (const { fd } of this.#points) libc.syncfs(fd);
      goesOn = ahead();
    }
    const startedMs = performance.now();
    this.#words.begin();
    let result: T;
    let isWhole = true;
    try {
      for (const [index, point] of this.#points.entries()) this.#freezeOne(point, index);
      result = action();
    } finally {
      isWhole = this.#thawAll();
    }
    const freezeMs = this.#points.length === 0 ? 0 : performance.now() - startedMs;
    if (!isWhole) throw this.#tooLate();
    return { result, freezeMs };
  }

  #freezeOne({ fd, mountPoint }: FreezePoint, index: number): void {
    if (!this.#words.change(index, FreezeState.IDLE, FreezeState.FREEZING)) throw this.#tooLate();
    try {
      freeze(fd);
    } catch (error) {
      this.#words.set(index, FreezeState.ENDED);
      if (errnoOfError(error) !== EBUSY) throw cannotFreeze(mountPoint, error);
      throw new CowbirdError(
        'EBUSY',
        `The file system on ${mountPoint} is frozen by somebody else: try again when that has ended (fsfreeze -u ${mountPoint} thaws it)`,
        { outcome: 'failed' },
      );
    }
    if (!this.#words.change(index, FreezeState.FREEZING, FreezeState.FROZEN)) throw this.#tooLate();
  }

  /** In reverse. False when one was not frozen any more. */
  #thawAll(): boolean {
    let isWhole = true;
    for (let index = this.#points.length - 1; index >= 0; index--) {
      const fd = this.#points[index]?.fd ?? -1;
      const state = this.#words.stateOf(index);
      if (state === FreezeState.RESCUED || state === FreezeState.FORBIDDEN) isWhole = false;
      if (state !== FreezeState.FROZEN) continue;
      try {
        thaw(fd);
      } catch (error) {
        isWhole = false;
        // Still frozen: the watchdog goes on to try.
        if (errnoOfError(error) !== EINVAL) continue;
      }
      this.#words.set(index, FreezeState.ENDED);
    }
    return isWhole;
  }

  #tooLate(): CowbirdError {
    return new CowbirdError(
      'ETIMEDOUT',
      `The file system was thawed before all was read (--freeze-timeout ${this.#options.timeoutMs / 1000}, or by somebody else): no version was made, and what was there is untouched. Run this again when the disk has less to do`,
      { outcome: 'failed' },
    );
  }

  async #hook(name: 'pre-freeze' | 'post-thaw', command: string, isFirst: boolean): Promise<void> {
    const hook = this.#order(command, name);
    // With the helper gone nobody else does it: what `pre-freeze` began must be ended.
    const answer: HelperAnswer =
      !isFirst && this.#isGone()
        ? { ok: true, hook: await runHook(hook) }
        : await this.#ask({ kind: 'hook', hook, undo: isFirst ? this.#undo() : null });
    if (!answer.ok || answer.hook?.ok === true) return;
    const message = `The ${name} hook \`${command}\` ${answer.hook?.end ?? 'did not run'}`;
    const output = answer.hook?.output ?? '';
    throw new CowbirdError('ECANCELED', output === '' ? message : `${message}: ${output}`, { outcome: 'failed' });
  }

  #order(command: string, name: 'pre-freeze' | 'post-thaw'): HookOrder {
    const { hookTimeoutMs, environment } = this.#options;
    return { command, timeoutMs: hookTimeoutMs, environment: { ...environment, COWBIRD_HOOK: name } };
  }

  /** What the helper runs when we go before we do it. */
  #undo(): HookOrder | null {
    const { postThaw } = this.#options;
    return postThaw === undefined ? null : this.#order(postThaw, 'post-thaw');
  }

  async #ask(order: HelperOrder): Promise<HelperAnswer> {
    const answered = this.#answer();
    // An error of sending is the helper's end, which the answer's promise hears of.
    if (this.#helper.connected) this.#helper.send(order, () => undefined);
    return answered;
  }

  #answer(timeoutMs?: number): Promise<HelperAnswer> {
    const helper = this.#helper;
    return new Promise((resolve, reject) => {
      const settle = (finish: () => void): void => {
        clearTimeout(timer);
        helper.off('message', onMessage);
        helper.off('exit', onExit);
        finish();
      };
      const fail = (why: string): void =>
        settle(() => reject(new CowbirdError('EIO', `The freeze could not be guarded: ${why}`, { outcome: 'failed' })));
      const onMessage = (message: unknown): void => {
        const answer = v.safeParse(Answer, message);
        if (!answer.success) fail('its helper answered strangely');
        else if (!answer.output.ok) fail(answer.output.error);
        else {
          const { hook } = answer.output;
          settle(() => resolve(hook === undefined ? { ok: true } : { ok: true, hook }));
        }
      };
      const onExit = (status: number | null, signal: string | null): void =>
        fail(`its helper ended with ${status ?? signal}`);
      const timer =
        timeoutMs === undefined ? undefined : setTimeout(() => fail('its helper did not start in time'), timeoutMs);
      helper.once('message', onMessage);
      helper.once('exit', onExit);
      // That is told once.
      if (helper.exitCode !== null || helper.signalCode !== null) onExit(helper.exitCode, helper.signalCode);
    });
  }

  /** Ends the helper. */
  async close(): Promise<void> {
    if (this.#helper.exitCode !== null || this.#helper.signalCode !== null) return;
    const ended = new Promise<void>((resolve) => this.#helper.once('exit', () => resolve()));
    if (this.#helper.connected) this.#helper.disconnect();
    await ended;
  }
}

function cannotFreeze(mountPoint: string, error: unknown): CowbirdError {
  return new CowbirdError('ENOTSUP', `The file system on ${mountPoint} cannot be frozen (${messageOf(error)})`, {
    outcome: 'failed',
    cause: error,
  });
}
