/**
 * Small requests of one worker whose transfers the kernel does at the same time.
 *
 * With one request at a time a worker sleeps and wakes for each transfer; under a queue of them that costs more than all the
 * rest. So as long as more than one is waiting, they are taken, their transfers are submitted together, and each goes on when
 * its own is complete: with its next transfer (a first overwrite has three), or with its answer. Appends to the store that lie
 * side by side are written as one.
 *
 * Nothing here waits for one request in particular: what it waits for may be held by another one in hand. A request that has
 * to wait (for a claim, for the gate) is looked at again whenever something has ended, and only when no transfer is under way
 * does the thread sleep, shortly.
 *
 * Each request has a buffer that begins at a position of its own in one locked arena. A buffer must be able to take the largest
 * request, so they overlap: the kernel writes no more than the request, whose length then says where the next may begin.
 */
import {
  type Begun,
  beginOne,
  goOn,
  type OnError,
  type Pending,
  type Served,
  type SessionTarget,
} from '../frontend/fuse/session.js';
import { BUFFER_BYTES, DATA_OFFSET, WireBuffer } from '../frontend/fuse/wire.js';
import { AioQueue } from '../sys/aio.js';
import { assert } from '../sys/errors.js';
import * as libc from '../sys/libc.js';

/** Requests of one worker at a time. */
export const DEPTH = 32;
/** A header's page, and the data of the smallest request. */
const POSITION_BYTES = 8192;
const POSITIONS = 128;
/** Of one worker. */
export const ARENA_BYTES = POSITIONS * POSITION_BYTES + BUFFER_BYTES;
/** All in hand wait: they are looked at again after this time, whatever wakes the thread. */
const SLEEP_MS = 1;

/** Where requests come from. */
export interface Source {
  readonly fd: number;
  readonly target: SessionTarget;
}

interface InHand<S extends Source> {
  source: S;
  buffer: WireBuffer;
  begun: Begun;
}

export class Batch<S extends Source> {
  readonly #queue: AioQueue | undefined;
  readonly #buffers: readonly WireBuffer[];
  readonly #inHand: Array<InHand<S> | undefined> = new Array(DEPTH).fill(undefined);
  readonly #free: number[] = Array.from({ length: DEPTH }, (_, slot) => slot);
  readonly #onError: (source: S) => OnError;
  readonly #onEnd: (source: S) => void;
  #position = 0;
  /** Slots whose transfer is to be submitted, in order. */
  #prepared: number[] = [];
  /** By slot: those whose transfer is one with that of the slot, which comes first; undefined: it is alone. */
  readonly #groups: Array<readonly number[] | undefined> = new Array(DEPTH).fill(undefined);
  /** Transfers in the kernel's hands. */
  #underWay = 0;
  /** Slots whose request waits for others, the oldest first. */
  #waiting: number[] = [];

  /** `onEnd`: the source has ended. */
  constructor(onError: (source: S) => OnError, onEnd: (source: S) => void) {
    this.#queue = AioQueue.open(DEPTH);
    const arena = libc.mapLocked(ARENA_BYTES);
    this.#buffers = Array.from(
      { length: POSITIONS },
      (_, i) => new WireBuffer(arena.bytes, arena.address, i * POSITION_BYTES),
    );
    this.#onError = onError;
    this.#onEnd = onEnd;
  }

  /** Requests that were taken and are not answered. */
  get count(): number {
    return DEPTH - this.#free.length;
  }

  /** For requests that are served one at a time: only while nothing is in hand. */
  get buffer(): WireBuffer {
    assert(this.count === 0, 'the buffer is free while nothing is in hand');
    return this.#bufferAt(0);
  }

  /** Whether the kernel can do this at all. */
  get isPossible(): boolean {
    return this.#queue !== undefined;
  }

  /**
   * Takes what waits at a source, as much as there is room for, and begins it. Returns how many requests there were. One that
   * was served from start to end is the last: other sources, and what is in hand, get their turn in between.
   */
  gather(source: S): number {
    // Once in so many requests all have to end: the arena begins anew.
    if (this.#position >= POSITIONS) this.drain();
    let taken = 0;
    for (;;) {
      if (this.count === 0) this.#position = 0;
      if (this.#free.length === 0 || this.#position >= POSITIONS) break;
      const buffer = this.#bufferAt(this.#position);
      const served = beginOne(source.fd, source.target, buffer, this.#onError(source));
      if (served === 'empty') break;
      taken++;
      if (typeof served === 'string') {
        this.#served(source, served);
        break;
      }
      this.#begin({ source, buffer, begun: served });
    }
    this.#submit();
    return taken;
  }

  /**
   * Lets all transfers end, and what follows them: to be called before this thread does something that takes long. What still
   * waits then, waits for others.
   */
  settle(): void {
    this.#submit();
    while (this.#underWay > 0) {
      this.#reap();
      this.#lookAgain();
      this.#submit();
    }
  }

  /** Lets requests in hand get on, waiting until one of them can. `sleep`: what to do while all of them wait for others. */
  advance(sleep?: (timeoutMs: number) => void): void {
    if (this.count === 0) return;
    this.#submit();
    if (this.#underWay > 0) this.#reap();
    else if (!this.#lookAgain()) (sleep ?? this.#sleep)(SLEEP_MS);
    this.#lookAgain();
    this.#submit();
  }

  /** Answers everything in hand. */
  drain(): void {
    while (this.count > 0) this.advance();
  }

  #begin(request: InHand<S>): void {
    const slot = this.#free.pop();
    assert(slot !== undefined, 'there is a free slot');
    this.#inHand[slot] = request;
    this.#position += Math.ceil((DATA_OFFSET + request.begun.lengthBytes) / POSITION_BYTES);
    this.#put(slot, request.begun);
  }

  /** Where a request belongs that has something before it. */
  #put(slot: number, { next }: Begun): void {
    if (next.isTransfer) this.#prepared.push(slot);
    else this.#waiting.push(slot);
  }

  /** What the kernel does not take is done in this thread. */
  #submit(): void {
    while (this.#prepared.length > 0) {
      const slots = this.#prepared;
      this.#prepared = [];
      const leads: number[] = [];
      for (let at = 0; at < slots.length; ) {
        const lead = slots[at] ?? 0;
        const end = this.#endOfGroup(slots, at);
        this.#prepare(lead, end === at + 1 ? undefined : slots.slice(at, end));
        leads.push(lead);
        at = end;
      }
      const taken = this.#queue?.submit() ?? 0;
      this.#underWay += taken;
      for (let at = taken; at < leads.length; at++) this.#transferred(leads[at] ?? 0, -1);
    }
  }

  /** Writes of the same file that lie one behind another are one transfer. */
  #endOfGroup(slots: readonly number[], from: number): number {
    let last = this.#pendingOf(slots[from]);
    let end = from + 1;
    for (; last.isWrite && end < slots.length; end++) {
      const next = this.#pendingOf(slots[end]);
      if (!next.isWrite || next.fd !== last.fd || next.offset !== last.offset + last.lengthBytes) break;
      last = next;
    }
    return end;
  }

  #prepare(lead: number, group: readonly number[] | undefined): void {
    const { isWrite, fd, address, lengthBytes, offset } = this.#pendingOf(lead);
    this.#groups[lead] = group;
    if (group === undefined) this.#queue?.prepare(lead, isWrite, fd, address, lengthBytes, offset);
    else {
      const pieces = group.map((slot) => this.#pendingOf(slot));
      this.#queue?.prepareGathered(lead, fd, pieces, offset);
    }
  }

  #reap(): void {
    this.#queue?.reap(1, DEPTH, (lead, result) => {
      this.#underWay--;
      this.#transferred(lead, result);
    });
  }

  /** A transfer has ended: wholly, or each that took part in it does its own again. */
  #transferred(lead: number, result: number): void {
    const group = this.#groups[lead];
    if (group === undefined) {
      this.#goOn(lead, result === this.#pendingOf(lead).lengthBytes);
      return;
    }
    let wantedBytes = 0;
    for (const slot of group) wantedBytes += this.#pendingOf(slot).lengthBytes;
    for (const slot of group) this.#goOn(slot, result === wantedBytes);
  }

  #pendingOf(slot: number | undefined): Pending {
    return this.#at(slot ?? -1).begun.next;
  }

  /** Lets go on what waits no longer. False: nothing. */
  #lookAgain(): boolean {
    if (this.#waiting.length === 0) return false;
    let hasGone = false;
    for (const slot of this.#waiting.splice(0)) {
      if (!this.#pendingOf(slot).isOver()) {
        this.#waiting.push(slot);
        continue;
      }
      hasGone = true;
      this.#goOn(slot, true);
    }
    return hasGone;
  }

  readonly #sleep = (timeoutMs: number): void => {
    const [slot] = this.#waiting;
    if (slot !== undefined) this.#pendingOf(slot).sleep(timeoutMs);
  };

  #goOn(slot: number, isWhole: boolean): void {
    const { source, buffer, begun } = this.#at(slot);
    const served = goOn(source.fd, buffer, begun, isWhole, this.#onError(source));
    if (served === undefined) {
      this.#put(slot, begun);
      return;
    }
    this.#inHand[slot] = undefined;
    this.#free.push(slot);
    this.#served(source, served);
  }

  #served(source: S, served: Served): void {
    if (served === 'ended') this.#onEnd(source);
  }

  #at(slot: number): InHand<S> {
    const request = this.#inHand[slot];
    assert(request !== undefined, 'the slot has a request in hand');
    return request;
  }

  #bufferAt(position: number): WireBuffer {
    const buffer = this.#buffers[position];
    assert(buffer !== undefined, 'the position is in the arena');
    return buffer;
  }
}
