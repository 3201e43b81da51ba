/** The engine is killed, at random moments and at named points, under verified load: the file system above only pauses. */
import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import {
  attachesAndDetaches,
  killsInWrites,
  killsWhileResuming,
  SETUP_POINTS,
  setupsAndDestroys,
  tally,
  transitions,
} from './kill-scenarios.js';
import { CANNOT } from './lab.js';

/** Of each kind some; `npm run test:long` has thousands. */
const KILLS_MIN = 50;
/** Setups are cut off at all of them. */
const EVERY_OTHER_POINT = SETUP_POINTS.filter((_, i) => i % 2 === 0);

// Two at a time, each with a daemon of its own.
describe('an engine that ends', { skip: CANNOT, concurrency: 2 }, () => {
  after(() => {
    console.log(`# the engine was killed ${tally.kills} times`);
    assert.ok(tally.kills >= KILLS_MIN, `at least ${KILLS_MIN} kills`);
  });

  it('in the middle of transitions and expansions, on ext4: each image follows from the one before and the changes', (t) =>
    transitions(t, { fsType: 'ext4', minor: 180, points: EVERY_OTHER_POINT }));

  it('in the middle of a setup or destroy, on ext4: it is finished, or begun again', (t) =>
    setupsAndDestroys(t, { fsType: 'ext4', minor: 181, points: SETUP_POINTS }));

  it('in the middle of a setup or destroy, on xfs: it is finished, or begun again', (t) =>
    setupsAndDestroys(t, { fsType: 'xfs', minor: 183, points: ['paused', 'committed'] }));

  // The write path knows no file system: each of its points once in each mode, and random moments on both.
  const WRITES = [
    ['snapshot', 'ext4', 1],
    ['incremental', 'ext4', 1],
    ['passthrough', 'xfs', 1],
    ['snapshot', 'xfs', 0],
  ] as const;
  for (const [i, [mode, fsType, rounds]] of WRITES.entries()) {
    it(`in the write path, in ${mode} mode on ${fsType}: it costs a pause, no error and no byte`, (t) =>
      killsInWrites(t, { fsType, mode, minor: 184 + i, rounds, randomKills: 2 }));
  }

  it('in the middle of an attach or a detach leaves it done, and no trace of a half one', attachesAndDetaches);

  it('while it is resuming from the kill before: the next one goes on', (t) => killsWhileResuming(t, 179));
});
