/**
 * Named points at which a test may end the engine, make its control thread hang, or wait a while, or make what it does there fail.
 *
 * With COWBIRD_FAIL_POINTS=1 in the daemon's environment the file `fail-point` in the run directory names a point, how many
 * times it is to be passed first, and what is to happen then (`after-append 17 kill`). The engine takes the file away when it
 * has read it. `kill` is SIGKILL: the same end as any other, at a place that a random moment rarely meets. Without the
 * variable nothing is looked at.
 */
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { IoBuffer } from '../block/device.js';
import { errnoOfError } from '../sys/errors.js';
import type { Stepper, Steps } from '../tracer/steps.js';

/** Whether points can be armed at all. */
export const FAIL_POINTS_ENABLED = process.env['COWBIRD_FAIL_POINTS'] === '1';

export interface ArmedPoint {
  name: string;
  /** Times that it may still be passed. */
  passes: number;
  action: FailAction;
}

const ACTIONS = ['kill', 'hang', 'pause', 'throw'] as const;
const PAUSE_MS = 1_500;
type FailAction = (typeof ACTIONS)[number];

let armed: ArmedPoint | undefined;

/** Sets or clears the point of this thread. */
export function arm(point: ArmedPoint | undefined): void {
  armed = point;
}

/** Reads and removes the file that names a point; undefined where there is none. */
export function takeFailPoint(runDir: string): ArmedPoint | undefined {
  if (!FAIL_POINTS_ENABLED) return undefined;
  const path = join(runDir, 'fail-point');
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if (errnoOfError(error) === 2) return undefined;
    throw error;
  }
  const [name = '', passes = '0', action = 'kill'] = text.trim().split(' ');
  arm({ name, passes: Number(passes), action: ACTIONS.find((known) => known === action) ?? 'kill' });
  // Taken away last: whoever waits for that finds the point armed.
  rmSync(path);
  return armed;
}

/** Does what was asked for, when this is the armed point. */
export function failPoint(name: string): void {
  if (!FAIL_POINTS_ENABLED || armed?.name !== name) return;
  if (armed.passes-- > 0) return;
  if (armed.action === 'throw') {
    armed = undefined;
    throw new Error(`The fail point ${name}`);
  }
  const { action } = armed;
  if (action === 'pause') armed = undefined;
  if (action === 'kill') process.kill(process.pid, 'SIGKILL');
  // The signal is asynchronous for the other threads, not for what this one would do next.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, action === 'pause' ? PAUSE_MS : undefined);
}

/**
 * The steps of a write, with the points between them. Where nothing can be armed these are the steps themselves. What is
 * written from `scratch` goes to the store; the request's own data lies elsewhere.
 */
export function withFailPoints<T>(steps: Stepper<T>, scratch: IoBuffer): Stepper<T> {
  return FAIL_POINTS_ENABLED ? watched(steps, scratch) : steps;
}

function* watched<T>(steps: Stepper<T>, scratch: IoBuffer): Steps<T> {
  let hasSaved = false;
  let next = steps.next();
  while (next.done !== true) {
    const step = next.value;
    const isAppend = step.kind === 'write' && step.buffer === scratch;
    const changesOrigin = step.kind === 'zero' || (step.kind === 'write' && !isAppend);
    if (step.kind === 'read') failPoint('after-claim');
    if (changesOrigin && hasSaved) failPoint('after-index');
    if (changesOrigin) failPoint('before-origin-write');
    try {
      yield step;
    } catch (error) {
      next = steps.throw(error);
      continue;
    }
    if (step.kind === 'read') failPoint('after-read');
    if (isAppend) {
      hasSaved = true;
      failPoint('after-append');
    }
    next = steps.next();
  }
  failPoint('before-reply');
  return next.value;
}
