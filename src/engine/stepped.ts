/**
 * A request by its steps, each transfer of which is left to whoever has many requests in hand (`batch.ts`).
 *
 * The steps are those that `runSteps` runs in one go, and the order within a request is the same: nothing is begun before what
 * comes before it has ended. Only between two steps may others go on.
 */
import { FdDevice } from '../block/device.js';
import type { Next, Pending } from '../frontend/fuse/session.js';
import { assert } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import type { IoStep, Step, Stepper } from '../tracer/steps.js';
import type { RequestContext } from '../tracer/tracer.js';

/** How the steps of one volume are executed where they are not left to the caller. */
export interface StepExecutor {
  /** Whether a word of the volume's memory still has a value. */
  isStill(word: number, value: number): boolean;
  /** Sleeps while it has, so long at most. */
  sleep(word: number, value: number, timeoutMs: number): void;
  /** Executes in this thread what is no plain transfer. */
  perform(step: IoStep): void;
}

/** Begins requests, as many at a time as there are contexts: each has one to itself from its first step to its last. */
export class SteppedRequests {
  readonly #free: RequestContext[];

  constructor(worker: number, count: number, scratchBytes: number) {
    const memory = libc.mapLocked(count * scratchBytes);
    this.#free = Array.from({ length: count }, (_, i) => contextOf(worker, memory, i * scratchBytes, scratchBytes));
  }

  begin(stepsFor: (context: RequestContext) => Stepper, executor: StepExecutor): Next {
    const context = this.#free.pop();
    assert(context !== undefined, 'there is a context for each request in hand');
    return new SteppedRequest(stepsFor(context), executor, () => this.#free.push(context)).begin();
  }
}

/** A request's context, with a part of locked memory. */
export function contextOf(worker: number, memory: libc.Mapping, from: number, lengthBytes: number): RequestContext {
  const bytes = new Uint8Array(memory.bytes, from, lengthBytes);
  return { worker, scratch: { bytes, address: memory.address + from } };
}

/** What its request waits for at present: its fields change from step to step. */
class SteppedRequest implements Pending {
  isTransfer = true;
  isWrite = false;
  fd = -1;
  address = 0;
  lengthBytes = 0;
  offset = 0;
  readonly #steps: Stepper;
  readonly #executor: StepExecutor;
  readonly #onEnd: () => void;
  #step: Step | undefined;

  /** `onEnd` is called once: when there is nothing left to do, or it has failed. */
  constructor(steps: Stepper, executor: StepExecutor, onEnd: () => void) {
    this.#steps = steps;
    this.#executor = executor;
    this.#onEnd = onEnd;
  }

  begin(): Next {
    return this.done();
  }

  done(): Next {
    try {
      return this.#from(this.#steps.next());
    } catch (error) {
      this.#onEnd();
      throw error;
    }
  }

  again(): Next {
    try {
      const step = this.#step;
      assert(step !== undefined && step.kind !== 'wait', 'the step is a transfer');
      return this.#from(this.#performed(step));
    } catch (error) {
      this.#onEnd();
      throw error;
    }
  }

  isOver(): boolean {
    const step = this.#step;
    return step?.kind !== 'wait' || !this.#executor.isStill(step.word, step.value);
  }

  sleep(timeoutMs: number): void {
    const step = this.#step;
    if (step?.kind === 'wait') this.#executor.sleep(step.word, step.value, timeoutMs);
  }

  /** Goes on to the first step that cannot be done at once. */
  #from(first: IteratorResult<Step, void>): Next {
    let next = first;
    while (next.done !== true) {
      const step = next.value;
      this.#step = step;
      if (step.kind === 'wait') {
        this.isTransfer = false;
        return this;
      }
      if (step.kind !== 'read' && step.kind !== 'write') {
        next = this.#performed(step);
        continue;
      }
      try {
        this.#leave(step);
        return this;
      } catch (error) {
        next = this.#steps.throw(error);
      }
    }
    this.#onEnd();
    return undefined;
  }

  #leave({ kind, device, buffer, at, lengthBytes, offset }: Extract<Step, { kind: 'read' | 'write' }>): void {
    assert(device instanceof FdDevice, 'a worker transfers to and from descriptors');
    device.checkRange(buffer, at, lengthBytes, offset);
    this.isTransfer = true;
    this.isWrite = kind === 'write';
    this.fd = device.fd;
    this.address = buffer.address + at;
    this.lengthBytes = lengthBytes;
    this.offset = offset;
  }

  #performed(step: IoStep): IteratorResult<Step, void> {
    try {
      this.#executor.perform(step);
    } catch (error) {
      return this.#steps.throw(error);
    }
    return this.#steps.next();
  }
}
