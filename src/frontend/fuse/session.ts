/**
 * One FUSE session: serves the requests for one file, which a loop device turns into a block device.
 *
 * {@link serveOne} takes at most one request from the descriptor, executes it in this thread, and replies. Any number of
 * threads may call it on one descriptor. Nothing but the worker's own locked buffer is handed to the descriptor, in either
 * direction: a page that is not resident while the process is being killed would end the request with EIO.
 */
import { SystemError } from '../../sys/errors.js';
import * as libc from '../../sys/libc.js';
import {
  DATA_OFFSET,
  MAX_TRANSFER_BYTES,
  Opcode,
  REPLY_OFFSET,
  REQUEST_BYTES_MAX,
  REQUEST_OFFSET,
  type RequestHeader,
  WireBuffer,
} from './wire.js';

/** What stands behind the file. Asked for whole sectors in range only. Throws a `SystemError`; everything else is EIO. */
export interface SessionTarget {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** Reads into the buffer's data area. */
  read(buffer: WireBuffer, lengthBytes: number, offset: number): void;
  /** Writes from the buffer's data area. */
  write(buffer: WireBuffer, lengthBytes: number, offset: number): void;
  zero(offset: number, lengthBytes: number, unmap: boolean): void;
  flush(): void;
  /** As `read`, but leaves the transfers to the caller. */
  beginRead?(buffer: WireBuffer, lengthBytes: number, offset: number): Next;
  /** As `write`, but leaves the transfers to the caller. */
  beginWrite?(buffer: WireBuffer, lengthBytes: number, offset: number): Next;
}

export type Served = 'served' | 'empty' | 'ended';

const EIO = 5;
const EAGAIN = 11;
const EINTR = 4;
const ENODEV = 19;
const ENOENT = 2;
const EINVAL = 22;
const EROFS = 30;
const ENOSYS = 38;
const EPROTO = 71;
const EOPNOTSUPP = 95;
/** The kernel refuses a reply with an errno from here on. */
const ERRNO_END = 512;
const SECTOR_BYTES = 512;
/** Larger transfers gain nothing: the device is what they wait for, and several workers keep it busy. */
export const ASYNC_BYTES_MAX = 65_536;
const FALLOCATE_MODES = { PUNCH_KEEP: 3, ZERO_RANGE: 0x10, ZERO_KEEP: 0x11 } as const;

/** What a request that was begun waits for; undefined: for nothing, it can be answered. */
export type Next = Pending | undefined;

/**
 * A transfer between memory and a descriptor, which the kernel may do while its thread goes on; or, where `isTransfer` is false,
 * something that other requests have to do first.
 */
export interface Pending {
  readonly isTransfer: boolean;
  readonly isWrite: boolean;
  readonly fd: number;
  /** Of the memory. */
  readonly address: number;
  readonly lengthBytes: number;
  readonly offset: number;
  /** The transfer was done wholly, or the wait may be over: goes on. May throw what the request is answered with. */
  done(): Next;
  /** The transfer was not: does it in this thread and goes on, or throws why it cannot be done. */
  again(): Next;
  /** Of a wait: whether it may be over. */
  isOver(): boolean;
  /** Of a wait: sleeps until it may be over, so long at most. */
  sleep(timeoutMs: number): void;
}

/** Hears of every request that is answered with an I/O error, with its cause. */
export type OnError = (operation: string, error: unknown) => void;

/** A request that was taken and is not answered yet. */
export interface Begun extends Range {
  readonly header: RequestHeader;
  /** What its answer waits for. */
  next: Pending;
}

/**
 * Takes and serves one request. `empty`: nothing was waiting (the descriptor is non-blocking). `ended`: the file was
 * unmounted.
 */
export function serveOne(fd: number, target: SessionTarget, buffer: WireBuffer, onError: OnError): Served {
  const header = take(fd, buffer);
  return typeof header === 'string' ? header : answer(fd, buffer, header, execute(header, target, buffer, onError));
}

/** As {@link serveOne}, but leaves the transfers of a small read or write to the caller, who then calls {@link goOn}. */
export function beginOne(fd: number, target: SessionTarget, buffer: WireBuffer, onError: OnError): Served | Begun {
  const header = take(fd, buffer);
  if (typeof header === 'string') return header;
  const range = smallRange(header, target, buffer);
  if (range === undefined) return answer(fd, buffer, header, execute(header, target, buffer, onError));
  if ('errno' in range) return answer(fd, buffer, header, range);
  const { offset, lengthBytes } = range;
  try {
    const next =
      header.opcode === Opcode.WRITE
        ? target.beginWrite?.(buffer, lengthBytes, offset)
        : target.beginRead?.(buffer, lengthBytes, offset);
    if (next !== undefined) return { header, offset, lengthBytes, next };
  } catch (error) {
    return answer(fd, buffer, header, failureOf(nameOf(header), offset, lengthBytes, onError, error));
  }
  return answerTransfer(fd, buffer, header, lengthBytes);
}

/**
 * Goes on with a request whose transfer has ended (`isWhole`: as it should) or whose wait may be over. Undefined: it waits
 * for something else now (`begun.next`); otherwise it is answered.
 */
export function goOn(
  fd: number,
  buffer: WireBuffer,
  begun: Begun,
  isWhole: boolean,
  onError: OnError,
): Served | undefined {
  const { header, offset, lengthBytes } = begun;
  try {
    const next = isWhole ? begun.next.done() : begun.next.again();
    if (next !== undefined) {
      begun.next = next;
      return undefined;
    }
  } catch (error) {
    return answer(fd, buffer, header, failureOf(nameOf(header), offset, lengthBytes, onError, error));
  }
  return answerTransfer(fd, buffer, header, lengthBytes);
}

function nameOf({ opcode }: RequestHeader): string {
  return opcode === Opcode.WRITE ? 'write' : 'read';
}

function answerTransfer(fd: number, buffer: WireBuffer, header: RequestHeader, lengthBytes: number): Served {
  const isWrite = header.opcode === Opcode.WRITE;
  return answer(fd, buffer, header, data(isWrite ? buffer.encodeWritten(lengthBytes) : lengthBytes));
}

function take(fd: number, buffer: WireBuffer): RequestHeader | Served {
  const received = libc.fast.read(fd, buffer.address + REQUEST_OFFSET, REQUEST_BYTES_MAX);
  if (received < 0) {
    const errno = libc.lastErrno();
    if (errno === EAGAIN) return 'empty';
    if (errno === ENODEV) return 'ended';
    // ENOENT: the request was taken back before we read it.
    if (errno === EINTR || errno === ENOENT) return 'served';
    throw new SystemError('read of the FUSE descriptor', errno);
  }
  const header = buffer.decodeHeader(received);
  if (header === undefined) throw new SystemError('FUSE request', EPROTO, `${received} bytes that are no request`);
  return header;
}

function answer(fd: number, buffer: WireBuffer, header: RequestHeader, result: Result | undefined): Served {
  if (result === undefined) return 'served';
  const lengthBytes = buffer.encodeReply(header, result.errno, result.dataBytes);
  if (libc.fast.write(fd, buffer.address + REPLY_OFFSET, lengthBytes) < 0) {
    const errno = libc.lastErrno();
    if (errno === ENODEV) return 'ended';
    // ENOENT: the request was interrupted or aborted meanwhile; nobody waits for the reply.
    if (errno !== ENOENT) throw new SystemError('write of the FUSE descriptor', errno);
  }
  return 'served';
}

interface Result {
  errno: number;
  dataBytes: number;
}

const DONE: Result = { errno: 0, dataBytes: 0 };

function failed(errno: number): Result {
  return { errno, dataBytes: 0 };
}

function data(dataBytes: number | undefined): Result {
  return dataBytes === undefined ? failed(EPROTO) : { errno: 0, dataBytes };
}

/** The range of a read or write whose transfers can be left to the caller, or its answer; undefined for everything else. */
function smallRange(header: RequestHeader, target: SessionTarget, buffer: WireBuffer): Range | Result | undefined {
  let range: Range | Result | undefined;
  if (header.opcode === Opcode.READ && target.beginRead !== undefined) range = readRange(header, target, buffer);
  if (header.opcode === Opcode.WRITE && target.beginWrite !== undefined) range = writeRange(header, target, buffer);
  return range !== undefined && 'lengthBytes' in range && range.lengthBytes > ASYNC_BYTES_MAX ? undefined : range;
}

/** Executes one request; undefined where the protocol has no reply. */
function execute(
  header: RequestHeader,
  target: SessionTarget,
  buffer: WireBuffer,
  onError: OnError,
): Result | undefined {
  switch (header.opcode) {
    case Opcode.READ:
      return read(header, target, buffer, onError);
    case Opcode.WRITE:
      return write(header, target, buffer, onError);
    case Opcode.FSYNC:
      return attempt('flush', 0, target.sizeBytes, onError, () => target.flush());
    case Opcode.FALLOCATE:
      return zero(header, target, buffer, onError);
    case Opcode.GETATTR:
      return data(buffer.encodeAttributes(target.sizeBytes, target.readOnly));
    case Opcode.OPEN:
      return data(buffer.encodeOpen());
    case Opcode.STATFS:
      return data(buffer.encodeStatfs(target.sizeBytes));
    case Opcode.INIT:
      return WireBuffer.holds(header, 16) ? data(buffer.encodeInit(buffer.decodeInit(header))) : failed(EPROTO);
    case Opcode.FLUSH:
    case Opcode.RELEASE:
    case Opcode.DESTROY:
      return DONE;
    case Opcode.FORGET:
    case Opcode.BATCH_FORGET:
    case Opcode.INTERRUPT:
      return undefined;
    default:
      return failed(ENOSYS);
  }
}

interface Range {
  offset: number;
  lengthBytes: number;
}

/** Where a read lies, or its answer. One that begins at or after the end is the end of the file. */
function readRange(header: RequestHeader, target: SessionTarget, buffer: WireBuffer): Range | Result {
  if (!WireBuffer.holds(header, 24)) return failed(EPROTO);
  const { offset, lengthBytes } = buffer.decodeTransfer();
  if (lengthBytes > MAX_TRANSFER_BYTES || !isWholeSectors(offset, lengthBytes)) return failed(EINVAL);
  const available = Math.min(lengthBytes, Math.max(0, target.sizeBytes - offset));
  return available === 0 ? DONE : { offset, lengthBytes: available };
}

function read(header: RequestHeader, target: SessionTarget, buffer: WireBuffer, onError: OnError): Result {
  const range = readRange(header, target, buffer);
  if ('errno' in range) return range;
  const { offset, lengthBytes } = range;
  const result = attempt('read', offset, lengthBytes, onError, () => target.read(buffer, lengthBytes, offset));
  return result.errno === 0 ? data(lengthBytes) : result;
}

function writeRange(header: RequestHeader, target: SessionTarget, buffer: WireBuffer): Range | Result {
  const { offset, lengthBytes } = buffer.decodeTransfer();
  if (!WireBuffer.holds(header, 40 + lengthBytes) || lengthBytes > MAX_TRANSFER_BYTES) return failed(EPROTO);
  if (target.readOnly) return failed(EROFS);
  return isInside(offset, lengthBytes, target) ? { offset, lengthBytes } : failed(EINVAL);
}

function write(header: RequestHeader, target: SessionTarget, buffer: WireBuffer, onError: OnError): Result {
  const range = writeRange(header, target, buffer);
  if ('errno' in range) return range;
  const { offset, lengthBytes } = range;
  const result = attempt('write', offset, lengthBytes, onError, () => target.write(buffer, lengthBytes, offset));
  return result.errno === 0 ? data(buffer.encodeWritten(lengthBytes)) : result;
}

function zero(header: RequestHeader, target: SessionTarget, buffer: WireBuffer, onError: OnError): Result {
  if (!WireBuffer.holds(header, 28)) return failed(EPROTO);
  const { offset, lengthBytes, mode } = buffer.decodeFallocate();
  if (target.readOnly) return failed(EROFS);
  if (!isInside(offset, lengthBytes, target)) return failed(EINVAL);
  // EOPNOTSUPP lets the kernel write the zeros itself; ENOSYS would stick to the connection for ever.
  const unmap = mode === FALLOCATE_MODES.PUNCH_KEEP;
  if (!unmap && mode !== FALLOCATE_MODES.ZERO_RANGE && mode !== FALLOCATE_MODES.ZERO_KEEP) return failed(EOPNOTSUPP);
  return attempt('zero', offset, lengthBytes, onError, () => target.zero(offset, lengthBytes, unmap));
}

/** The loop driver asks for nothing else; whoever opens the file itself may. */
function isWholeSectors(offset: number, lengthBytes: number): boolean {
  return offset % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0;
}

function isInside(offset: number, lengthBytes: number, target: SessionTarget): boolean {
  return lengthBytes > 0 && offset + lengthBytes <= target.sizeBytes && isWholeSectors(offset, lengthBytes);
}

/** The text is made only for an error; see `assert` for why. */
function attempt(operation: string, offset: number, lengthBytes: number, onError: OnError, action: () => void): Result {
  try {
    action();
    return DONE;
  } catch (error) {
    return failureOf(operation, offset, lengthBytes, onError, error);
  }
}

function failureOf(operation: string, offset: number, lengthBytes: number, onError: OnError, error: unknown): Result {
  // 0 would be success, and a reply that the kernel refuses would leave the request without one.
  const isErrno = error instanceof SystemError && error.errno > 0 && error.errno < ERRNO_END;
  const errno = isErrno ? error.errno : EIO;
  if (errno !== EOPNOTSUPP) onError(`${operation} at ${offset}+${lengthBytes}`, error);
  return failed(errno);
}

export { DATA_OFFSET };
