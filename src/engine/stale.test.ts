/** Links that other daemons make and remove at the same time. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { isDeadLink } from './stale.js';

it('a link that is not there any more, or leads elsewhere than to a loop device, is no dead link', () => {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-stale-'));
  try {
    symlinkSync('/dev/null', join(folder, 'other'));
    symlinkSync('/dev/loop16777215', join(folder, 'dead'));
    assert.equal(isDeadLink(join(folder, 'gone')), false);
    assert.equal(isDeadLink(join(folder, 'other')), false);
    assert.equal(isDeadLink(join(folder, 'dead')), true);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
