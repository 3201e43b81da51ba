/**
 * What must be true at every step, by the design's invariants; whatever is not throws a {@link Violation}.
 *
 * Checked are the blocks that a step touched; the whole is checked now and then, and at the end of a run.
 */
import { BLOCK_BYTES, countBits, isBitSet, Mode, Word } from '../../src/tracer/layout.js';
import { type StoreConfig, StoreMap } from '../../src/tracer/store-map.js';
import { isZero } from '../../src/tracer/zeros.js';
import { contentsOf, type Io, SECTOR_BYTES, type SimDisk } from './disk.js';
import type { SharedMemory } from './memory.js';
import type { PendingOperation } from './records.js';
import { Registers } from './register.js';
import { contentOf, describeRequest, type Request } from './requests.js';
import { Violation } from './violation.js';

const SECTORS_PER_BLOCK = BLOCK_BYTES / SECTOR_BYTES;

/** A store as the volume's words name it at this moment. */
export interface StoreInForce {
  map: StoreMap;
  disk: SimDisk;
}

export class Model {
  readonly origin: SimDisk;
  readonly registers: Registers;
  readonly blockCount: number;
  memory: SharedMemory;
  /** The image at T0, while changes since then are tracked. */
  t0: Buffer | undefined;
  /** Set while nothing can be said: the words of a switch are changing, or no engine has taken over yet. */
  isSuspended = true;
  store: StoreInForce | undefined;
  /** By block: the store's own now. */
  readonly own: Uint8Array;
  /** By block: of a file that is being made a store; the engine may write there. */
  readonly prepared: Uint8Array;
  /** By block: something happened since T0 for which it may be marked. */
  readonly mayBeMarked: Uint8Array;
  /** By sector: a foreign write into the store was answered here. */
  readonly #foreign: Uint8Array;
  /** The list of changes of the sequence that ended last. */
  #closed = new Int32Array(0);
  /** Asked and not answered. */
  readonly #open = new Set<Request>();

  constructor(origin: SimDisk, memory: SharedMemory) {
    this.origin = origin;
    this.memory = memory;
    this.blockCount = memory.blockCount;
    this.registers = new Registers(origin.sectorCount);
    this.own = new Uint8Array(this.blockCount);
    this.prepared = new Uint8Array(this.blockCount);
    this.mayBeMarked = new Uint8Array(this.blockCount);
    this.#foreign = new Uint8Array(origin.sectorCount);
    this.adoptContents();
    origin.onLand = (sector, io) => this.#landedOnOrigin(sector, io);
  }

  /** Takes the origin's contents as what they have to be. */
  adoptContents(): void {
    for (let sector = 0; sector < this.origin.sectorCount; sector++) {
      this.registers.reset(sector, [this.origin.values[sector] ?? 0]);
    }
  }

  // Requests.

  begin(request: Request): void {
    this.#open.add(request);
    request.start = request.kind === 'read' ? this.registers.beginRead() : this.registers.tick();
    if (request.kind !== 'write' && request.kind !== 'zero') return;
    const first = request.offset / SECTOR_BYTES;
    for (let i = 0; i < request.lengthBytes / SECTOR_BYTES; i++) {
      request.writes.push(this.registers.begin(first + i, contentOf(request, i)));
    }
    this.#mayMark(request);
  }

  #mayMark({ offset, lengthBytes }: Request): void {
    const last = Math.floor((offset + lengthBytes - 1) / BLOCK_BYTES);
    for (let block = Math.floor(offset / BLOCK_BYTES); block <= last; block++) this.mayBeMarked[block] = 1;
  }

  end(request: Request, hasFailed: boolean): void {
    this.#open.delete(request);
    if (request.kind === 'read') this.registers.endRead(request.start);
    if (request.kind === 'flush' && !hasFailed) this.registers.flushed(request.start);
    for (const write of request.writes) this.registers.end(write, !hasFailed);
    if (hasFailed) return;
    const first = request.offset / SECTOR_BYTES;
    for (let i = 0; i < request.writes.length; i++) {
      if (this.isOwn(first + i)) this.#foreign[first + i] = 1;
      else this.checkSector(first + i, `after ${describeRequest(request)} was answered`);
    }
  }

  /** What a request writes. */
  fill(request: Request, bytes: Uint8Array): void {
    if (request.kind !== 'write') return;
    const words = new Uint32Array(bytes.buffer);
    const perSector = SECTOR_BYTES / 4;
    for (let i = 0; i < bytes.byteLength / SECTOR_BYTES; i++)
      words.fill(contentOf(request, i), i * perSector, (i + 1) * perSector);
  }

  /** The block of the origin to which the store appended so many blocks ago. */
  lastAppended(back: number): number | undefined {
    const { store, memory } = this;
    const slot = (memory.get(Word.NEXT_SLOT) >>> 0) - back;
    if (store === undefined || slot < 0 || slot >= store.map.slotCount) return undefined;
    return store.map.locate(store.map.placeOfSlot(slot).place).offset / BLOCK_BYTES;
  }

  isOwn(sector: number): boolean {
    return this.own[this.#blockOf(sector)] === 1;
  }

  /** The machine was off. What is found must be allowed; it is what there is from now on. */
  powerLost(strays: ReadonlySet<number>): void {
    this.registers.powerLost();
    this.#open.clear();
    for (let sector = 0; sector < this.origin.sectorCount; sector++) {
      const value = this.origin.values[sector] ?? 0;
      const isUsers = !this.isOwn(sector) && this.prepared[this.#blockOf(sector)] === 0 && !strays.has(sector);
      if (isUsers && !this.registers.allowsAfterPowerLoss(sector, value)) {
        throw new Violation(
          `I1: sector ${sector} holds ${value.toString(16)} after power loss, and may hold ${this.registers.describe(sector)}`,
        );
      }
      this.registers.reset(sector, [value]);
    }
  }

  /** Blocks in which the engine may have written before they were a store, and which now are the user's. */
  releasePrepared(blocks: Iterable<number>): void {
    for (const block of blocks) {
      if (this.prepared[block] !== 1) continue;
      this.prepared[block] = 0;
      if (this.own[block] === 1) continue;
      for (let i = 0; i < SECTORS_PER_BLOCK; i++) {
        const sector = block * SECTORS_PER_BLOCK + i;
        this.#givenBack(sector);
      }
    }
  }

  /** From now on the user's, as it is. */
  #givenBack(sector: number): void {
    this.registers.reset(sector, this.origin.possibleValues(sector));
    for (const { offset, writes } of this.#open) {
      const write = writes[sector - offset / SECTOR_BYTES];
      if (write !== undefined) this.registers.rejoin(sector, write);
    }
  }

  checkRead(request: Request, bytes: Uint8Array): void {
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    const first = request.offset / SECTOR_BYTES;
    for (let i = 0; i < bytes.byteLength / SECTOR_BYTES; i++) {
      const isFile = this.isOwn(first + i) || this.prepared[this.#blockOf(first + i)] === 1;
      if (isFile || !this.registers.isUndisturbed(first + i, request.start)) continue;
      const value = contentsOf(words, i * (SECTOR_BYTES / 4));
      if (!this.registers.allows(first + i, value, request.start)) {
        throw new Violation(`I1: ${describeRequest(request)} gave ${value.toString(16)} for sector ${first + i}`);
      }
    }
  }

  checkSnapshotRead(request: Request, bytes: Uint8Array): void {
    const { t0 } = this;
    if (t0 === undefined) throw new Violation('I2: a snapshot was read while there is none');
    const expected = t0.subarray(request.offset, request.offset + request.lengthBytes);
    if (expected.equals(bytes)) return;
    const at = expected.findIndex((byte, i) => byte !== bytes[i]);
    const block = this.#blockOf(Math.floor((request.offset + at) / SECTOR_BYTES));
    throw new Violation(
      `I2: ${describeRequest(request)} of the snapshot differs from T0 at ${request.offset + at}: ${this.describe(block)}`,
    );
  }

  // Tracking.

  /** The instant of a switch: under the closed gate, all words in place. */
  switched({ change, next }: PendingOperation): void {
    const store = next === null ? undefined : { map: new StoreMap(next.store), disk: next.disk };
    switch (change?.kind) {
      case 'begin':
        this.setStore(store);
        this.#beginSnapshot();
        break;
      case 'next':
        this.setStore(store);
        this.#checkClosedMap(this.memory.maps[change.closedMap]);
        this.#closed = Int32Array.from(this.memory.maps[change.closedMap]);
        this.#beginSnapshot();
        break;
      case 'end':
        this.giveUpTracking();
        break;
      default:
        this.setStore(store);
    }
    this.isSuspended = false;
    for (let block = 0; block < this.blockCount; block++) this.checkBlock(block);
  }

  #beginSnapshot(): void {
    this.t0 = this.imageNow();
    this.mayBeMarked.fill(0);
    // What is held back at the gate, or is done in part, goes on afterwards.
    for (const request of this.#open) if (request.writes.length > 0) this.#mayMark(request);
  }

  /** The list of changes that a sequence ends with: between two images, all of them and nothing without a cause. */
  #checkClosedMap(closed: Int32Array): void {
    const { t0 } = this;
    if (t0 === undefined) throw new Violation('I3: a sequence ended that had not begun');
    const image = this.imageNow();
    for (let block = 0; block < this.blockCount; block++) {
      const start = block * BLOCK_BYTES;
      const end = Math.min(t0.byteLength, start + BLOCK_BYTES);
      const differs = t0.compare(image, start, end, start, end) !== 0;
      const isMarked = isBitSet(closed, block);
      if (differs && !isMarked)
        throw new Violation(`I3: changed, and not in the list of changes: ${this.describe(block)}`);
      if (isMarked && this.mayBeMarked[block] !== 1)
        throw new Violation(`I3: in the list of changes without a cause: ${this.describe(block)}`);
    }
  }

  /** What the closed file is written from is what it was at the switch, however often that is done again. */
  checkClosedAgain(map: 0 | 1): void {
    if (this.memory.maps[map].some((word, i) => word !== this.#closed[i]))
      throw new Violation('I3: the list of changes of an ended sequence was changed after its end');
  }

  giveUpTracking(): void {
    this.setStore(undefined);
    this.t0 = undefined;
    this.isSuspended = false;
  }

  /** What a snapshot that began now would show. */
  imageNow(): Buffer {
    const image = Buffer.from(this.origin.bytes);
    for (let block = 0; block < this.blockCount; block++) {
      if (this.own[block] === 1) image.fill(0, block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
    }
    return image;
  }

  /** Another store, or another part of it, is in force. What leaves it is the user's again, as it is. */
  setStore(store: StoreInForce | undefined): void {
    this.store = store;
    const now = ownBlocks(store?.map.config, this.blockCount);
    for (let block = 0; block < this.blockCount; block++) {
      if (now[block] === this.own[block]) continue;
      // It enters or leaves: to be marked for that (I6).
      this.mayBeMarked[block] = 1;
      const first = block * SECTORS_PER_BLOCK;
      const end = Math.min(this.origin.sectorCount, first + SECTORS_PER_BLOCK);
      for (let sector = first; sector < end; sector++) {
        if (now[block] === 0) this.#givenBack(sector);
        this.#foreign[sector] = 0;
      }
    }
    for (let block = 0; block < this.blockCount; block++) if (now[block] === 1) this.prepared[block] = 0;
    this.own.set(now);
    if (store !== undefined && store.disk !== this.origin) {
      store.disk.onLand = (sector) => this.#landedInStore(sector * SECTOR_BYTES);
    }
  }

  // Checks.

  /** The blocks that the memory says were touched. */
  checkTouched(): void {
    const { touched } = this.memory;
    if (touched.size === 0) return;
    if (!this.isSuspended) for (const block of touched) this.checkBlock(block);
    touched.clear();
  }

  checkAll(): void {
    for (let sector = 0; sector < this.origin.sectorCount; sector++) {
      if (!this.isOwn(sector) && this.prepared[this.#blockOf(sector)] === 0)
        this.checkSector(sector, 'in a check of the whole');
    }
    if (this.isSuspended) return;
    for (let block = 0; block < this.blockCount; block++) this.checkBlock(block);
    if (!this.memory.isBusy()) this.checkCount();
  }

  /** CHANGED is the number of bits. Only while nobody is between the two. */
  checkCount(): void {
    const count = this.memory.get(Word.CHANGED) >>> 0;
    const bits = countBits(this.memory.map);
    if (this.memory.get(Word.MODE) !== Mode.PASSTHROUGH && count !== bits) {
      throw new Violation(`I3: CHANGED is ${count}, and ${bits} bits are set`);
    }
  }

  checkSector(sector: number, when: string): void {
    const value = this.origin.values[sector] ?? 0;
    if (this.registers.allows(sector, value)) return;
    throw new Violation(
      `I1: sector ${sector} holds ${value.toString(16)} ${when}, and may hold ${this.registers.describe(sector)}`,
    );
  }

  checkBlock(block: number): void {
    const { t0, memory } = this;
    if (t0 === undefined) return;
    const start = block * BLOCK_BYTES;
    const end = Math.min(t0.byteLength, start + BLOCK_BYTES);
    const isMarked = isBitSet(memory.map, block);
    const isSnapshot = memory.get(Word.MODE) === Mode.SNAPSHOT;
    if (isMarked) {
      if (this.mayBeMarked[block] !== 1) throw new Violation(`I3: marked without a cause: ${this.describe(block)}`);
      if (isSnapshot && memory.get(Word.FAILED) === 0) this.#checkSaved(block, t0, start, end);
    } else if (this.own[block] === 1) {
      if (isSnapshot && !isZero(t0, start, end))
        throw new Violation(`I6: taken by the store with contents of T0 in it: ${this.describe(block)}`);
    } else if (t0.compare(this.origin.bytes, start, end, start, end) !== 0) {
      throw new Violation(`I2, I3: not marked, and differs from T0: ${this.describe(block)}`);
    }
  }

  #checkSaved(block: number, t0: Buffer, start: number, end: number): void {
    const { store, memory } = this;
    const place = memory.entry(block);
    if (store === undefined || place <= 0 || place >= store.map.config.placeCount) {
      throw new Violation(`I2: marked, and its entry ${place} is no place of the store: ${this.describe(block)}`);
    }
    const { offset } = store.map.locate(place);
    const isSaved = t0.compare(store.disk.bytes, offset, offset + end - start, start, end) === 0;
    if (!isSaved) throw new Violation(`I2: saved at ${place} is not T0: ${this.describe(block)}`);
  }

  #blockOf(sector: number): number {
    return Math.floor(sector / SECTORS_PER_BLOCK);
  }

  #landedOnOrigin(sector: number, io: Io): void {
    const block = this.#blockOf(sector);
    const isOurs = io.owner === 'engine';
    if (isOurs) this.registers.disturb(sector);
    if (isOurs && this.own[block] === 0 && this.prepared[block] === 0)
      throw new Violation(`I1: the engine wrote to sector ${sector}, which is the user's`);
    if (isOurs && this.#foreign[sector] === 1)
      throw new Violation(`I1: the engine wrote to sector ${sector} after a foreign write there was answered`);
    if (!isOurs && this.own[block] === 0) this.checkSector(sector, 'on its way');
    if (this.isSuspended) return;
    if (this.own[block] === 1) this.#landedInStore(sector * SECTOR_BYTES);
    this.checkBlock(block);
  }

  /** Whoever is saved at that place. */
  #landedInStore(offset: number): void {
    const { store, memory } = this;
    if (this.isSuspended || store === undefined || memory.get(Word.MODE) !== Mode.SNAPSHOT) return;
    for (let block = 0; block < this.blockCount; block++) {
      if (!isBitSet(memory.map, block)) continue;
      const place = memory.entry(block);
      const isIt =
        place > 0 &&
        place < store.map.config.placeCount &&
        store.map.locate(place).offset === offset - (offset % BLOCK_BYTES);
      if (isIt) this.checkBlock(block);
    }
  }

  describe(block: number): string {
    const { memory, store } = this;
    const first = block * SECTORS_PER_BLOCK;
    const values = [...this.origin.values.subarray(first, first + SECTORS_PER_BLOCK)].map((value) =>
      value.toString(16),
    );
    const marked = isBitSet(memory.map, block);
    return [
      `block ${block}`,
      marked ? `marked (entry ${memory.entry(block)})` : 'not marked',
      this.own[block] === 1 ? "the store's own" : 'user',
      `mode ${memory.get(Word.MODE)}`,
      `failed ${memory.get(Word.FAILED)}`,
      `store ${store?.disk.name ?? 'none'}`,
      `origin [${values.join(' ')}]`,
    ].join(', ');
  }
}

/** By block: whether it belongs to a store on the origin. */
export function ownBlocks(config: StoreConfig | undefined, blockCount: number): Uint8Array {
  const own = new Uint8Array(blockCount);
  if (config?.kind !== 'origin') return own;
  for (const { block, count } of config.extents) own.fill(1, block, block + count);
  return own;
}
