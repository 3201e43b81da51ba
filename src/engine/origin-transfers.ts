/** Requests that are one transfer with the origin: nothing has to be done before it. */
import type { BlockDevice } from '../block/device.js';
import type { Pending } from '../frontend/fuse/session.js';
import { DATA_OFFSET, type WireBuffer } from '../frontend/fuse/wire.js';
import type { RequestContext, Tracer } from '../tracer/tracer.js';

/** Between the data area of a request's buffer and the origin. */
abstract class OriginTransfer implements Pending {
  readonly isTransfer = true;
  abstract readonly isWrite: boolean;
  readonly fd: number;
  readonly address: number;
  readonly lengthBytes: number;
  readonly offset: number;
  protected readonly buffer: WireBuffer;

  constructor(fd: number, buffer: WireBuffer, lengthBytes: number, offset: number) {
    this.fd = fd;
    this.address = buffer.address + DATA_OFFSET;
    this.lengthBytes = lengthBytes;
    this.offset = offset;
    this.buffer = buffer;
  }

  abstract done(): undefined;
  abstract again(): undefined;

  isOver(): boolean {
    return true;
  }

  sleep(): void {}
}

export class OriginRead extends OriginTransfer {
  readonly isWrite = false;
  readonly #origin: BlockDevice;

  constructor(origin: BlockDevice, fd: number, buffer: WireBuffer, lengthBytes: number, offset: number) {
    super(fd, buffer, lengthBytes, offset);
    this.#origin = origin;
  }

  done(): undefined {}

  again(): undefined {
    this.#origin.read(this.buffer, DATA_OFFSET, this.lengthBytes, this.offset);
  }
}

/** A write that {@link Tracer.begin} has begun: its end follows the transfer, whatever came of it. */
export class OriginWrite extends OriginTransfer {
  readonly isWrite = true;
  readonly #tracer: Tracer;
  readonly #context: RequestContext;

  constructor(
    tracer: Tracer,
    context: RequestContext,
    fd: number,
    buffer: WireBuffer,
    lengthBytes: number,
    offset: number,
  ) {
    super(fd, buffer, lengthBytes, offset);
    this.#tracer = tracer;
    this.#context = context;
  }

  done(): undefined {
    this.#tracer.end(this.#context);
  }

  again(): undefined {
    try {
      this.#tracer.origin.write(this.buffer, DATA_OFFSET, this.lengthBytes, this.offset);
    } finally {
      this.#tracer.end(this.#context);
    }
  }
}
