/**
 * The write path is written as generators: each I/O and each wait is a step that it yields.
 *
 * The engine's workers execute a step at once, in the same thread ({@link runSteps}); a simulator executes the steps of
 * many requests in any order it likes, in one thread, and crashes between any two. One code for both, so that what was
 * tried is what runs.
 */
import type { BlockDevice, IoBuffer } from '../block/device.js';

export interface ReadStep {
  kind: 'read';
  device: BlockDevice;
  buffer: IoBuffer;
  at: number;
  lengthBytes: number;
  offset: number;
}

export type Step =
  | ReadStep
  /** Reads into memory that does not overlap, in any order or at the same time; all have ended when this has, failed or not. */
  | { kind: 'readTogether'; reads: readonly ReadStep[] }
  | { kind: 'write'; device: BlockDevice; buffer: IoBuffer; at: number; lengthBytes: number; offset: number }
  | { kind: 'zero'; device: BlockDevice; lengthBytes: number; offset: number; unmap: boolean }
  | { kind: 'flush'; device: BlockDevice }
  /** Sleep while the word has the value; may return early: the caller looks again. */
  | { kind: 'wait'; word: number; value: number };

export type Steps<T = void> = Generator<Step, T, undefined>;

/** What runs steps needs of them: a generator of steps, or a machine that is as good. */
export interface Stepper<T = void> {
  /** The next step, once the one before is done. */
  next(): IteratorResult<Step, T>;
  /** The step before has failed. */
  throw(error: unknown): IteratorResult<Step, T>;
}

export type IoStep = Exclude<Step, { kind: 'wait' }>;

/** Executes one I/O step on its device. */
export function performIo(step: IoStep): void {
  switch (step.kind) {
    case 'read':
      step.device.read(step.buffer, step.at, step.lengthBytes, step.offset);
      break;
    case 'readTogether':
      for (const read of step.reads) performIo(read);
      break;
    case 'write':
      step.device.write(step.buffer, step.at, step.lengthBytes, step.offset);
      break;
    case 'zero':
      step.device.writeZeroes(step.offset, step.lengthBytes, step.unmap);
      break;
    case 'flush':
      step.device.flush();
      break;
  }
}

/** Runs steps to their end in this thread. `wait` sleeps on a word of the shared memory; `perform` executes the I/O. */
export function runSteps<T>(
  steps: Stepper<T>,
  wait: (word: number, value: number) => void,
  perform: (step: IoStep) => void = performIo,
): T {
  let next = steps.next();
  while (next.done !== true) {
    const step = next.value;
    try {
      if (step.kind === 'wait') wait(step.word, step.value);
      else perform(step);
    } catch (error) {
      next = steps.throw(error);
      continue;
    }
    next = steps.next();
  }
  return next.value;
}
