/**
 * A disk with a volatile cache, whose I/O takes time.
 *
 * An I/O is issued, takes effect sector by sector over as many turns as it likes, and is completed. Every version that a
 * sector had since it was last flushed is kept: when power is lost each sector comes back with any of them (lost, torn and
 * reordered writes are all that), and now and then one that was lost turns up in another sector.
 */
import type { BlockDevice, IoBuffer } from '../../src/block/device.js';
import { assert, SystemError } from '../../src/sys/errors.js';
import type { Step } from '../../src/tracer/steps.js';

/** One transfer, zeroing or flush of one disk. */
export type IoStep = Exclude<Step, { kind: 'wait' | 'readTogether' }>;
export type Random = (below: number) => number;

export const SECTOR_BYTES = 512;
const WORDS = SECTOR_BYTES / 4;
const EIO = 5;
const EOPNOTSUPP = 95;

/** How often something goes wrong, in 10,000 I/Os. */
export interface Faults {
  read: number;
  write: number;
  flush: number;
}

export const NO_FAULTS: Faults = { read: 0, write: 0, flush: 0 };

export interface DiskOptions {
  /** Holes are told and made, as by an image file. */
  hasHoles: boolean;
  /** Discards that leave zeros are not known here. */
  refusesUnmap: boolean;
  /** Of 100 I/Os, those that take many turns. */
  slowPercent: number;
}

interface Version {
  bytes: Uint8Array;
  isHole: boolean;
  /** Undefined for what was there before. */
  io: Io | undefined;
}

/** What one sector holds, as a number: the word it is filled with, or a hash beyond 2^32 for anything else. */
export function contentsOf(words: Uint32Array, first = 0): number {
  const value = words[first] ?? 0;
  let i = 1;
  while (i < WORDS && words[first + i] === value) i++;
  if (i === WORDS) return value;
  let hash = 17;
  for (i = 0; i < WORDS; i++) hash = Math.imul(hash ^ (words[first + i] ?? 0), 0x0100_0193);
  return (hash >>> 0) + 0x1_0000_0000;
}

export class SimDisk implements BlockDevice {
  readonly name: string;
  readonly sizeBytes: number;
  readonly bytes: Buffer;
  /** {@link contentsOf} of each sector. */
  readonly values: Float64Array;
  readonly options: DiskOptions;
  /** Hears of every sector that changed. */
  onLand: (sector: number, io: Io) => void = () => undefined;
  readonly #words: Uint32Array;
  readonly #holes: Uint8Array;
  readonly #unflushed = new Map<number, Version[]>();

  constructor(name: string, sizeBytes: number, options: DiskOptions) {
    this.name = name;
    this.sizeBytes = sizeBytes;
    const memory = new ArrayBuffer(sizeBytes);
    this.bytes = Buffer.from(memory);
    this.#words = new Uint32Array(memory);
    this.values = new Float64Array(sizeBytes / SECTOR_BYTES);
    this.#holes = new Uint8Array(sizeBytes / SECTOR_BYTES).fill(1);
    this.options = options;
  }

  get sectorCount(): number {
    return this.values.length;
  }

  /** Sectors that power loss may take back. */
  get unflushedCount(): number {
    return this.#unflushed.size;
  }

  unflushedSectors(): Iterable<number> {
    return this.#unflushed.keys();
  }

  /** Values that a sector may have after power loss, oldest first. */
  possibleValues(sector: number): number[] {
    const versions = this.#unflushed.get(sector);
    if (versions === undefined) return [this.values[sector] ?? 0];
    return versions.map(({ bytes }) => contentsOf(new Uint32Array(bytes.buffer, bytes.byteOffset, WORDS)));
  }

  /** Puts contents there durably, as if they had always been there. */
  preset(sector: number, value: number): void {
    this.#words.fill(value, sector * WORDS, (sector + 1) * WORDS);
    this.values[sector] = value;
    this.#holes[sector] = 0;
    this.#unflushed.delete(sector);
  }

  issue(step: IoStep, owner: string, faults: Faults, random: Random): Io {
    return new Io(this, step, owner, faults, random);
  }

  land(sector: number, source: Uint8Array | undefined, isHole: boolean, io: Io): void {
    const at = sector * SECTOR_BYTES;
    let versions = this.#unflushed.get(sector);
    if (versions === undefined) {
      versions = [{ bytes: this.#copy(sector), isHole: this.#holes[sector] === 1, io: undefined }];
      this.#unflushed.set(sector, versions);
    }
    if (source === undefined) this.bytes.fill(0, at, at + SECTOR_BYTES);
    else this.bytes.set(source, at);
    this.#holes[sector] = isHole ? 1 : 0;
    this.values[sector] = contentsOf(this.#words, sector * WORDS);
    versions.push({ bytes: this.#copy(sector), isHole, io });
    this.onLand(sector, io);
  }

  #copy(sector: number): Uint8Array {
    return Uint8Array.prototype.slice.call(this.bytes, sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
  }

  /** What a flush that is issued now makes durable: the last completed version of each sector. */
  completedVersions(): Map<number, Version> {
    const found = new Map<number, Version>();
    for (const [sector, versions] of this.#unflushed) {
      const last = versions.findLast(({ io }) => io === undefined || io.isDone);
      if (last !== undefined) found.set(sector, last);
    }
    return found;
  }

  makeDurable(versions: ReadonlyMap<number, Version>): void {
    for (const [sector, version] of versions) {
      const all = this.#unflushed.get(sector);
      const at = all?.indexOf(version) ?? -1;
      if (all === undefined || at < 0) continue;
      if (at === all.length - 1) this.#unflushed.delete(sector);
      else all.splice(0, at);
    }
  }

  /**
   * Loses the cache. `misdirect` names another sector for a write that was lost, or -1. Returns the sectors that hold what
   * was written elsewhere.
   */
  losePower(random: Random, misdirect: (sector: number) => number): number[] {
    const strays: Array<{ target: number; bytes: Uint8Array }> = [];
    for (const [sector, versions] of this.#unflushed) {
      const kept = versions[random(3) === 0 ? random(versions.length) : random(2) * (versions.length - 1)];
      assert(kept !== undefined, 'a sector that was written has versions');
      this.#restore(sector, kept.bytes, kept.isHole);
      const lost = versions[1 + random(versions.length - 1)];
      const target = lost === undefined || lost === kept ? -1 : misdirect(sector);
      if (lost !== undefined && target >= 0) strays.push({ target, bytes: lost.bytes });
    }
    this.#unflushed.clear();
    for (const { target, bytes } of strays) this.#restore(target, bytes, false);
    return strays.map(({ target }) => target);
  }

  #restore(sector: number, bytes: Uint8Array, isHole: boolean): void {
    this.bytes.set(bytes, sector * SECTOR_BYTES);
    this.values[sector] = contentsOf(this.#words, sector * WORDS);
    this.#holes[sector] = isHole ? 1 : 0;
  }

  nextData(offset: number, end: number): number {
    if (!this.options.hasHoles) return offset;
    let sector = Math.floor(offset / SECTOR_BYTES);
    while (sector * SECTOR_BYTES < end && this.#holes[sector] === 1) sector++;
    return Math.min(end, Math.max(offset, sector * SECTOR_BYTES));
  }

  read(buffer: IoBuffer, at: number, lengthBytes: number, offset: number): void {
    buffer.bytes.set(this.bytes.subarray(offset, offset + lengthBytes), at);
  }

  write(): never {
    throw new Error('Writes are issued, here');
  }

  writeZeroes(): never {
    throw new Error('Writes are issued, here');
  }

  flush(): never {
    throw new Error('A flush is issued, here');
  }
}

/** One I/O between its issue and its completion. */
export class Io {
  readonly disk: SimDisk;
  readonly step: IoStep;
  readonly owner: string;
  isDone = false;
  error: SystemError | undefined;
  readonly #random: Random;
  readonly #order: number[] = [];
  readonly #perTurn: number;
  readonly #failAt: number;
  readonly #versions: Map<number, Version> | undefined;
  #moved = 0;

  constructor(disk: SimDisk, step: IoStep, owner: string, faults: Faults, random: Random) {
    this.disk = disk;
    this.step = step;
    this.owner = owner;
    this.#random = random;
    if (step.kind === 'flush') {
      this.#versions = disk.completedVersions();
    } else {
      assert(step.offset % SECTOR_BYTES === 0 && step.lengthBytes % SECTOR_BYTES === 0, 'an I/O is of whole sectors');
      assert(step.lengthBytes > 0 && step.offset + step.lengthBytes <= disk.sizeBytes, 'an I/O lies inside the disk');
      const count = step.lengthBytes / SECTOR_BYTES;
      for (let i = 0; i < count; i++) this.#order.push(i);
      if (random(4) === 0) shuffle(this.#order, random);
    }
    const isSlow = random(100) < disk.options.slowPercent;
    this.#perTurn = isSlow ? 1 + random(3) : Number.POSITIVE_INFINITY;
    const rate = step.kind === 'read' ? faults.read : step.kind === 'flush' ? faults.flush : faults.write;
    this.#failAt = rate > 0 && random(10_000) < rate ? random(this.#order.length + 1) : -1;
    if (step.kind === 'zero' && step.unmap && disk.options.refusesUnmap) this.#end(EOPNOTSUPP);
  }

  get sectorCount(): number {
    return this.#order.length;
  }

  /** A turn of its life; true when it is completed. */
  advance(): boolean {
    for (let i = 0; i < this.#perTurn && !this.isDone; i++) this.#move();
    return this.isDone;
  }

  /** The process is being killed: the I/O comes to its end in the kernel, or is cut short there. */
  finish(): void {
    let left = this.#random(4) === 0 ? this.#random(this.#order.length + 1) : Number.POSITIVE_INFINITY;
    while (!this.isDone && left-- > 0) this.#move();
    this.isDone = true;
  }

  #move(): void {
    if (this.#moved === this.#failAt) {
      this.#end(EIO);
      return;
    }
    const i = this.#order[this.#moved];
    if (i !== undefined) {
      this.#moved++;
      this.#moveSector(i);
    }
    if (this.#moved === this.#order.length && this.#failAt < 0) {
      if (this.#versions !== undefined) this.disk.makeDurable(this.#versions);
      this.isDone = true;
    }
  }

  #moveSector(i: number): void {
    const { step, disk } = this;
    if (step.kind === 'flush') return;
    const sector = step.offset / SECTOR_BYTES + i;
    if (step.kind === 'zero') {
      disk.land(sector, undefined, step.unmap, this);
      return;
    }
    const from = step.at + i * SECTOR_BYTES;
    const part = step.buffer.bytes.subarray(from, from + SECTOR_BYTES);
    if (step.kind === 'write') disk.land(sector, part, false, this);
    else part.set(disk.bytes.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES));
  }

  #end(errno: number): void {
    this.error = new SystemError(`simulated ${this.step.kind}`, errno);
    this.isDone = true;
  }
}

export function shuffle<T>(items: T[], random: Random): void {
  for (let i = items.length - 1; i > 0; i--) {
    const j = random(i + 1);
    const [a, b] = [items[i], items[j]];
    if (a === undefined || b === undefined) return;
    items[i] = b;
    items[j] = a;
  }
}
