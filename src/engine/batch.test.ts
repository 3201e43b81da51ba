/** Requests in hand of one worker, over real descriptors: each is answered once, with what is true, whatever the others do. */
import assert from 'node:assert/strict';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { after, describe, it } from 'node:test';
import fc from 'fast-check';
import { FdDevice } from '../block/device.js';
import type { Pending, SessionTarget } from '../frontend/fuse/session.js';
import { DATA_OFFSET, IN_HEADER_BYTES, Opcode, OUT_HEADER_BYTES, type WireBuffer } from '../frontend/fuse/wire.js';
import * as libc from '../sys/libc.js';
import { MessagePair } from '../sys/testing.js';
import { BLOCK_BYTES, Gate, Word } from '../tracer/layout.js';
import { readSnapshot } from '../tracer/snapshot-view.js';
import { performIo, runSteps } from '../tracer/steps.js';
import { beginSnapshot, memoryFor, randomOf } from '../tracer/testing.js';
import { Tracer } from '../tracer/tracer.js';
import { Batch, DEPTH, type Source } from './batch.js';
import { type StepExecutor, SteppedRequests } from './stepped.js';

const SECTOR = 512;
const BLOCKS = 96;
const SIZE_BYTES = BLOCKS * BLOCK_BYTES - 3 * SECTOR;
const SECTORS = SIZE_BYTES / SECTOR;
const STORE_BLOCKS = BLOCKS + 2;
const SCRATCH_BYTES = 3 * BLOCK_BYTES;
const WRITE_IN_BYTES = 40;
const ROUNDS_MAX = 20_000;
/** Of fallocate(2). */
const PUNCH_KEEP = 3;

const stepped = new SteppedRequests(0, DEPTH, SCRATCH_BYTES);
const batch = new Batch<Source>(
  () => () => undefined,
  () => undefined,
);
const pair = new MessagePair();
after(() => pair.close());

function encode(unique: number, opcode: number, offset: number, lengthBytes: number, fill?: number): Buffer {
  const data = fill === undefined ? 0 : lengthBytes;
  const bytes = Buffer.alloc(IN_HEADER_BYTES + WRITE_IN_BYTES + data, fill ?? 0);
  bytes.fill(0, 0, IN_HEADER_BYTES + WRITE_IN_BYTES);
  bytes.writeUInt32LE(bytes.byteLength, 0);
  bytes.writeUInt32LE(opcode, 4);
  bytes.writeUInt32LE(unique, 8);
  bytes.writeUInt32LE(offset, IN_HEADER_BYTES + 8);
  bytes.writeUInt32LE(lengthBytes, IN_HEADER_BYTES + 16);
  return bytes;
}

function encodeZero(unique: number, offset: number): Buffer {
  const bytes = encode(unique, Opcode.FALLOCATE, offset, BLOCK_BYTES).subarray(0, IN_HEADER_BYTES + 32);
  bytes.writeUInt32LE(bytes.byteLength, 0);
  bytes.writeUInt32LE(PUNCH_KEEP, IN_HEADER_BYTES + 24);
  return bytes;
}

interface Reply {
  unique: number;
  errno: number;
  data: Buffer;
}

function received(): Reply[] {
  const replies: Reply[] = [];
  for (let message = pair.receive(); message !== undefined; message = pair.receive()) {
    assert.equal(message.readUInt32LE(0), message.byteLength);
    replies.push({
      unique: message.readUInt32LE(8),
      errno: Math.abs(message.readInt32LE(4)),
      data: message.subarray(OUT_HEADER_BYTES),
    });
  }
  return replies;
}

function memoryFile(contents: Buffer): number {
  const fd = libc.memfdCreate('cowbird-batch-test', 0);
  for (let at = 0; at < contents.byteLength; ) at += writeSync(fd, contents, at, contents.byteLength - at, at);
  return fd;
}

function contentsOf(fd: number, lengthBytes: number): Buffer {
  const bytes = Buffer.alloc(lengthBytes);
  for (let at = 0; at < lengthBytes; ) at += readSync(fd, bytes, at, lengthBytes - at, at);
  return bytes;
}

/** A volume in snapshot mode, served as a worker serves it. */
class TracedVolume implements Source {
  readonly fd = pair.near;
  readonly t0: Buffer;
  readonly originFd: number;
  readonly storeFd: number;
  readonly memory = memoryFor(BLOCKS);
  readonly tracer: Tracer;
  readonly executor: StepExecutor;
  sleeps = 0;

  constructor(random: (below: number) => number) {
    this.t0 = Buffer.from(Uint8Array.from({ length: SIZE_BYTES }, () => random(256)));
    this.originFd = memoryFile(this.t0);
    this.storeFd = memoryFile(Buffer.alloc(STORE_BLOCKS * BLOCK_BYTES));
    const origin = new FdDevice(this.originFd, SIZE_BYTES, true);
    const store = new FdDevice(this.storeFd, STORE_BLOCKS * BLOCK_BYTES, true);
    const nothing = (): void => undefined;
    this.tracer = new Tracer(this.memory, origin, { wake: nothing, attention: nothing, refresh: nothing });
    const slots = [{ place: 2, count: STORE_BLOCKS - 2 }];
    beginSnapshot(this, { kind: 'device', extents: [], slots, placeCount: STORE_BLOCKS }, store);
    this.executor = {
      isStill: (word, value) => this.memory.get(word) === value,
      sleep: () => {
        this.sleeps++;
      },
      perform: performIo,
    };
  }

  readonly target: SessionTarget = {
    sizeBytes: SIZE_BYTES,
    readOnly: false,
    read: (buffer, lengthBytes, offset) => this.tracer.origin.read(buffer, DATA_OFFSET, lengthBytes, offset),
    write: () => assert.fail('small writes are begun'),
    zero: () => assert.fail('nobody zeroes'),
    flush: () => this.tracer.origin.flush(),
    beginWrite: (buffer: WireBuffer, lengthBytes: number, offset: number) =>
      stepped.begin((context) => this.tracer.write(context, buffer, DATA_OFFSET, lengthBytes, offset), this.executor),
  };

  snapshot(): Buffer {
    const memory = libc.mapPages(SIZE_BYTES + SCRATCH_BYTES);
    const buffer = { bytes: new Uint8Array(memory.bytes, 0, SIZE_BYTES), address: memory.address };
    const scratch = {
      bytes: new Uint8Array(memory.bytes, SIZE_BYTES, SCRATCH_BYTES),
      address: memory.address + SIZE_BYTES,
    };
    const steps = readSnapshot(this.tracer, { buffer, at: 0, scratch }, SIZE_BYTES, 0);
    runSteps(steps, () => assert.fail('nobody else is there'));
    const bytes = Buffer.from(buffer.bytes);
    libc.unmap(memory);
    return bytes;
  }

  close(): void {
    libc.close(this.originFd);
    libc.close(this.storeFd);
  }
}

/** One that is answered by a transfer of its own making. */
function targetOf(next: (offset: number) => Pending): SessionTarget {
  const never = (): never => assert.fail('small writes are begun');
  return {
    sizeBytes: SIZE_BYTES,
    readOnly: false,
    read: never,
    write: never,
    zero: never,
    flush: never,
    beginWrite: (_buffer, _lengthBytes, offset) => next(offset),
  };
}

const Write = fc.record({ sector: fc.nat(SECTORS - 1), sectors: fc.integer({ min: 1, max: 40 }) });

describe('requests in hand', () => {
  it('are each answered once, save what they overwrite, and leave origin and snapshot right', () => {
    fc.assert(
      fc.property(fc.array(Write, { minLength: 1, maxLength: 120 }), fc.integer(), (writes, seed) => {
        const volume = new TracedVolume(randomOf(seed));
        try {
          serveAll(volume, writes, randomOf(seed + 1));
        } finally {
          volume.close();
        }
      }),
      { numRuns: 60 },
    );
  });

  it('that wait at the gate let others get on, and go on when it opens', () => {
    const volume = new TracedVolume(randomOf(7));
    volume.memory.set(Word.GATE, Gate.CLOSED);
    pair.send(encode(1, Opcode.WRITE, 0, BLOCK_BYTES, 1));
    batch.gather(volume);
    const elsewhere = memoryFile(Buffer.alloc(0));
    const other = targetOf((offset) => transferTo(elsewhere, offset));
    pair.send(encode(2, Opcode.WRITE, 8 * BLOCK_BYTES, BLOCK_BYTES, 2));
    batch.gather({ fd: pair.near, target: other });
    batch.advance();
    assert.deepEqual(
      received().map(({ unique }) => unique),
      [2],
    );
    batch.advance();
    assert.deepEqual([batch.count, volume.sleeps, received().length], [1, 1, 0], 'nothing is under way: it sleeps');
    volume.memory.set(Word.GATE, Gate.OPEN);
    batch.drain();
    assert.deepEqual(
      received().map(({ unique, errno }) => [unique, errno]),
      [[1, 0]],
    );
    assert.ok(volume.snapshot().equals(volume.t0));
    libc.close(elsewhere);
    volume.close();
  });

  it('whose writes lie side by side are written as one, and each on its own when that fails', () => {
    const full = openSync('/dev/full', 'w');
    const again: number[] = [];
    const target = targetOf((offset) => transferTo(full, offset, (at) => again.push(at)));
    for (let i = 0; i < 5; i++) pair.send(encode(i + 1, Opcode.WRITE, i * BLOCK_BYTES, BLOCK_BYTES, 1));
    batch.gather({ fd: pair.near, target });
    batch.drain();
    assert.deepEqual(
      again,
      [0, 1, 2, 3, 4].map((i) => i * BLOCK_BYTES),
    );
    assert.deepEqual(
      received().map(({ unique }) => unique),
      [1, 2, 3, 4, 5],
    );
    closeSync(full);
  });

  it('are answered before one that is served from start to end, behind which others get their turn', () => {
    const elsewhere = memoryFile(Buffer.alloc(0));
    const inline: number[] = [];
    const target: SessionTarget = {
      ...targetOf((offset) => transferTo(elsewhere, offset)),
      zero: (offset) => {
        batch.settle();
        inline.push(offset, batch.count);
      },
    };
    pair.send(encode(1, Opcode.WRITE, 0, BLOCK_BYTES, 1));
    for (let i = 1; i <= 2; i++) pair.send(encodeZero(1 + i, i * BLOCK_BYTES));
    const source = { fd: pair.near, target };
    assert.equal(batch.gather(source), 2);
    assert.deepEqual(inline, [BLOCK_BYTES, 0]);
    assert.equal(batch.gather(source), 1);
    assert.deepEqual(
      received().map(({ unique, errno }) => [unique, errno]),
      [
        [1, 0],
        [2, 0],
        [3, 0],
      ],
    );
    libc.close(elsewhere);
  });

  it('get an error of the origin, one of the store fails the snapshot alone', () => {
    const volume = new TracedVolume(randomOf(9));
    // Nothing can be written to these any more.
    const storeAgain = openSync(`/proc/self/fd/${volume.storeFd}`, 'r');
    const readOnlyStore = new FdDevice(storeAgain, STORE_BLOCKS * BLOCK_BYTES, true);
    const slots = [{ place: 2, count: STORE_BLOCKS - 2 }];
    beginSnapshot(volume, { kind: 'device', extents: [], slots, placeCount: STORE_BLOCKS }, readOnlyStore);
    pair.send(encode(1, Opcode.WRITE, 0, BLOCK_BYTES, 5));
    batch.gather(volume);
    batch.drain();
    assert.deepEqual(
      received().map(({ unique, errno }) => [unique, errno]),
      [[1, 0]],
    );
    assert.notEqual(volume.memory.get(Word.FAILED), 0);
    const broken = targetOf((offset) =>
      transferTo(storeAgain, offset, () => {
        throw new Error('it cannot be written');
      }),
    );
    pair.send(encode(2, Opcode.WRITE, 0, BLOCK_BYTES, 5));
    batch.gather({ fd: pair.near, target: broken });
    batch.drain();
    assert.deepEqual(
      received().map(({ unique, errno }) => [unique, errno]),
      [[2, 5]],
    );
    closeSync(storeAgain);
    volume.close();
  });
});

const page = libc.mapPages(BLOCK_BYTES);

function transferTo(fd: number, offset: number, onAgain: (offset: number) => void = () => undefined): Pending {
  return {
    isTransfer: true,
    isWrite: true,
    fd,
    address: page.address,
    lengthBytes: BLOCK_BYTES,
    offset,
    done: () => undefined,
    isOver: () => true,
    sleep: () => undefined,
    again: () => {
      onAgain(offset);
      return undefined;
    },
  };
}

/** Writes that are in hand at a time have no sector in common, but blocks. */
function serveAll(
  volume: TracedVolume,
  writes: ReadonlyArray<{ sector: number; sectors: number }>,
  random: (below: number) => number,
): void {
  const model = Buffer.from(volume.t0);
  const open = new Map<number, { offset: number; lengthBytes: number; value: number }>();
  const queue = [...writes];
  let unique = 0;
  for (let round = 0; queue.length > 0 || open.size > 0; round++) {
    assert.ok(round < ROUNDS_MAX, 'every request is answered');
    for (let more = random(12); more > 0; more--) {
      const [first] = queue;
      if (first === undefined) break;
      const offset = first.sector * SECTOR;
      const lengthBytes = Math.min(first.sectors, SECTORS - first.sector) * SECTOR;
      const touches = [...open.values()].some(
        (each) => each.offset < offset + lengthBytes && offset < each.offset + each.lengthBytes,
      );
      if (touches) break;
      queue.shift();
      const value = 1 + random(255);
      pair.send(encode(++unique, Opcode.WRITE, offset, lengthBytes, value));
      open.set(unique, { offset, lengthBytes, value });
    }
    batch.gather(volume);
    if (random(4) === 0) batch.drain();
    else batch.advance();
    for (const reply of received()) {
      const request = open.get(reply.unique);
      assert.ok(request !== undefined, `request ${reply.unique} is answered once`);
      open.delete(reply.unique);
      assert.deepEqual([reply.errno, reply.data.readUInt32LE(0)], [0, request.lengthBytes]);
      model.fill(request.value, request.offset, request.offset + request.lengthBytes);
    }
  }
  assert.equal(batch.count, 0);
  assert.ok(contentsOf(volume.originFd, SIZE_BYTES).equals(model), 'the origin has what was written');
  assert.equal(volume.memory.get(Word.FAILED), 0);
  assert.ok(volume.snapshot().equals(volume.t0), 'the snapshot is T0');
}
