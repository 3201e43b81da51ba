/**
 * Small requests of one worker whose transfers the kernel does at the same time.
 *
 * With one request at a time a worker sleeps and wakes for each; under a queue of them that costs more than all the rest. So
 * as long as more than one is waiting, they are taken, their transfers submitted together, and each is answered when it is
 * complete. What must be done before a write (marking, saving) is done before, in the order in which they came; who has
 * to wait for others drains the batch first, so that nothing that others wait for is kept here.
 *
 * Each request has a buffer that begins at a position of its own in one locked arena. A buffer must be able to take the largest
 * request, so they overlap: the kernel writes no more than the request, whose length then says where the next may begin.
 */
import {
  type Begun,
  beginOne,
  endOne,
  type OnError,
  type Served,
  type SessionTarget,
} from '../frontend/fuse/session.js';
import { BUFFER_BYTES, DATA_OFFSET, WireBuffer } from '../frontend/fuse/wire.js';
import { AioQueue } from '../sys/aio.js';
import { assert } from '../sys/errors.js';
import * as libc from '../sys/libc.js';

/** Transfers of one worker at a time. */
const DEPTH = 32;
/** A header's page, and the data of the smallest request. */
const POSITION_BYTES = 8192;
const POSITIONS = 128;
/** Of one worker. */
export const ARENA_BYTES = POSITIONS * POSITION_BYTES + BUFFER_BYTES;

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
  /** Slots that are prepared and not submitted, in order. */
  #prepared: number[] = [];

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
   * Takes what waits at a source, as much as there is room for, and begins it. Returns how many requests there were.
   */
  gather(source: S): number {
    // Once in so many requests all have to end: the arena begins anew.
    if (this.#position >= POSITIONS) this.drain();
    let taken = 0;
    for (; ; taken++) {
      if (this.count === 0) this.#position = 0;
      if (this.#free.length === 0 || this.#position >= POSITIONS) break;
      const buffer = this.#bufferAt(this.#position);
      const served = beginOne(source.fd, source.target, buffer, this.#onError(source));
      if (served === 'empty') break;
      if (typeof served === 'string') this.#served(source, served);
      else this.#begin({ source, buffer, begun: served });
      if (served === 'ended') break;
    }
    this.#submit();
    return taken;
  }

  /** Answers at least one of the requests in hand, waiting for it, and whatever else is complete. */
  reap(): void {
    if (this.count === 0) return;
    this.#queue?.reap(1, DEPTH, (slot, result) => this.#end(slot, result));
  }

  /** Answers everything in hand. */
  drain(): void {
    this.#submit();
    while (this.count > 0) this.reap();
  }

  #begin(request: InHand<S>): void {
    const slot = this.#free.pop();
    assert(slot !== undefined, 'there is a free slot');
    const { transfer } = request.begun;
    this.#inHand[slot] = request;
    this.#prepared.push(slot);
    const { isWrite, fd, lengthBytes, offset } = transfer;
    this.#queue?.prepare(slot, isWrite, fd, request.buffer.address + DATA_OFFSET, lengthBytes, offset);
    this.#position += Math.ceil((DATA_OFFSET + lengthBytes) / POSITION_BYTES);
  }

  /** What the kernel does not take is done in this thread. */
  #submit(): void {
    const prepared = this.#prepared;
    if (prepared.length === 0) return;
    this.#prepared = [];
    const taken = this.#queue?.submit() ?? 0;
    for (const slot of prepared.slice(taken)) this.#end(slot, -1);
  }

  #end(slot: number, result: number): void {
    const request = this.#inHand[slot];
    assert(request !== undefined, 'a completion is of a request in hand');
    this.#inHand[slot] = undefined;
    const { source, buffer, begun } = request;
    const served = endOne(source.fd, buffer, begun, result, this.#onError(source));
    this.#free.push(slot);
    this.#served(source, served);
  }

  #served(source: S, served: Served): void {
    if (served === 'ended') this.#onEnd(source);
  }

  #bufferAt(position: number): WireBuffer {
    const buffer = this.#buffers[position];
    assert(buffer !== undefined, 'the position is in the arena');
    return buffer;
  }
}
