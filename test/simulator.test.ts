/**
 * The write path over simulated disks, with kills at any I/O and any access to the shared memory, power loss and faults,
 * checked against a model after every step; and bugs made by hand, which the same seeds have to find.
 */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { CANARIES } from './simulator/canaries.js';
import { commandFor, main, SEEDS_OF_CI } from './simulator/command.js';
import { occurrences, ROOT, runSeedsIn, withMutant } from './simulator/mutants.js';

/** Of the write path as it is: `npm run simulate` runs as many as there is time for. Those of the canaries are among them. */
const SEEDS = 200;
const END = SEEDS_OF_CI + 1;

describe('the simulator', () => {
  it(`finds nothing in seeds 1 to ${SEEDS} of the write path as it is (I1, I2, I3, I6)`, async (t) => {
    const { seed, message, seeds, steps, counts } = await runSeedsIn(ROOT, 1, SEEDS + 1);
    assert.equal(seed, undefined, `${message}\nTo repeat it: ${commandFor(seed ?? 0)}`);
    t.diagnostic(`${seeds} seeds, ${steps} steps, ${JSON.stringify(counts)}`);
    // What never happened was not tried.
    const { kinds, ...rest } = counts;
    for (const [name, count] of Object.entries(rest)) assert.ok(count > 0, `${name} happened`);
    for (const kind of ['begin', 'toIncremental', 'next', 'grow', 'reload', 'end'])
      assert.ok((kinds[kind] ?? 0) > 10, `a switch "${kind}" was made`);
  });

  it('repeats a failing seed by the one command that it prints', async () => {
    const [canary] = CANARIES;
    assert.ok(canary !== undefined);
    const lines: string[] = [];
    const print = (line: string): number => lines.push(line);
    assert.equal(await main(['--canary', canary.name], print), 1);
    const command = lines.join('\n').match(/To repeat it: npm run simulate -- --seed (\d+) --canary "(.*)"$/);
    assert.ok(command !== null, lines.join('\n'));
    const [, seed = '', name = ''] = command;
    const first = lines.splice(0);
    assert.equal(await main(['--seed', seed, '--canary', name], print), 1);
    assert.equal(lines.at(-2), first.at(-2));
    assert.equal(await main(['--seed', seed], print), 0);
  });

  it('refuses what it does not know, with the usage', async () => {
    for (const args of [['--canary', 'none'], ['--seed', 'x'], ['--minutes', '-1'], ['--what']]) {
      const lines: string[] = [];
      assert.equal(await main(args, (line) => lines.push(line)), 2);
      assert.match(lines.join('\n'), /usage: npm run simulate/);
    }
  });
});

describe('canaries', () => {
  it('each edit fits the compiled code in exactly one place', () => {
    for (const canary of CANARIES)
      for (const count of occurrences(canary))
        assert.equal(count, 1, `${canary.name}: adapt its edits to ${canary.file}`);
  });

  for (const canary of CANARIES) {
    const { name, by } = canary;
    if (!('seed' in by)) continue;
    it(`"${name}" is found by the simulator`, async (t) => {
      const { seed, message } = await withMutant(canary, (root) => runSeedsIn(root, 1, END, by.seed));
      assert.ok(seed !== undefined, `no seed of 1 to ${SEEDS_OF_CI} finds it`);
      t.diagnostic(`seed ${seed}: ${message.split('\n')[0]?.slice(0, 120)}`);
      if (seed !== by.seed) t.diagnostic(`seed ${by.seed} does not find it any more: name this one in canaries.ts`);
    });
  }
});
