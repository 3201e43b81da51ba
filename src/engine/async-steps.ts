/** Running steps in the control thread, and the locked memory for them. */
import type { IoBuffer } from '../block/device.js';
import * as libc from '../sys/libc.js';
import { performIo, type Steps } from '../tracer/steps.js';

const SCRATCH_BYTES = 1_048_576;
const freeScratch: IoBuffer[] = [];

/** Locked, aligned memory of 1 MiB for the length of an action; kept for the next one. */
export async function withScratch<T>(action: (buffer: IoBuffer) => Promise<T> | T): Promise<T> {
  let buffer = freeScratch.pop();
  if (buffer === undefined) {
    const mapping = libc.mapLocked(SCRATCH_BYTES);
    buffer = { bytes: new Uint8Array(mapping.bytes), address: mapping.address };
  }
  try {
    return await action(buffer);
  } finally {
    freeScratch.push(buffer);
  }
}

const STEPS_PER_TURN = 8;

/** Runs steps in the control thread, which answers others in between. */
export async function runStepsAsync<T>(steps: Steps<T>): Promise<T> {
  let next = steps.next();
  let count = 0;
  while (next.done !== true) {
    const step = next.value;
    try {
      if (step.kind === 'wait') await new Promise((resolve) => setTimeout(resolve, 1));
      else performIo(step);
    } catch (error) {
      next = steps.throw(error);
      continue;
    }
    if (++count % STEPS_PER_TURN === 0) await new Promise((resolve) => setImmediate(resolve));
    next = steps.next();
  }
  return next.value;
}
