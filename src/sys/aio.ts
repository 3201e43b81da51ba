/**
 * Linux's asynchronous I/O (io_submit(2)): many transfers of one thread at a time, two system calls for all of them.
 *
 * Chosen over io_uring for what happens to a process that is killed: it is not gone before every transfer that it has
 * submitted is complete (exit_aio() in fs/aio.c). So nothing that a dead engine had in hand can land after its successor's
 * answers. A ring is taken down behind the process's back instead.
 */
import { aioDestroy, aioGetEvents, aioSetup, aioSubmit } from './aio-calls.js';
import { assert } from './errors.js';
import * as libc from './libc.js';

/** struct iocb and struct io_event, linux/aio_abi.h. */
const IOCB_BYTES = 64;
const EVENT_BYTES = 32;
const IOCB_CMD_PREAD = 0;
const IOCB_CMD_PWRITE = 1;
const IOCB_CMD_PWRITEV = 8;
/** struct iovec. */
const VECTOR_BYTES = 16;
const HALF = 0x1_0000_0000;

/** Memory that takes part in a transfer. */
export interface Piece {
  readonly address: number;
  readonly lengthBytes: number;
}

/** Transfers in slots, which the caller numbers: one in hand at a time in each. */
export class AioQueue {
  readonly #context: number;
  readonly #memory: libc.Mapping;
  readonly #view: DataView;
  readonly #address: number;
  readonly #pointersAt: number;
  readonly #eventsAt: number;
  readonly #vectorsAt: number;
  #prepared = 0;
  #vectors = 0;

  private constructor(context: number, slots: number) {
    this.#context = context;
    this.#pointersAt = slots * IOCB_BYTES;
    this.#eventsAt = this.#pointersAt + slots * 8;
    this.#vectorsAt = this.#eventsAt + slots * EVENT_BYTES;
    const memory = libc.mapLocked(this.#vectorsAt + slots * VECTOR_BYTES);
    this.#memory = memory;
    this.#view = new DataView(memory.bytes);
    this.#address = memory.address;
  }

  /** A queue for this thread; undefined where the kernel has none, or no more (fs.aio-max-nr). */
  static open(slots: number): AioQueue | undefined {
    const context = aioSetup(slots);
    return context === undefined ? undefined : new AioQueue(context, slots);
  }

  /** Gives the context and its memory back. Everything must be complete; nothing of this may be used any more. */
  close(): void {
    aioDestroy(this.#context);
    libc.unmap(this.#memory);
  }

  /** Prepares a transfer; {@link submit} begins it. */
  prepare(slot: number, isWrite: boolean, fd: number, address: number, lengthBytes: number, offset: number): void {
    this.#prepare(slot, isWrite ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD, fd, address, lengthBytes, offset);
  }

  /**
   * Prepares one write of several pieces of memory, one behind another from `offset` on. Before the next {@link submit} as
   * many pieces in all as there are slots: the kernel has copied the list by then.
   */
  prepareGathered(slot: number, fd: number, pieces: readonly Piece[], offset: number): void {
    const from = this.#vectorsAt + this.#vectors * VECTOR_BYTES;
    for (const { address, lengthBytes } of pieces) {
      const at = this.#vectorsAt + this.#vectors++ * VECTOR_BYTES;
      setU64(this.#view, at, address);
      setU64(this.#view, at + 8, lengthBytes);
    }
    assert(this.#vectorsAt + this.#vectors * VECTOR_BYTES <= this.#view.byteLength, 'all pieces have room');
    this.#prepare(slot, IOCB_CMD_PWRITEV, fd, this.#address + from, pieces.length, offset);
  }

  #prepare(slot: number, command: number, fd: number, address: number, length: number, offset: number): void {
    const view = this.#view;
    const at = slot * IOCB_BYTES;
    view.setUint32(at, slot, true);
    view.setUint16(at + 16, command, true);
    view.setUint32(at + 20, fd, true);
    setU64(view, at + 24, address);
    setU64(view, at + 32, length);
    setU64(view, at + 40, offset);
    setU64(view, this.#pointersAt + this.#prepared * 8, this.#address + at);
    this.#prepared++;
  }

  /** Begins what was prepared, in order; returns how many of them the kernel took. The others are forgotten. */
  submit(): number {
    const count = this.#prepared;
    this.#prepared = 0;
    this.#vectors = 0;
    let taken = 0;
    while (taken < count) {
      const result = aioSubmit(this.#context, count - taken, this.#address + this.#pointersAt + taken * 8);
      if (result <= 0) break;
      taken += result;
    }
    return taken;
  }

  /** Waits until at least `least` transfers are complete; tells each. `on` may prepare new ones. */
  reap(least: number, most: number, on: (slot: number, result: number) => void): void {
    const count = aioGetEvents(this.#context, least, most, this.#address + this.#eventsAt);
    for (let i = 0; i < count; i++) {
      const at = this.#eventsAt + i * EVENT_BYTES;
      // Results are far below 2^31, in either direction.
      on(this.#view.getUint32(at, true), this.#view.getInt32(at + 16, true));
    }
  }
}

function setU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value % HALF, true);
  view.setUint32(at + 4, Math.floor(value / HALF), true);
}
