/**
 * A small world for the tracer: devices in memory and a scheduler that runs many requests in one thread, interleaved at every
 * step by a seed.
 */
import type { BlockDevice, IoBuffer } from '../block/device.js';
import { assert, SystemError } from '../sys/errors.js';
import { BLOCK_BYTES, layoutFor, VolumeMemory, Word } from './layout.js';
import { performIo, type Step, type Stepper, type Steps } from './steps.js';
import type { StoreConfig } from './store-map.js';
import { Tracer } from './tracer.js';

/** A disk in memory. Records what was done to it, and can be told to fail. */
export class MemoryDevice implements BlockDevice {
  readonly bytes: Buffer;
  readonly log: string[] = [];
  failWrites = false;
  failReads = false;

  constructor(sizeBytes: number) {
    this.bytes = Buffer.alloc(sizeBytes);
  }

  get sizeBytes(): number {
    return this.bytes.byteLength;
  }

  read(buffer: IoBuffer, at: number, lengthBytes: number, offset: number): void {
    this.#check(lengthBytes, offset);
    if (this.failReads) throw new SystemError('read', 5);
    buffer.bytes.set(this.bytes.subarray(offset, offset + lengthBytes), at);
  }

  write(buffer: IoBuffer, at: number, lengthBytes: number, offset: number): void {
    this.#check(lengthBytes, offset);
    this.log.push(`write ${offset}+${lengthBytes}`);
    if (this.failWrites) throw new SystemError('write', 5);
    this.bytes.set(buffer.bytes.subarray(at, at + lengthBytes), offset);
  }

  writeZeroes(offset: number, lengthBytes: number): void {
    this.#check(lengthBytes, offset);
    this.log.push(`zero ${offset}+${lengthBytes}`);
    this.bytes.fill(0, offset, offset + lengthBytes);
  }

  flush(): void {
    this.log.push('flush');
  }

  nextData(offset: number): number {
    return offset;
  }

  #check(lengthBytes: number, offset: number): void {
    assert(offset % 512 === 0 && lengthBytes % 512 === 0, `${offset}+${lengthBytes} is in whole sectors`);
    assert(
      lengthBytes > 0 && offset >= 0 && offset + lengthBytes <= this.sizeBytes,
      `${offset}+${lengthBytes} is in range`,
    );
  }
}

export function bufferOf(lengthBytes: number): IoBuffer {
  return { bytes: new Uint8Array(lengthBytes), address: 0 };
}

/** Shared memory in this process. */
export function memoryFor(blockCount: number): VolumeMemory {
  const bytes = new ArrayBuffer(layoutFor(blockCount).totalBytes);
  const copies = new Map<string, ArrayBuffer>();
  return new VolumeMemory(
    {
      map: (offset, lengthBytes) => {
        if (offset === 0) return { bytes, address: 0 };
        const key = `${offset}`;
        const view = copies.get(key) ?? new ArrayBuffer(lengthBytes);
        copies.set(key, view);
        return { bytes: view, address: 0 };
      },
    },
    blockCount,
  );
}

export interface World {
  tracer: Tracer;
  memory: VolumeMemory;
  origin: MemoryDevice;
  failures: string[];
}

/** A tracer over an origin of so many bytes. */
export function worldOf(sizeBytes: number): World {
  const origin = new MemoryDevice(sizeBytes);
  const memory = memoryFor(Math.ceil(sizeBytes / BLOCK_BYTES));
  const failures: string[] = [];
  const tracer = new Tracer(memory, origin, {
    wake: () => undefined,
    attention: (cause) => failures.push(cause ?? ''),
    refresh: () => undefined,
  });
  return { tracer, memory, origin, failures };
}

/** Begins to use a store, as the engine's switch does. */
export function beginSnapshot(
  { tracer, memory }: Pick<World, 'tracer' | 'memory'>,
  config: StoreConfig,
  device: BlockDevice,
): void {
  memory.set(Word.FAILED, 0);
  memory.set(Word.NEXT_SLOT, 0);
  memory.set(
    Word.SLOT_COUNT,
    config.slots.reduce((sum, run) => sum + run.count, 0),
  );
  memory.set(Word.CHANGED, 0);
  memory.set(Word.HEADER_STATE, 0);
  memory.map.fill(0);
  tracer.setStore({ config, dirtyHeader: new Uint8Array(BLOCK_BYTES).fill(0xdd) }, device);
  memory.set(Word.MODE, 2);
}

/** A small repeatable generator (mulberry32). */
export function randomOf(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let value = state;
    value = Math.imul(value ^ (value >>> 15), value | 1);
    value ^= value + Math.imul(value ^ (value >>> 7), value | 61);
    return ((value ^ (value >>> 14)) >>> 0) % below;
  };
}

/**
 * Runs requests to their ends in one thread: at each turn one of those that can go on does one step, chosen by the seed. A
 * waiting one can go on when its word has changed. Nobody able to go on is a deadlock.
 */
export function interleave(
  memory: VolumeMemory,
  requests: ReadonlyArray<Stepper>,
  random: (below: number) => number,
): void {
  const running = requests.map((steps) => ({
    steps,
    step: undefined as Step | undefined,
    error: undefined as unknown,
  }));
  const open = new Set(running);
  while (open.size > 0) {
    const able = [...open].filter(({ step }) => step?.kind !== 'wait' || memory.get(step.word) !== step.value);
    const chosen = able[random(Math.max(1, able.length))];
    assert(chosen !== undefined, `no deadlock among ${open.size} requests`);
    const next = advance(chosen);
    if (next.done === true) open.delete(chosen);
    else chosen.step = next.value;
  }
}

/** A machine's steps among others' of a generator. */
export function* stepsOf(stepper: Stepper): Steps {
  for (let next = stepper.next(); next.done !== true; ) {
    try {
      yield next.value;
    } catch (error) {
      next = stepper.throw(error);
      continue;
    }
    next = stepper.next();
  }
}

function advance(request: { steps: Stepper; step: Step | undefined }): IteratorResult<Step, void> {
  const { step, steps } = request;
  if (step !== undefined && step.kind !== 'wait') {
    try {
      performIo(step);
    } catch (error) {
      return steps.throw(error);
    }
  }
  return steps.next();
}
