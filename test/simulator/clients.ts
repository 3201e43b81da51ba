/** Those who use the volume and its snapshot: what they ask, and what is not answered yet. */
import { BLOCK_BYTES } from '../../src/tracer/layout.js';
import { type Random, SECTOR_BYTES, shuffle } from './disk.js';
import type { Model } from './model.js';
import { type Request, type RequestKind, SECTORS_MAX } from './requests.js';

export interface RequestFields {
  kind: RequestKind;
  offset: number;
  lengthBytes: number;
  unmap?: boolean;
  isBlank?: boolean;
  isForeign?: boolean;
}

const SECTORS_PER_BLOCK = BLOCK_BYTES / SECTOR_BYTES;

export class Clients {
  /** Sent and not taken by a worker. */
  readonly queue: Request[] = [];
  readonly unanswered = new Set<Request>();
  /** Nobody asks for anything new; what a helper has to write still goes. */
  isQuiet = false;
  /** By block: of a file that is or becomes a store, where no honest client writes. */
  readonly reserved: Uint8Array;
  issued = 0;
  readonly #model: Model;
  readonly #random: Random;
  #id = 0;

  constructor(model: Model, random: Random) {
    this.#model = model;
    this.#random = random;
    this.reserved = new Uint8Array(model.blockCount);
  }

  send(fields: RequestFields): Request {
    const request: Request = {
      id: ++this.#id,
      unmap: false,
      isBlank: false,
      isForeign: false,
      ...fields,
      writes: [],
      start: 0,
      tries: 0,
      isAnswered: false,
    };
    this.queue.push(request);
    this.unanswered.add(request);
    this.#model.begin(request);
    return request;
  }

  /** A request of somebody, of a kind that now makes sense; so many of 100 go into the store. */
  sendAny(hasSnapshot: boolean, foreignPercent: number): void {
    const random = this.#random;
    this.issued++;
    if (random(100) < foreignPercent) {
      this.#sendForeign();
      return;
    }
    const dice = random(100);
    if (dice < 6) {
      this.send({ kind: 'flush', offset: 0, lengthBytes: 0 });
      return;
    }
    if (hasSnapshot && dice < 35) {
      this.send({ kind: 'snapshotRead', ...this.#anyRange(24) });
      return;
    }
    if (dice < 42) {
      this.send({ kind: 'read', ...this.#anyRange(8) });
      return;
    }
    const range = this.#writableRange();
    if (range === undefined) return;
    if (dice < 55) this.send({ kind: 'zero', unmap: random(2) === 0, ...range });
    else this.send({ kind: 'write', ...range });
  }

  #anyRange(blocksMax: number): { offset: number; lengthBytes: number } {
    const random = this.#random;
    const sectorCount = this.#model.origin.sectorCount;
    const first = random(sectorCount);
    const count = Math.min(sectorCount - first, 1 + random(blocksMax * SECTORS_PER_BLOCK));
    return { offset: first * SECTOR_BYTES, lengthBytes: count * SECTOR_BYTES };
  }

  /** A range with no block of a store's file in it. Mostly where others write as well. */
  #writableRange(): { offset: number; lengthBytes: number } | undefined {
    const random = this.#random;
    const { sectorCount } = this.#model.origin;
    for (let attempt = 0; attempt < 20; attempt++) {
      const first = random(random(2) === 0 ? Math.min(sectorCount, 160) : sectorCount);
      const longest = random(8) === 0 ? SECTORS_MAX : random(2) === 0 ? 40 : 8;
      let count = 0;
      const wanted = 1 + random(longest);
      while (count < wanted && first + count < sectorCount && this.#isWritable(first + count)) count++;
      if (count > 0) return { offset: first * SECTOR_BYTES, lengthBytes: count * SECTOR_BYTES };
    }
    return undefined;
  }

  #isWritable(sector: number): boolean {
    return this.reserved[Math.floor(sector / SECTORS_PER_BLOCK)] === 0;
  }

  /** Somebody writes into the store, and perhaps beyond it. */
  #sendForeign(): void {
    const random = this.#random;
    const own = [...this.#model.own.keys()].filter((block) => this.#model.own[block] === 1);
    const block = random(2) === 0 ? own[random(Math.max(1, own.length))] : this.#model.lastAppended(1 + random(5));
    if (block === undefined || this.#model.own[block] !== 1) return;
    const first = block * SECTORS_PER_BLOCK + random(SECTORS_PER_BLOCK);
    const count = 1 + random(SECTORS_PER_BLOCK);
    let end = first;
    while (end < first + count && this.#model.own[Math.floor(end / SECTORS_PER_BLOCK)] === 1) end++;
    const kind = random(4) === 0 ? 'zero' : 'write';
    this.send({ kind, isForeign: true, offset: first * SECTOR_BYTES, lengthBytes: (end - first) * SECTOR_BYTES });
  }

  take(): Request | undefined {
    const at = this.#random(Math.max(1, this.queue.length));
    const [request] = this.queue.splice(at, 1);
    if (request !== undefined) request.tries++;
    return request;
  }

  answer(request: Request): void {
    request.isAnswered = true;
    this.unanswered.delete(request);
  }

  /** The engine has died: what it did not answer is sent again, in any order. */
  sendAgain(): void {
    this.queue.length = 0;
    this.queue.push(...this.unanswered);
    shuffle(this.queue, this.#random);
  }

  /** The machine has died. */
  drop(): void {
    this.queue.length = 0;
    this.unanswered.clear();
  }

  hasInHand(kinds: (request: Request) => boolean): boolean {
    for (const request of this.unanswered) if (kinds(request)) return true;
    return false;
  }

  /** Whether somebody still waits for a write into one of these blocks. */
  touches(blocks: ReadonlySet<number>): boolean {
    return this.hasInHand(({ kind, offset, lengthBytes }) => {
      if (kind !== 'write' && kind !== 'zero') return false;
      const last = Math.floor((offset + lengthBytes - 1) / BLOCK_BYTES);
      for (let block = Math.floor(offset / BLOCK_BYTES); block <= last; block++) if (blocks.has(block)) return true;
      return false;
    });
  }
}
