/**
 * The long run (`npm run test:long`): thousands of kills of the engine under verified writes of 1 MiB at depth 8, in every
 * mode on ext4 and xfs, with the pauses timed by reads past the cache; and every operation cut off at every point.
 */
import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import { killsInWrites, SETUP_POINTS, setupsAndDestroys, tally, transitions } from './kill-scenarios.js';
import { CANNOT } from './lab.js';
import { quantile } from './prober.js';

const KILLS = Number(process.env['COWBIRD_LONG_KILLS'] ?? 2_000);
const KILLS_A_ROUND = 60;
const FS_TYPES = ['ext4', 'xfs'] as const;

describe('an engine that ends again and again', { skip: CANNOT }, () => {
  after(() => {
    const [median, p99] = [quantile(tally.pausesMs, 0.5), quantile(tally.pausesMs, 0.99)].map(Math.round);
    const longest = Math.round(quantile(tally.pausesMs, 1));
    console.log(
      `# ${tally.kills} kills; ${tally.pausesMs.length} pauses: median ${median} ms, p99 ${p99} ms, longest ${longest} ms`,
    );
    assert.ok(tally.kills >= KILLS, `${tally.kills} kills are at least ${KILLS}`);
  });

  for (const fsType of FS_TYPES) {
    it(`in the middle of operations, at every point, on ${fsType}`, async (t) => {
      await setupsAndDestroys(t, { fsType, minor: 173, points: SETUP_POINTS });
      await transitions(t, { fsType, minor: 174, points: SETUP_POINTS });
    });
  }

  const rounds = Math.ceil(KILLS / KILLS_A_ROUND);
  for (let round = 0; round < rounds; round++) {
    const fsType = FS_TYPES[round % 2] ?? 'ext4';
    const mode = (['snapshot', 'incremental', 'passthrough'] as const)[Math.floor(round / 2) % 3] ?? 'snapshot';
    it(`in the write path, round ${round + 1} of ${rounds}: ${mode} mode on ${fsType}`, (t) =>
      killsInWrites(t, { fsType, mode, minor: 175, rounds: 1, randomKills: KILLS_A_ROUND, isProbed: true }));
  }
});
