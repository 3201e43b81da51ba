/**
 * Shared memory of the simulated volume. It outlives a kill, at any access: death may come before any word is changed, and
 * between setting bits and counting them. And at any access other threads may run, as real ones do.
 */
import { layoutFor, setBits, VolumeMemory, Word } from '../../src/tracer/layout.js';
import type { Random } from './disk.js';

/** Thrown through the code of a process that has been killed; nothing that it does afterwards has an effect. */
export class Killed extends Error {}

/** Whether an error is the end of the simulated process. */
export function isDeath(error: unknown): boolean {
  return error instanceof Killed;
}

export class SharedMemory extends VolumeMemory {
  /** Set while simulated code runs: only then an access may be the last one, or let others run. */
  isRunning = false;
  isDead = false;
  /** Accesses until the process dies. */
  deathIn = Number.POSITIVE_INFINITY;
  preemptIn = Number.POSITIVE_INFINITY;
  /** Blocks whose bit or entry changed since the last look. */
  readonly touched = new Set<number>();
  preempt: () => void = () => undefined;
  readonly #buffers: readonly ArrayBuffer[];
  readonly #random: Random;
  #atDeath: Uint8Array[] = [];

  constructor(blockCount: number, random: Random) {
    const sizes = layoutFor(blockCount);
    const head = new ArrayBuffer(sizes.indexOffset);
    const index = new ArrayBuffer(sizes.indexBytes);
    const free = new ArrayBuffer(sizes.totalBytes - sizes.freeOffsets[0]);
    const at = (offset: number): ArrayBuffer => (offset === 0 ? head : offset === sizes.freeOffsets[0] ? free : index);
    super({ map: (offset) => ({ bytes: at(offset), address: 0 }) }, blockCount);
    this.#buffers = [head, index, free];
    this.#random = random;
  }

  override get(word: number): number {
    if (this.isRunning) this.#access();
    return super.get(word);
  }

  override set(word: number, value: number): void {
    if (this.isRunning) this.#access();
    super.set(word, value);
  }

  override mark(first: number, last: number): number {
    if (this.isRunning && this.#access(true)) {
      // Killed between the bits and their count.
      this.deathIn = Number.POSITIVE_INFINITY;
      if (this.#random(2) === 0) setBits(this.map, first, last);
      this.#die();
    }
    for (let block = first; block <= last; block++) this.touched.add(block);
    return super.mark(first, last);
  }

  override setEntries(first: number, place: number, count: number): void {
    for (let i = 0; i < count; i++) {
      if (this.isRunning) this.#access();
      this.touched.add(first + i);
      super.setEntries(first + i, place + i, 1);
    }
  }

  /** Gives index and maps back as zeros, as punching the memory file does. */
  clear(parts: { index: boolean; maps: ReadonlyArray<0 | 1> }): void {
    if (parts.index) new Uint8Array(this.#buffers[1] ?? new ArrayBuffer(0)).fill(0);
    for (const map of parts.maps) this.maps[map].fill(0);
  }

  /** Runs checks: they are not part of the process. */
  quietly<T>(action: () => T): T {
    const wasRunning = this.isRunning;
    this.isRunning = false;
    try {
      return action();
    } finally {
      this.isRunning = wasRunning;
    }
  }

  /** Brings back what was there at the moment of death. */
  restore(): void {
    this.#buffers.forEach((buffer, i) => {
      const copy = this.#atDeath[i];
      if (copy !== undefined) new Uint8Array(buffer).set(copy);
    });
    this.#atDeath = [];
    this.isDead = false;
    this.deathIn = Number.POSITIVE_INFINITY;
  }

  isBusy(): boolean {
    for (let worker = 0; worker < 8; worker++) if (super.get(Word.BUSY + worker) !== 0) return true;
    return false;
  }

  /** True when the process dies in what it is about to do; `tellOnly` leaves the dying to the caller. */
  #access(tellOnly = false): boolean {
    if (this.isDead) throw new Killed();
    if (--this.preemptIn <= 0) {
      this.preempt();
      if (this.isDead) throw new Killed();
    }
    if (--this.deathIn > 0) return false;
    if (!tellOnly) this.#die();
    return true;
  }

  #die(): never {
    this.#atDeath = this.#buffers.map((buffer) => new Uint8Array(buffer.slice(0)));
    this.isDead = true;
    throw new Killed();
  }
}
