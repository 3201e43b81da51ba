/**
 * Memory that a freeze and its watchdog share: one word a file system, and the time at which the first was frozen.
 *
 *     IDLE       it was not begun with
 *     FREEZING   the freezer is in FIFREEZE, or about to call it
 *     FROZEN     FIFREEZE has returned
 *     ENDED      thawed by the freezer, or it could not be frozen
 *     RESCUED    thawed by the watchdog
 *     FORBIDDEN  its time was over before it was begun with
 *
 * IDLE is left by compare-and-exchange on either side: a freezer that was stopped in between cannot freeze what nobody will
 * thaw any more.
 */
import * as libc from '../sys/libc.js';

export const FreezeState = { IDLE: 0, FREEZING: 1, FROZEN: 2, ENDED: 3, RESCUED: 4, FORBIDDEN: 5 } as const;

const PAGE_BYTES = 4096;
const STATES_OFFSET = 8;
export const FREEZES_MAX = (PAGE_BYTES - STATES_OFFSET) / 4;

export class FreezeWords {
  readonly states: Int32Array;
  /** When the first FIFREEZE was called: nanoseconds of the clock that all processes share; 0 before. */
  readonly #since: BigInt64Array;

  private constructor(memory: ArrayBuffer) {
    this.#since = new BigInt64Array(memory, 0, 1);
    this.states = new Int32Array(memory, STATES_OFFSET, FREEZES_MAX);
  }

  /** Memory of its own, as a descriptor. */
  static make(): { words: FreezeWords; fd: number } {
    const fd = libc.memfdCreate('cowbird-freeze', PAGE_BYTES);
    return { words: FreezeWords.map(fd), fd };
  }

  static map(fd: number): FreezeWords {
    return new FreezeWords(libc.mapShared(fd, 0, PAGE_BYTES).bytes);
  }

  /** Everything as it was before the first freeze. */
  reset(): void {
    Atomics.store(this.#since, 0, 0n);
    for (let i = 0; i < FREEZES_MAX; i++) Atomics.store(this.states, i, FreezeState.IDLE);
  }

  begin(): void {
    Atomics.store(this.#since, 0, process.hrtime.bigint());
  }

  /** How long something may be frozen now. */
  elapsedMs(): number {
    const since = Atomics.load(this.#since, 0);
    return since === 0n ? 0 : Number(process.hrtime.bigint() - since) / 1e6;
  }

  stateOf(index: number): number {
    return Atomics.load(this.states, index);
  }

  set(index: number, state: number): void {
    Atomics.store(this.states, index, state);
  }

  /** From one state to another; false when it was in neither. */
  change(index: number, from: number, to: number): boolean {
    return Atomics.compareExchange(this.states, index, from, to) === from;
  }
}
