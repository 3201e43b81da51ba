/** One seed from its beginning to its end, or to the first violation. */

import { randomOf } from '../../src/tracer/testing.js';
import type { Counts } from './counts.js';
import { type Scenario, scenarioOf } from './scenario.js';
import { Violation } from './violation.js';
import { World } from './world.js';

export interface Result {
  seed: number;
  scenario: Scenario;
  steps: number;
  violation: Violation | undefined;
  counts: Counts;
}

export function runSeed(seed: number): Result {
  const random = randomOf(seed);
  const scenario = scenarioOf(random);
  const world = new World(scenario, random);
  let violation: Violation | undefined;
  try {
    world.run();
  } catch (error) {
    // Whatever else comes out of it is a failure of this seed as well.
    violation =
      error instanceof Violation
        ? error
        : new Violation(error instanceof Error ? (error.stack ?? error.message) : String(error));
  }
  return { seed, scenario, steps: world.steps, violation, counts: world.counts };
}
