/** Requests that are one transfer with the origin: nothing has to be done before it. */
import type { BlockDevice } from '../block/device.js';
import type { Pending } from '../frontend/fuse/session.js';
import { DATA_OFFSET, type WireBuffer } from '../frontend/fuse/wire.js';
import type { RequestContext, Tracer } from '../tracer/tracer.js';

export class OriginRead implements Pending {
  readonly isTransfer = true;
  readonly isWrite = false;
  readonly fd: number;
  readonly address: number;
  readonly lengthBytes: number;
  readonly offset: number;
  readonly #origin: BlockDevice;
  readonly #buffer: WireBuffer;

  constructor(origin: BlockDevice, fd: number, buffer: WireBuffer, lengthBytes: number, offset: number) {
    this.fd = fd;
    this.address = buffer.address + DATA_OFFSET;
    this.lengthBytes = lengthBytes;
    this.offset = offset;
    this.#origin = origin;
    this.#buffer = buffer;
  }

  done(): undefined {}

  isOver(): boolean {
    return true;
  }

  sleep(): void {}

  again(): undefined {
    this.#origin.read(this.#buffer, DATA_OFFSET, this.lengthBytes, this.offset);
  }
}

/** A write that {@link Tracer.begin} has begun: its end follows the transfer, whatever came of it. */
export class OriginWrite implements Pending {
  readonly isTransfer = true;
  readonly isWrite = true;
  readonly fd: number;
  readonly address: number;
  readonly lengthBytes: number;
  readonly offset: number;
  readonly #tracer: Tracer;
  readonly #context: RequestContext;
  readonly #buffer: WireBuffer;

  constructor(
    tracer: Tracer,
    context: RequestContext,
    fd: number,
    buffer: WireBuffer,
    lengthBytes: number,
    offset: number,
  ) {
    this.fd = fd;
    this.address = buffer.address + DATA_OFFSET;
    this.lengthBytes = lengthBytes;
    this.offset = offset;
    this.#tracer = tracer;
    this.#context = context;
    this.#buffer = buffer;
  }

  done(): undefined {
    this.#tracer.end(this.#context);
  }

  isOver(): boolean {
    return true;
  }

  sleep(): void {}

  again(): undefined {
    try {
      this.#tracer.origin.write(this.#buffer, DATA_OFFSET, this.lengthBytes, this.offset);
    } finally {
      this.#tracer.end(this.#context);
    }
  }
}
