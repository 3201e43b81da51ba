/**
 * A request by its steps, each transfer of which is left to whoever has many requests in hand (`batch.ts`).
 *
 * The steps are those that {@link runSteps} runs in one go, and the order within a request is the same: nothing is begun before
 * what comes before it has ended. Only between two steps may others go on.
 */
import { FdDevice } from '../block/device.js';
import type { Next, Transfer, Wait } from '../frontend/fuse/session.js';
import { assert } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import type { IoStep, Step, Steps } from '../tracer/steps.js';
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

  begin(stepsFor: (context: RequestContext) => Steps, executor: StepExecutor): Next {
    const context = this.#free.pop();
    assert(context !== undefined, 'there is a context for each request in hand');
    return beginSteps(stepsFor(context), executor, () => this.#free.push(context));
  }
}

/** A request's context, with a part of locked memory. */
export function contextOf(worker: number, memory: libc.Mapping, from: number, lengthBytes: number): RequestContext {
  const bytes = new Uint8Array(memory.bytes, from, lengthBytes);
  return { worker, scratch: { bytes, address: memory.address + from } };
}

/** `onEnd` is called once: when there is nothing left to do, or it has failed. */
function beginSteps(steps: Steps, executor: StepExecutor, onEnd: () => void): Next {
  return guarded(onEnd, () => nextOf(steps, steps.next(), executor, onEnd));
}

/** What the first step is that cannot be done at once. */
function nextOf(steps: Steps, from: IteratorResult<Step, void>, executor: StepExecutor, onEnd: () => void): Next {
  let next = from;
  while (next.done !== true) {
    const step = next.value;
    if (step.kind === 'wait') return waitFor(steps, step.word, step.value, executor, onEnd);
    if (step.kind === 'read' || step.kind === 'write') return transferOf(steps, step, executor, onEnd);
    next = performed(steps, step, executor);
  }
  onEnd();
  return undefined;
}

function performed(steps: Steps, step: IoStep, executor: StepExecutor): IteratorResult<Step, void> {
  try {
    executor.perform(step);
  } catch (error) {
    return steps.throw(error);
  }
  return steps.next();
}

function waitFor(steps: Steps, word: number, value: number, executor: StepExecutor, onEnd: () => void): Wait {
  return {
    isOver: () => !executor.isStill(word, value),
    sleep: (timeoutMs) => executor.sleep(word, value, timeoutMs),
    goOn: () => guarded(onEnd, () => nextOf(steps, steps.next(), executor, onEnd)),
  };
}

function transferOf(
  steps: Steps,
  step: Extract<Step, { kind: 'read' | 'write' }>,
  executor: StepExecutor,
  onEnd: () => void,
): Transfer {
  const { device, buffer, at, lengthBytes, offset } = step;
  assert(device instanceof FdDevice, 'a worker transfers to and from descriptors');
  device.checkRange(buffer, at, lengthBytes, offset);
  return {
    isWrite: step.kind === 'write',
    fd: device.fd,
    address: buffer.address + at,
    lengthBytes,
    offset,
    done: () => guarded(onEnd, () => nextOf(steps, steps.next(), executor, onEnd)),
    again: () => guarded(onEnd, () => nextOf(steps, performed(steps, step, executor), executor, onEnd)),
  };
}

/** A failure is the end, too. */
function guarded(onEnd: () => void, action: () => Next): Next {
  try {
    return action();
  } catch (error) {
    onEnd();
    throw error;
  }
}
