/**
 * The moment that a live backup is of: everything on its disk stands still, or, where several disks are backed up at one instant,
 * everything on all of them.
 *
 * Disks of one instant come here when each has next to nothing left to be read. Whoever has waited for a slower one has been
 * written meanwhile: it is sent back to read that, and comes again. When all are here at about the same time, all are frozen, each
 * reads its rest, and all are thawed. Where one of them did not get what it wanted, none did.
 */
import type { Freezer } from './freezer.js';

export interface Standstill {
  /** Writes out what the file systems have in memory, so that the freeze itself is short. */
  sync(): Promise<void>;
  /** Does something while everything stands still, as `Freezer.frozen`. */
  attempt(work: FrozenWork): Promise<Attempted>;
}

/** Neither may wait for a file system, nor give back a promise. */
export interface FrozenWork {
  /**
   * Called right before the freeze, with everything written out that was in memory then: for what need not wait until nothing moves.
   * True: everything shall be written out once more, and this be called again.
   */
  ahead(): boolean;
  /** Called while everything stands still. True: it has what it wanted. */
  frozen(): boolean;
}

export interface Attempted {
  /** `early`: nothing was frozen, the action not called; it is to be tried again with less left to do. */
  outcome: 'done' | 'not done' | 'early';
  /** When everything stood still; the same for all disks of one instant. Undefined where nothing did. */
  at: Date | undefined;
  freezeMs: number;
  /** What was wrong with `post-thaw`. */
  problem: string | undefined;
}

/** The moment of one disk. */
export function aloneWith(freezer: Freezer): Standstill {
  return {
    sync: () => freezer.sync(),
    attempt: async ({ ahead, frozen }) => {
      const noted = noting(frozen);
      const { result, freezeMs, problem } = await freezer.frozen(noted.work, ahead);
      return { outcome: result ? 'done' : 'not done', at: noted.at(), freezeMs, problem };
    },
  };
}

/** Work that notes when it was last done. */
function noting(work: () => boolean): { work: () => boolean; at: () => Date | undefined } {
  let at: Date | undefined;
  const noted = (): boolean => {
    at = new Date();
    return work();
  };
  return { work: noted, at: () => at };
}

/** Who has waited longer than this reads once more what was written meanwhile. */
const WAITED_MS_MAX = 1000;
/** Disks whose passes take longer than that would send each other back for ever. */
const ROUNDS_MAX = 10;

interface Waiting {
  work: FrozenWork;
  sinceMs: number;
  resolve(attempted: Attempted): void;
  reject(error: unknown): void;
}

/** The moment of several disks, each of which has one of {@link member}. */
export class SharedStandstill {
  readonly #freezer: Pick<Freezer, 'sync' | 'frozen'>;
  readonly #members: number;
  readonly #nowMs: () => number;
  #waiting: Waiting[] = [];
  #rounds = 0;
  /** The helper is asked one thing at a time. */
  #turn: Promise<void> = Promise.resolve();
  #aborted: { error: unknown } | undefined;

  constructor(freezer: Pick<Freezer, 'sync' | 'frozen'>, members: number, nowMs = () => performance.now()) {
    this.#freezer = freezer;
    this.#members = members;
    this.#nowMs = nowMs;
  }

  member(): Standstill {
    return { sync: () => this.#sync(), attempt: (work) => this.#attempt(work) };
  }

  /** Of the one that was the first not to come. */
  get error(): unknown {
    return this.#aborted?.error;
  }

  /** One of them will never come: the others, here or on their way, hear its error. */
  abort(error: unknown): void {
    this.#aborted ??= { error };
    for (const { reject } of this.#waiting.splice(0)) reject(this.#aborted.error);
  }

  #sync(): Promise<void> {
    const turn = this.#turn.then(() => this.#freezer.sync());
    this.#turn = turn.catch(() => undefined);
    return turn;
  }

  async #attempt(work: FrozenWork): Promise<Attempted> {
    if (this.#aborted !== undefined) throw this.#aborted.error;
    return new Promise((resolve, reject) => {
      this.#waiting.push({ work, sinceMs: this.#nowMs(), resolve, reject });
      if (this.#waiting.length === this.#members) void this.#allHere();
    });
  }

  async #allHere(): Promise<void> {
    const nowMs = this.#nowMs();
    const isLate = ({ sinceMs }: Waiting): boolean => nowMs - sinceMs > WAITED_MS_MAX;
    const late = this.#waiting.filter(isLate);
    if (late.length > 0 && this.#rounds < ROUNDS_MAX) {
      this.#rounds++;
      this.#waiting = this.#waiting.filter((each) => !isLate(each));
      for (const { resolve } of late) resolve({ outcome: 'early', at: undefined, freezeMs: 0, problem: undefined });
      return;
    }
    this.#rounds = 0;
    const all = this.#waiting.splice(0);
    try {
      // One that does not get what it wants ends it: the freeze is not longer than it has to be.
      const noted = noting(() => all.every(({ work }) => work.frozen()));
      const { result, freezeMs, problem } = await this.#freezer.frozen(noted.work, () =>
        all.map(({ work }) => work.ahead()).includes(true),
      );
      const at = noted.at();
      for (const [i, { resolve }] of all.entries())
        resolve({ outcome: result ? 'done' : 'not done', at, freezeMs, problem: i === 0 ? problem : undefined });
    } catch (error) {
      for (const { reject } of all) reject(error);
    }
  }
}
