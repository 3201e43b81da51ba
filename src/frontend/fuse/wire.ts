/**
 * The FUSE protocol on the wire, as far as a single file needs it (include/uapi/linux/fuse.h, protocol 7.31 and later).
 *
 * A request is one read of the descriptor: a 40-byte header, then the operation's own structure, then data. A reply is one
 * write: a 16-byte header, then data. All little-endian on the machines that we run on (the kernel's own byte order).
 *
 * The buffer is laid out so that the data of a WRITE request, and of a READ reply, begin at {@link DATA_OFFSET}, a multiple
 * of 4096: they go to and from an O_DIRECT device as they are.
 *
 *     request   DATA_OFFSET - 80: in header (40), write_in (40) | DATA_OFFSET: data
 *     reply     DATA_OFFSET - 16: out header (16)               | DATA_OFFSET: data
 */

export const DATA_OFFSET = 4096;
export const IN_HEADER_BYTES = 40;
const WRITE_IN_BYTES = 40;
export const REQUEST_OFFSET = DATA_OFFSET - IN_HEADER_BYTES - WRITE_IN_BYTES;
const BODY_OFFSET = REQUEST_OFFSET + IN_HEADER_BYTES;
export const OUT_HEADER_BYTES = 16;
export const REPLY_OFFSET = DATA_OFFSET - OUT_HEADER_BYTES;

export const MAX_TRANSFER_BYTES = 1_048_576;
/** What one read of the descriptor must be able to take: headers and the largest WRITE. */
export const REQUEST_BYTES_MAX = IN_HEADER_BYTES + WRITE_IN_BYTES + MAX_TRANSFER_BYTES;
export const BUFFER_BYTES = DATA_OFFSET + MAX_TRANSFER_BYTES + 4096;

export const Opcode = {
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  FLUSH: 25,
  INIT: 26,
  INTERRUPT: 36,
  DESTROY: 38,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
} as const;

const KERNEL_MINOR_MIN = 31;
const INIT = {
  ASYNC_READ: 1,
  BIG_WRITES: 1 << 5,
  ASYNC_DIO: 1 << 15,
  MAX_PAGES: 1 << 22,
  INIT_EXT: 1 << 30,
} as const;
const INIT2_HAS_RESEND = 1 << 7;
const FOPEN_DIRECT_IO = 1;
const FOPEN_PARALLEL_DIRECT_WRITES = 64;
const MODE_REGULAR = 0o100000;
/** Requests in flight that the kernel may have; the loop driver's queue is 128 deep. */
const MAX_BACKGROUND = 128;
const ROOT_NODE = 1;

export interface RequestHeader {
  lengthBytes: number;
  opcode: number;
  /** Kept as two halves: 64 bits of which the highest marks a request that was sent again. */
  uniqueLow: number;
  uniqueHigh: number;
}

/** A worker's buffer with typed access to the protocol's fields. */
export class WireBuffer {
  readonly bytes: Uint8Array;
  readonly address: number;
  readonly #view: DataView;

  /** `start`: where it begins in `bytes`, which lie at `address`. */
  constructor(bytes: ArrayBuffer, address: number, start = 0) {
    this.bytes = new Uint8Array(bytes, start, BUFFER_BYTES);
    this.address = address + start;
    this.#view = new DataView(bytes, start, BUFFER_BYTES);
  }

  /** Decodes the header of a request of `received` bytes; undefined when it is not one. */
  decodeHeader(received: number): RequestHeader | undefined {
    if (received < IN_HEADER_BYTES) return undefined;
    const header = {
      lengthBytes: this.#u32(REQUEST_OFFSET),
      opcode: this.#u32(REQUEST_OFFSET + 4),
      uniqueLow: this.#u32(REQUEST_OFFSET + 8),
      uniqueHigh: this.#u32(REQUEST_OFFSET + 12),
    };
    return header.lengthBytes === received ? header : undefined;
  }

  /** fuse_read_in and fuse_write_in begin alike: fh, offset, size. */
  decodeTransfer(): { offset: number; lengthBytes: number } {
    return { offset: this.#u64(BODY_OFFSET + 8), lengthBytes: this.#u32(BODY_OFFSET + 16) };
  }

  /** fuse_fallocate_in: fh, offset, length, mode. */
  decodeFallocate(): { offset: number; lengthBytes: number; mode: number } {
    return {
      offset: this.#u64(BODY_OFFSET + 8),
      lengthBytes: this.#u64(BODY_OFFSET + 16),
      mode: this.#u32(BODY_OFFSET + 24),
    };
  }

  /** fuse_init_in: major, minor, max_readahead, flags, flags2; the last is not there before protocol 7.36. */
  decodeInit(header: RequestHeader): { major: number; minor: number; flags: number; flags2: number } {
    return {
      major: this.#u32(BODY_OFFSET),
      minor: this.#u32(BODY_OFFSET + 4),
      flags: this.#u32(BODY_OFFSET + 12),
      flags2: WireBuffer.holds(header, 20) ? this.#u32(BODY_OFFSET + 16) : 0,
    };
  }

  /** Whether a request of this length can hold an operation's structure of `bodyBytes`. */
  static holds(header: RequestHeader, bodyBytes: number): boolean {
    return header.lengthBytes >= IN_HEADER_BYTES + bodyBytes;
  }

  /** Writes the reply's header; returns the whole reply's length. */
  encodeReply(header: RequestHeader, errno: number, dataBytes: number): number {
    const lengthBytes = OUT_HEADER_BYTES + dataBytes;
    this.#view.setUint32(REPLY_OFFSET, lengthBytes, true);
    this.#view.setInt32(REPLY_OFFSET + 4, -errno, true);
    this.#view.setUint32(REPLY_OFFSET + 8, header.uniqueLow, true);
    this.#view.setUint32(REPLY_OFFSET + 12, header.uniqueHigh, true);
    return lengthBytes;
  }

  /** fuse_init_out; undefined when the kernel's protocol is older than we can speak. */
  encodeInit(offered: { major: number; minor: number; flags: number; flags2: number }): number | undefined {
    if (offered.major !== 7 || offered.minor < KERNEL_MINOR_MIN) return undefined;
    const wanted = INIT.ASYNC_READ | INIT.BIG_WRITES | INIT.ASYNC_DIO | INIT.MAX_PAGES | INIT.INIT_EXT;
    const hasExtension = (offered.flags & INIT.INIT_EXT) !== 0;
    const at = DATA_OFFSET;
    this.bytes.fill(0, at, at + 64);
    this.#view.setUint32(at, 7, true);
    this.#view.setUint32(at + 4, Math.min(offered.minor, 40), true);
    this.#view.setUint32(at + 8, MAX_TRANSFER_BYTES, true);
    this.#view.setUint32(at + 12, (offered.flags & wanted) >>> 0, true);
    this.#view.setUint16(at + 16, MAX_BACKGROUND, true);
    this.#view.setUint16(at + 18, MAX_BACKGROUND, true);
    this.#view.setUint32(at + 20, MAX_TRANSFER_BYTES, true);
    this.#view.setUint32(at + 24, 1, true);
    this.#view.setUint16(at + 28, MAX_TRANSFER_BYTES / 4096, true);
    this.#view.setUint32(at + 32, hasExtension ? (offered.flags2 & INIT2_HAS_RESEND) >>> 0 : 0, true);
    return 64;
  }

  /** fuse_attr_out for the one file there is. */
  encodeAttributes(sizeBytes: number, readOnly: boolean): number {
    const at = DATA_OFFSET;
    this.bytes.fill(0, at, at + 104);
    this.#setU64(at, 3600);
    this.#setU64(at + 16, ROOT_NODE);
    this.#setU64(at + 24, sizeBytes);
    this.#setU64(at + 32, Math.floor(sizeBytes / 512));
    this.#view.setUint32(at + 76, MODE_REGULAR + (readOnly ? 0o400 : 0o600), true);
    this.#view.setUint32(at + 80, 1, true);
    this.#view.setUint32(at + 96, 4096, true);
    return 104;
  }

  /** fuse_open_out: every read and write comes to us, several at once. */
  encodeOpen(): number {
    const at = DATA_OFFSET;
    this.bytes.fill(0, at, at + 16);
    this.#view.setUint32(at + 8, FOPEN_DIRECT_IO + FOPEN_PARALLEL_DIRECT_WRITES, true);
    return 16;
  }

  /** fuse_write_out. */
  encodeWritten(lengthBytes: number): number {
    this.#view.setUint32(DATA_OFFSET, lengthBytes, true);
    this.#view.setUint32(DATA_OFFSET + 4, 0, true);
    return 8;
  }

  /** fuse_statfs_out. The loop driver takes its discard granularity from the block size. */
  encodeStatfs(sizeBytes: number): number {
    const at = DATA_OFFSET;
    this.bytes.fill(0, at, at + 80);
    this.#setU64(at, Math.ceil(sizeBytes / 4096));
    this.#view.setUint32(at + 40, 4096, true);
    this.#view.setUint32(at + 44, 255, true);
    this.#view.setUint32(at + 48, 4096, true);
    return 80;
  }

  #u32(at: number): number {
    return this.#view.getUint32(at, true);
  }

  /** 64-bit fields that are offsets or lengths: beyond 2^53 they are out of any range we check against. */
  #u64(at: number): number {
    return this.#u32(at) + this.#u32(at + 4) * 4_294_967_296;
  }

  #setU64(at: number, value: number): void {
    this.#view.setUint32(at, value % 4_294_967_296, true);
    this.#view.setUint32(at + 4, Math.floor(value / 4_294_967_296), true);
  }
}

/** FUSE_NOTIFY_RESEND (7): asks the kernel to send every unanswered request again (Linux 6.9). */
export function encodeResend(): Buffer {
  const message = Buffer.alloc(OUT_HEADER_BYTES);
  message.writeUInt32LE(OUT_HEADER_BYTES, 0);
  message.writeInt32LE(7, 4);
  return message;
}
