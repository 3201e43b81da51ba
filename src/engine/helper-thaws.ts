/**
 * What a helper that hangs or has died leaves frozen, and its end.
 *
 * A helper freezes one file system after the other, and while it hangs in one it can thaw none: SIGKILL ends it no sooner than
 * its call. So the keeper hears of each step, and thaws in its place, each file system by a helper of its own, since a thaw may
 * hang as well. Only what the helper froze: what was thawed once, or had been frozen by somebody else, may be somebody else's
 * freeze by now.
 */
import { setTimeout as pause } from 'node:timers/promises';
import { messageOf } from '../sys/errors.js';
import type { EventInput } from './events.js';
import type { FreezeStep } from './helper-calls.js';

const THAW_LATE_MS = 10_000;
const AGAIN_MS = 2_000;
const ATTEMPTS_MAX = 5;

/** The file systems that one helper was told to freeze. */
export class Freeze {
  /** Undefined where the helper has said nothing of it. */
  readonly #steps = new Map<string, FreezeStep | undefined>();
  readonly #thawing = new Set<string>();
  readonly #ended: Promise<void>;
  #resolveEnded: () => void = () => undefined;
  #isEnded = false;
  /** It was told to freeze, and has not thawed since. */
  isOn = false;

  constructor() {
    this.#ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
  }

  /** The helper has ended: no call of it is under way any more. */
  end(): void {
    this.#isEnded = true;
    this.#resolveEnded();
  }

  prepare(mountPoints: readonly string[]): void {
    this.#steps.clear();
    for (const mountPoint of mountPoints) this.#steps.set(mountPoint, undefined);
  }

  note(mountPoint: string, step: FreezeStep): void {
    if (this.#steps.has(mountPoint)) this.#steps.set(mountPoint, step);
  }

  /** Mount points that the helper is busy with. */
  get busy(): string[] {
    return this.#held().filter((mountPoint) => this.#steps.get(mountPoint) !== 'frozen');
  }

  /** What may be frozen by it: of a helper that tells no steps, which an older version has, everything. */
  #held(): string[] {
    const steps = [...this.#steps];
    const tells = steps.some(([, step]) => step !== undefined);
    return steps.flatMap(([mountPoint, step]) => {
      const isHeld = tells ? step === 'freezing' || step === 'frozen' : true;
      return isHeld ? [mountPoint] : [];
    });
  }

  /** Thaws in the helper's place whatever it may hold. May be called again. */
  thawAll(by: Thawing): void {
    for (const mountPoint of this.#held()) {
      if (this.#thawing.has(mountPoint)) continue;
      this.#thawing.add(mountPoint);
      void this.#thaw(mountPoint, by).finally(() => this.#thawing.delete(mountPoint));
    }
  }

  async #thaw(mountPoint: string, by: Thawing): Promise<void> {
    for (let attempt = 1; attempt <= ATTEMPTS_MAX && !by.isOver(); ) {
      const wasEnded = this.#isEnded;
      const isThawed = await this.#attempt(mountPoint, by);
      if (isThawed === undefined) {
        attempt++;
        await pause(AGAIN_MS, undefined, { ref: false });
        continue;
      }
      // Frozen by the helper, and not frozen now: somebody was faster. But one that it is still busy with may yet be.
      if (isThawed || wasEnded || this.#steps.get(mountPoint) === 'frozen') {
        this.#steps.set(mountPoint, 'notOurs');
        return;
      }
      await this.#ended;
    }
  }

  /** Whether it was frozen; undefined where that could not be done. */
  async #attempt(mountPoint: string, by: Thawing): Promise<boolean | undefined> {
    const failed = (why: string): void => {
      const message = `${mountPoint} may be frozen (\`fsfreeze -u\` thaws): ${why}`;
      by.report({ event: 'thaw.failed', level: 'error', message });
    };
    const late = setTimeout(() => failed(`a thaw has not ended within ${THAW_LATE_MS} ms`), THAW_LATE_MS);
    try {
      return await by.thawOne(mountPoint);
    } catch (error) {
      failed(messageOf(error));
      return undefined;
    } finally {
      clearTimeout(late);
    }
  }
}

/** How the keeper thaws. */
export interface Thawing {
  /** By a helper of its own, for as long as it takes; resolves to whether it was frozen. */
  thawOne(mountPoint: string): Promise<boolean>;
  report(event: EventInput): void;
  /** The keeper ends. */
  isOver(): boolean;
}
