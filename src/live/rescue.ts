/**
 * The watchdog's part of a freeze: it thaws what its maker does not.
 *
 * Several file systems may stand on each other, and the thaw of an upper one writes to the lower one, which is still frozen: who thawed
 * them one after the other would wait in the first for ever. A file system whose FIFREEZE is under way, or that somebody else has, may hold
 * its thaw up, too. So each one has a thread that does nothing else, started before anything is frozen; a single one needs none.
 */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { thaw } from '../sys/fsfile.js';
import { FreezeState, type FreezeWords } from './freeze-words.js';

/** Why it is to be thawed: what the threads are told, in shared memory. */
export const Rescue = {
  NOT: 0,
  /** Its time is over. */
  LATE: 1,
  /** Its maker is gone: no FIFREEZE is under way any more. */
  GONE: 2,
} as const;

/** For a thread (rescue-thread.ts). */
export interface RescueWork {
  wordsFd: number;
  index: number;
  /** In the file system. */
  fd: number;
  /** Shared: one {@link Rescue}. */
  order: Int32Array;
  /** Shared: a word a file system, 1 when nothing of it is left to be thawed. */
  over: Int32Array;
}

/** One step towards one of them thawed. True when there is nothing left that could be frozen by the maker. */
export function rescueOne(words: FreezeWords, index: number, fd: number, makerIsGone: boolean): boolean {
  words.change(index, FreezeState.IDLE, FreezeState.FORBIDDEN);
  const state = words.stateOf(index);
  if (state !== FreezeState.FREEZING && state !== FreezeState.FROZEN) return true;
  const isThawed = tryThaw(fd);
  // Not frozen, although FIFREEZE had returned: somebody else was faster. While it is under way the thaw fails too.
  if (!isThawed && !makerIsGone && state !== FreezeState.FROZEN) return false;
  // The maker may have thawed it in between, and even be about to freeze it again: that is another freeze.
  return words.change(index, state, FreezeState.RESCUED) || makerIsGone;
}

/** False where it is not frozen, or cannot be thawed now: it is tried again, as there is nobody to be told. */
function tryThaw(fd: number): boolean {
  try {
    thaw(fd);
    return true;
  } catch {
    return false;
  }
}

/** All file systems of a freeze. */
export class Rescuers {
  readonly #words: FreezeWords;
  readonly #fds: readonly number[];
  readonly #order = new Int32Array(new SharedArrayBuffer(4));
  readonly #over: Int32Array;

  private constructor(words: FreezeWords, fds: readonly number[]) {
    this.#words = words;
    this.#fds = fds;
    this.#over = new Int32Array(new SharedArrayBuffer(4 * fds.length));
  }

  /** Resolves when all that is needed to thaw is there. */
  static async start(words: FreezeWords, wordsFd: number, fds: readonly number[]): Promise<Rescuers> {
    const rescuers = new Rescuers(words, fds);
    if (fds.length < 2) return rescuers;
    const program = new URL('./rescue-thread.js', import.meta.url);
    const started = fds.map((fd, index) => {
      const work: RescueWork = { wordsFd, index, fd, order: rescuers.#order, over: rescuers.#over };
      return once(new Worker(program, { workerData: work }), 'message');
    });
    await Promise.all(started);
    return rescuers;
  }

  /** Before a freeze: nothing is to be thawed. */
  reset(): void {
    this.#over.fill(0);
    this.#tell(Rescue.NOT);
  }

  /** Goes on thawing. True when there is nothing left that could be frozen by the maker. */
  step(why: typeof Rescue.LATE | typeof Rescue.GONE): boolean {
    const [only] = this.#fds;
    if (only === undefined) return true;
    if (this.#fds.length === 1) return rescueOne(this.#words, 0, only, why === Rescue.GONE);
    this.#tell(why);
    return this.#fds.every((_, index) => Atomics.load(this.#over, index) === 1);
  }

  #tell(order: number): void {
    Atomics.store(this.#order, 0, order);
    Atomics.notify(this.#order, 0);
  }
}
