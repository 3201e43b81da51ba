/**
 * FUSE requests of any bytes. The descriptor is a memory file: `serveOne` reads the request from its start and writes the
 * reply behind it, so that what was replied, and how often, is what the file has gained.
 */
import assert from 'node:assert/strict';
import { readSync, writeSync } from 'node:fs';
import { after, describe, it } from 'node:test';
import fc from 'fast-check';
import { CowbirdError, SystemError } from '../../sys/errors.js';
import * as libc from '../../sys/libc.js';
import { type SessionTarget, serveOne } from './session.js';
import {
  BUFFER_BYTES,
  DATA_OFFSET,
  MAX_TRANSFER_BYTES,
  Opcode,
  REQUEST_BYTES_MAX,
  REQUEST_OFFSET,
  WireBuffer,
} from './wire.js';

const SIZE_BYTES = 2 * MAX_TRANSFER_BYTES + 512;
const IN_HEADER_BYTES = 40;
const OUT_HEADER_BYTES = 16;
const GUARD_BYTES = 8192;
const EIO = 5;
const EPROTO = 71;
const U64_MAX = 2n ** 64n - 1n;
const NO_REPLY: readonly number[] = [Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT];

const fd = libc.memfdCreate('cowbird-fuse-fuzz', 0);
after(() => libc.close(fd));
/** One worker's buffer, with bytes on both sides that nobody may touch. */
const mapping = libc.mapLocked(BUFFER_BYTES + GUARD_BYTES);
const memory = Buffer.from(mapping.bytes);
const guards = [memory.subarray(0, REQUEST_OFFSET), memory.subarray(DATA_OFFSET + MAX_TRANSFER_BYTES)];
const GUARD = 0xa5;
const expectedGuards = guards.map((guard) => Buffer.alloc(guard.byteLength, GUARD));
for (const guard of guards) guard.fill(GUARD);
const buffer = new WireBuffer(mapping.bytes, mapping.address);

/** A disk in memory that takes nothing but what the contract of a block device allows. */
class StrictTarget implements SessionTarget {
  readonly sizeBytes = SIZE_BYTES;
  readonly readOnly: boolean;
  readonly bytes = Buffer.alloc(SIZE_BYTES);
  calls = 0;
  /** Thrown by the next call. */
  failure: { error: unknown } | undefined;
  constructor(readOnly: boolean) {
    this.readOnly = readOnly;
    for (let at = 0; at < SIZE_BYTES; at += 512) this.bytes.writeUInt32LE(at / 512 + 1, at);
  }
  read(from: WireBuffer, lengthBytes: number, offset: number): void {
    this.#enter(lengthBytes, offset, MAX_TRANSFER_BYTES);
    this.bytes.copy(from.bytes, DATA_OFFSET, offset, offset + lengthBytes);
  }
  write(from: WireBuffer, lengthBytes: number, offset: number): void {
    assert.ok(!this.readOnly, 'a read-only target is not written');
    this.#enter(lengthBytes, offset, MAX_TRANSFER_BYTES);
    this.bytes.set(from.bytes.subarray(DATA_OFFSET, DATA_OFFSET + lengthBytes), offset);
  }
  zero(offset: number, lengthBytes: number): void {
    assert.ok(!this.readOnly, 'a read-only target is not zeroed');
    this.#enter(lengthBytes, offset, SIZE_BYTES);
    this.bytes.fill(0, offset, offset + lengthBytes);
  }
  flush(): void {
    this.calls++;
    if (this.failure !== undefined) throw this.failure.error;
  }
  #enter(lengthBytes: number, offset: number, most: number): void {
    this.calls++;
    const where = `${offset}+${lengthBytes}`;
    // Thrown outside of what the session may answer with an errno: a violation ends the test, not the request.
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(lengthBytes)) violations.push(where);
    else if (offset < 0 || lengthBytes <= 0 || offset + lengthBytes > SIZE_BYTES) violations.push(where);
    else if (lengthBytes > most || offset % 512 !== 0 || lengthBytes % 512 !== 0) violations.push(where);
    if (this.failure !== undefined) throw this.failure.error;
    assert.equal(violations.length, 0);
  }
}
const violations: string[] = [];

interface Request {
  opcode: number;
  unique: bigint;
  body: Uint8Array;
  /** What the header says; the bytes themselves when undefined. */
  lengthField?: number | undefined;
}

function encode(request: Request): Buffer {
  const bytes = Buffer.alloc(IN_HEADER_BYTES + request.body.byteLength);
  bytes.writeUInt32LE(request.lengthField ?? bytes.byteLength, 0);
  bytes.writeUInt32LE(request.opcode, 4);
  bytes.writeBigUInt64LE(request.unique, 8);
  bytes.set(request.body, IN_HEADER_BYTES);
  return bytes;
}

interface Reply {
  errno: number;
  data: Buffer;
}

/** Serves one message. Checks what holds for every one of them, and returns the reply, if there was one. */
function serve(message: Buffer, target: SessionTarget, errors: unknown[] = []): Reply | undefined {
  libc.ftruncate(fd, 0);
  writeSync(fd, message, 0, message.byteLength, 0);
  assert.equal(libc.fast.lseek(fd, 0, 0), 0);
  let thrown: unknown;
  try {
    assert.equal(
      serveOne(fd, target, buffer, (_, error) => errors.push(error)),
      'served',
    );
  } catch (error) {
    thrown = error;
  }
  guards.forEach((guard, i) => {
    assert.ok(guard.equals(expectedGuards[i] ?? Buffer.alloc(0)), `guard ${i} is as it was`);
  });
  assert.deepEqual(violations.splice(0), [], 'the target is asked for whole sectors in range');
  // The file's position: behind what was taken, and behind what was replied.
  const taken = Math.min(message.byteLength, REQUEST_BYTES_MAX);
  const replied = Buffer.alloc(libc.fast.lseek(fd, 0, 1) - taken);
  readSync(fd, replied, 0, replied.byteLength, taken);
  const isRequest = message.byteLength >= IN_HEADER_BYTES && message.readUInt32LE(0) === message.byteLength;
  if (!isRequest || message.byteLength > REQUEST_BYTES_MAX) {
    assert.ok(thrown instanceof SystemError && thrown.code === 'EPROTO', String(thrown));
    assert.equal(replied.byteLength, 0, 'what is no request is not answered');
    return undefined;
  }
  assert.equal(thrown, undefined);
  if (NO_REPLY.includes(message.readUInt32LE(4))) {
    assert.equal(replied.byteLength, 0);
    return undefined;
  }
  assert.ok(replied.byteLength >= OUT_HEADER_BYTES, 'there is a reply');
  assert.equal(replied.readUInt32LE(0), replied.byteLength, 'exactly one, whose length is its bytes');
  assert.equal(replied.readBigUInt64LE(8), message.readBigUInt64LE(8), 'to this request');
  const errno = 0 - replied.readInt32LE(4);
  // The kernel takes 0 to 511 and nothing else; with an error it takes no data.
  assert.ok(errno >= 0 && errno < 512 && (errno === 0 || replied.byteLength === OUT_HEADER_BYTES), `errno ${errno}`);
  return { errno, data: replied.subarray(OUT_HEADER_BYTES) };
}

const u64 = fc.bigInt(0n, U64_MAX);
const sector = fc.nat(SIZE_BYTES / 512).map((number) => BigInt(number) * 512n);
/** In range, at the end, beyond it, unaligned, negative when signed, beyond 2^53. */
const offset = fc.oneof(
  { weight: 5, arbitrary: sector },
  { weight: 2, arbitrary: fc.bigInt(0n, BigInt(SIZE_BYTES) + 2000n) },
  fc.constantFrom(
    2n ** 31n,
    2n ** 32n,
    2n ** 52n,
    2n ** 53n + 1n,
    2n ** 63n,
    2n ** 63n + 512n,
    U64_MAX - 511n,
    U64_MAX,
  ),
  u64,
);
const length = fc.oneof(
  { weight: 4, arbitrary: fc.nat(64).map((sectors) => sectors * 512) },
  fc.constantFrom(1, 511, 513, MAX_TRANSFER_BYTES, MAX_TRANSFER_BYTES + 1, MAX_TRANSFER_BYTES + 512),
  fc.constantFrom(2 ** 31 - 1, 2 ** 31, 2 ** 32 - 512, 2 ** 32 - 1),
);

function bodyOf(bytes: number, fields: (body: Buffer) => void): Buffer {
  const body = Buffer.alloc(bytes);
  fields(body);
  return body;
}

const transfer = (bytes: number, at: bigint, lengthBytes: number): Buffer =>
  bodyOf(bytes, (body) => {
    body.writeBigUInt64LE(at, 8);
    body.writeUInt32LE(lengthBytes, 16);
  });
const reads = fc.tuple(offset, length).map(([at, lengthBytes]) => ({
  opcode: Opcode.READ,
  body: transfer(40, at, lengthBytes),
}));
/** `sent`: bytes of data that come with it, whatever its length field says. */
const writes = fc
  .tuple(offset, length, fc.oneof(fc.constant(undefined), fc.nat(40_000)), fc.nat(255))
  .map(([at, lengthBytes, sent, fill]) => {
    const data = Buffer.alloc(Math.min(sent ?? lengthBytes, MAX_TRANSFER_BYTES), fill);
    return { opcode: Opcode.WRITE, body: Buffer.concat([transfer(40, at, lengthBytes), data]) };
  });
const zeros = fc
  .tuple(offset, fc.oneof(offset, length.map(BigInt)), fc.constantFrom(0, 1, 2, 3, 0x10, 0x11, 0x20, 2 ** 32 - 1))
  .map(([at, lengthBytes, mode]) => ({
    opcode: Opcode.FALLOCATE,
    body: bodyOf(32, (body) => {
      body.writeBigUInt64LE(at, 8);
      body.writeBigUInt64LE(lengthBytes, 16);
      body.writeUInt32LE(mode, 24);
    }),
  }));
const inits = fc
  .array(fc.oneof(fc.constantFrom(7, 31, 40, 2 ** 30, 2 ** 32 - 1), fc.nat(64)), { maxLength: 16 })
  .map((words) => ({ opcode: Opcode.INIT, body: Buffer.from(Uint32Array.from(words).buffer) }));
const others = fc.record({
  opcode: fc.oneof(fc.constantFrom(...Object.values(Opcode)), fc.nat(60), fc.constantFrom(4096, 2 ** 32 - 1)),
  body: fc.uint8Array({ maxLength: 120 }),
});
const requests = fc.tuple(fc.oneof(reads, writes, zeros, inits, others), u64).map(([request, unique]) => ({
  ...request,
  unique,
}));

/** Cuts, lengthens and mislabels requests, and flips their bytes. */
const damaged = fc
  .tuple(
    requests,
    fc.oneof(fc.constant(undefined), fc.nat(200), fc.constantFrom(0, 39, 40, 2 ** 31, 2 ** 32 - 1)),
    fc.oneof(fc.constant(undefined), fc.nat(120)),
    fc.array(fc.tuple(fc.nat(120), fc.integer({ min: 1, max: 255 })), { maxLength: 4 }),
  )
  .map(([request, lengthField, keepBytes, flips]) => {
    const bytes = encode({ ...request, lengthField }).subarray(0, keepBytes);
    // Half of those that are cut say their new length, and so reach the operation.
    if (lengthField === undefined && keepBytes !== undefined && bytes.byteLength >= 4)
      bytes.writeUInt32LE(bytes.byteLength, 0);
    for (const [at, mask] of flips) if (at < bytes.byteLength) bytes.writeUInt8(bytes.readUInt8(at) ^ mask, at);
    return bytes;
  });

const LENGTHS: ReadonlyMap<number, number> = new Map([
  [Opcode.GETATTR, 104],
  [Opcode.OPEN, 16],
  [Opcode.STATFS, 80],
  [Opcode.INIT, 64],
  [Opcode.WRITE, 8],
]);

/** What the reply says must have happened to the target, and nothing else. */
function requireEffect(message: Buffer, reply: Reply | undefined, before: Buffer, target: StrictTarget): void {
  const opcode = message.byteLength < 8 ? 0 : message.readUInt32LE(4);
  const expected = before;
  if (reply?.errno === 0 && [Opcode.READ, Opcode.WRITE, Opcode.FALLOCATE].some((one) => one === opcode)) {
    const at = Number(message.readBigUInt64LE(IN_HEADER_BYTES + 8));
    const asked = message.readUInt32LE(IN_HEADER_BYTES + 16);
    if (opcode === Opcode.WRITE) {
      assert.equal(reply.data.readUInt32LE(0), asked);
      message.copy(expected, at, IN_HEADER_BYTES + 40, IN_HEADER_BYTES + 40 + asked);
    } else if (opcode === Opcode.READ) {
      assert.ok(reply.data.equals(before.subarray(at, at + asked)), 'what is there is what is read');
    } else {
      expected.fill(0, at, at + Number(message.readBigUInt64LE(IN_HEADER_BYTES + 16)));
    }
  } else if (reply?.errno === 0) {
    assert.equal(reply.data.byteLength, LENGTHS.get(opcode) ?? 0, `data of opcode ${opcode}`);
  }
  assert.ok(target.bytes.equals(expected), 'nothing else was changed');
}

function tryOn(target: StrictTarget, message: Buffer): void {
  const before = Buffer.from(target.bytes);
  const errors: unknown[] = [];
  requireEffect(message, serve(message, target, errors), before, target);
  assert.deepEqual(errors, [], 'refused before the target is asked');
}

describe('a FUSE session', () => {
  const writable = new StrictTarget(false);
  const readOnly = new StrictTarget(true);

  it('answers every whole request once, and asks the target only for what is in range', () => {
    fc.assert(
      fc.property(requests, fc.boolean(), (request, isReadOnly) =>
        tryOn(isReadOnly ? readOnly : writable, encode(request)),
      ),
      { numRuns: 900 },
    );
  });

  it('answers a damaged request with an error, or refuses it with EPROTO when it is none', () => {
    fc.assert(
      fc.property(damaged, fc.boolean(), (message, isReadOnly) => tryOn(isReadOnly ? readOnly : writable, message)),
      { numRuns: 1200 },
    );
  });

  it('refuses bytes that are no request with EPROTO, whatever they are', () => {
    const oversize = Buffer.alloc(REQUEST_BYTES_MAX + 100);
    oversize.writeUInt32LE(oversize.byteLength, 0);
    oversize.writeUInt32LE(Opcode.WRITE, 4);
    for (const message of [Buffer.alloc(0), Buffer.alloc(39, 39), oversize]) tryOn(writable, message);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => tryOn(writable, Buffer.from(bytes))),
      { numRuns: 300 },
    );
  });

  it('has the whole transfer in its buffer, and not a byte more', () => {
    for (const lengthBytes of [MAX_TRANSFER_BYTES, MAX_TRANSFER_BYTES + 512]) {
      const fits = lengthBytes === MAX_TRANSFER_BYTES;
      const read = encode({ opcode: Opcode.READ, unique: 7n, body: transfer(40, 512n, lengthBytes) });
      assert.equal(serve(read, writable)?.data.byteLength, fits ? lengthBytes : 0);
      const body = Buffer.concat([transfer(40, 512n, lengthBytes), Buffer.alloc(lengthBytes, 1)]);
      assert.equal(serve(encode({ opcode: Opcode.WRITE, unique: 8n, body }), writable)?.errno, fits ? 0 : undefined);
    }
  });

  it('takes nothing over from the request before: an INIT without its second flags has none', () => {
    serve(encode({ opcode: Opcode.GETATTR, unique: 1n, body: Buffer.alloc(64, 0xff) }), writable);
    const words = Uint32Array.of(7, 40, 0, 2 ** 30);
    const reply = serve(encode({ opcode: Opcode.INIT, unique: 2n, body: Buffer.from(words.buffer) }), writable);
    assert.equal(reply?.errno, 0);
    assert.equal(reply?.data.readUInt32LE(32), 0);
  });

  it('answers whatever a target throws with an errno that is one, never with success', () => {
    const thrown = fc.oneof(
      fc.constantFrom<unknown>(
        undefined,
        null,
        0,
        'text',
        {},
        new TypeError('mistake'),
        new CowbirdError('EBUSY', 'x'),
      ),
      fc.integer({ min: -600, max: 600 }).map((errno) => new SystemError('call', errno)),
    );
    const asked = fc.constantFrom(
      { opcode: Opcode.READ, body: transfer(40, 0n, 512) },
      { opcode: Opcode.WRITE, body: Buffer.concat([transfer(40, 0n, 512), Buffer.alloc(512)]) },
      { opcode: Opcode.FSYNC, body: Buffer.alloc(16) },
    );
    const target = new StrictTarget(false);
    fc.assert(
      fc.property(thrown, asked, u64, (error, request, unique) => {
        target.failure = { error };
        const errors: unknown[] = [];
        const reply = serve(encode({ ...request, unique }), target, errors);
        const isErrno = error instanceof SystemError && error.errno > 0 && error.errno < 512;
        assert.equal(reply?.errno, isErrno ? error.errno : EIO);
        if (reply?.errno !== 95) assert.deepEqual(errors, [error]);
      }),
      { numRuns: 300 },
    );
  });

  it('refuses what is not in whole sectors before the target is asked', () => {
    const calls = writable.calls;
    for (const [at, lengthBytes] of [
      [1n, 512],
      [512n, 511],
      [511n, 1],
    ] as const) {
      const body = Buffer.concat([transfer(40, at, lengthBytes), Buffer.alloc(lengthBytes)]);
      assert.equal(
        serve(encode({ opcode: Opcode.READ, unique: 1n, body: transfer(40, at, lengthBytes) }), writable)?.errno,
        22,
      );
      assert.equal(serve(encode({ opcode: Opcode.WRITE, unique: 2n, body }), writable)?.errno, 22);
    }
    assert.equal(writable.calls, calls);
    assert.equal(
      serve(encode({ opcode: Opcode.WRITE, unique: 3n, body: transfer(24, 0n, 0) }), writable)?.errno,
      EPROTO,
    );
  });
});
