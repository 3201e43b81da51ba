/** Bugs made by hand that real tests have to find: each test is run over a copy of the program with the bug in it. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { CANNOT } from './lab.js';
import { CANARIES } from './simulator/canaries.js';
import { withMutant } from './simulator/mutants.js';

const TEST_MS_MAX = 90_000;

interface Outcome {
  passed: number;
  failed: number;
}

/** Runs the tests of one name in a copy. A test that hangs is ended as the runner ends it, and cleans up. */
async function runTest(root: string, file: string, name: string): Promise<Outcome> {
  const args = ['--test', '--test-reporter=tap', `--test-timeout=${TEST_MS_MAX}`, `--test-name-pattern=${name}`];
  // Under a runner of its own, not as a part of this one.
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const child = spawn(process.execPath, [...args, join(root, 'dist', file)], { cwd: root, env, stdio: 'pipe' });
  let output = '';
  child.stdout.on('data', (text: Buffer) => {
    output += text.toString();
  });
  await once(child, 'exit');
  const lines = output.split('\n').filter((line) => line.includes(name) && !line.includes('# SKIP'));
  return {
    passed: lines.filter((line) => /^ *ok /.test(line)).length,
    failed: lines.filter((line) => /^ *not ok /.test(line)).length,
  };
}

describe('canaries of real tests', { skip: CANNOT, concurrency: 2 }, () => {
  for (const canary of CANARIES) {
    const { by } = canary;
    if ('seed' in by) continue;
    it(`"${canary.name}" is found by ${by.test}`, async () => {
      const outcome = await withMutant(canary, (root) => runTest(root, by.test, by.name));
      assert.deepEqual(outcome, { passed: 0, failed: 1 });
    });
  }
});
