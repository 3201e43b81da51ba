/**
 * What each sector of the origin may hold, by what was asked and answered (I1).
 *
 * A sector is a register: writes that overlap in time may take effect in either order, and one that ended before another
 * began is gone once that one is answered. On the disk it is gone only when a flush that began after that answer is answered.
 */

export interface Write {
  value: number;
  start: number;
  end: number;
  /** Answered without an error: from then on the older ones are gone. */
  acked: boolean;
}

export class Registers {
  readonly #logs: Write[][] = [];
  #clock = 0;
  /** Starts of reads in hand. */
  readonly #reads = new Set<number>();
  /** By sector: when somebody last wrote there who is no user. */
  readonly #disturbed: Float64Array;

  constructor(sectorCount: number) {
    this.#disturbed = new Float64Array(sectorCount);
    for (let sector = 0; sector < sectorCount; sector++) this.#logs.push([]);
  }

  tick(): number {
    return ++this.#clock;
  }

  /** From here on a sector holds the last of these values, and one of them after power loss. */
  reset(sector: number, values: readonly number[]): void {
    this.disturb(sector);
    this.#logs[sector] = values.map((value) => ({ value, start: this.tick(), end: this.tick(), acked: true }));
  }

  disturb(sector: number): void {
    this.#disturbed[sector] = this.tick();
  }

  /** Whether nobody but users has written there since a moment, so that {@link allows} tells of it. */
  isUndisturbed(sector: number, since: number): boolean {
    return (this.#disturbed[sector] ?? 0) < since;
  }

  begin(sector: number, value: number): Write {
    const write = { value, start: this.tick(), end: Number.POSITIVE_INFINITY, acked: false };
    this.#logs[sector]?.push(write);
    return write;
  }

  /** A write in hand stays so across a reset. */
  rejoin(sector: number, write: Write): void {
    this.#logs[sector]?.push(write);
  }

  end(write: Write, acked: boolean): void {
    write.end = this.tick();
    write.acked = acked;
  }

  /** Nobody is there any more who asked for anything. */
  powerLost(): void {
    this.#reads.clear();
  }

  beginRead(): number {
    const start = this.tick();
    this.#reads.add(start);
    return start;
  }

  endRead(start: number): void {
    this.#reads.delete(start);
  }

  /** Whether a read that began at a moment (now, if none is given) may see a value. */
  allows(sector: number, value: number, since = this.#clock): boolean {
    const log = this.#logs[sector] ?? [];
    const last = log.at(-1);
    if (last !== undefined && last.value === value) return true;
    return log.some((write) => write.value === value && !isGone(log, write, since));
  }

  /** Whether a sector may have a value after power loss. */
  allowsAfterPowerLoss(sector: number, value: number): boolean {
    return (this.#logs[sector] ?? []).some((write) => write.value === value);
  }

  /** A flush that began at a moment was answered. */
  flushed(start: number): void {
    const since = Math.min(start, ...this.#reads);
    for (const [sector, log] of this.#logs.entries()) {
      if (log.length > 1) this.#logs[sector] = log.filter((write) => !isGone(log, write, since));
    }
  }

  describe(sector: number): string {
    return (this.#logs[sector] ?? [])
      .map(({ value, start, end, acked }) => `${value.toString(16)}@${start}-${end}${acked ? '' : '?'}`)
      .join(' ');
  }
}

/** Whether a write is overwritten for certain, by one that was answered before `since`. */
function isGone(log: readonly Write[], write: Write, since: number): boolean {
  return log.some((other) => other.acked && other.end <= since && write.end < other.start);
}
