/** Who has a node for a moment is waited for; who keeps it is told of. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { outwait } from './visitors.js';

/** Finds these one after the other, then nothing; counts how often it was asked. */
function looking(found: readonly string[]): { look: () => string | undefined; looks: () => number } {
  let at = 0;
  return { look: () => found[at++], looks: () => at };
}

describe('a node that somebody has', () => {
  it('is free when the visitors have gone', async () => {
    const { look, looks } = looking(['udev', 'blkid']);
    assert.equal(await outwait(look), undefined);
    assert.equal(looks(), 3);
  });

  it('is not waited for where nobody has it, nor where whoever has it is no visitor', async () => {
    const nobody = looking([]);
    assert.equal(await outwait(nobody.look), undefined);
    assert.equal(nobody.looks(), 1);
    const owner = looking(['owner', 'owner']);
    assert.equal(await outwait(owner.look, { isVisitor: (name) => name !== 'owner' }), 'owner');
    assert.equal(owner.looks(), 1);
  });

  it('is looked at once more after the wait, and then is had by whoever is found', async () => {
    let looks = 0;
    const stays = (): Promise<string> => {
      looks++;
      return Promise.resolve('fsck');
    };
    assert.equal(await outwait(stays, { waitMs: 30 }), 'fsck');
    assert.ok(looks >= 2, `${looks} looks`);
    const slow = looking(['udev']);
    const lookSlowly = async (): Promise<string | undefined> => {
      await pause(60);
      return slow.look();
    };
    assert.equal(await outwait(lookSlowly, { waitMs: 30 }), undefined, 'it went while it was looked for');
  });
});
