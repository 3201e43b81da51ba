/** Cowbird on a kernel that is not this machine's: Debian's own, in a guest (`npm run test:vm`). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runGuestTests, whyNoGuest } from './vm/command.js';
import { DEFAULT_KERNEL } from './vm/kernel.js';

/** It has the processors with other tests. */
const TIMEOUT_MS = 480_000;

test('a stock kernel of Debian runs everything that is tried in a guest', { skip: await whyNoGuest() }, async (t) => {
  const onLine = (line: string): void => t.diagnostic(line);
  const result = await runGuestTests({ kernel: DEFAULT_KERNEL, files: ['vm/inside'], timeoutMs: TIMEOUT_MS, onLine });
  assert.equal(result.exitCode, 0, `${result.output.join('\n')}\n${result.console}`);
  const passed = result.output.filter((line) => /^ok \d+ - /.test(line) && !line.includes('# SKIP'));
  assert.ok(passed.length === 1, result.output.join('\n'));
});
