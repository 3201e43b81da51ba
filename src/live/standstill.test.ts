/** Disks of one instant: all are frozen at once, none while another one has much left to be read. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { Frozen } from './freezer.js';
import { type Attempted, type FrozenWork, SharedStandstill } from './standstill.js';

class FakeFreezer {
  freezes = 0;
  syncs = 0;
  inSync = 0;
  failure: Error | undefined;

  async sync(): Promise<void> {
    this.inSync++;
    assert.equal(this.inSync, 1, 'one at a time');
    await new Promise((resolve) => setImmediate(resolve));
    this.inSync--;
    this.syncs++;
  }

  async frozen<T>(action: () => T, ahead: () => boolean = () => false): Promise<Frozen<T>> {
    this.freezes++;
    if (this.failure !== undefined) throw this.failure;
    while (ahead());
    return { result: action(), freezeMs: 7, problem: 'the hook failed' };
  }
}

/** Has nothing to do before. */
function work(frozen: () => boolean): FrozenWork {
  return { ahead: () => false, frozen };
}

const turns = async (): Promise<void> => {
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
};

function shared(members: number): {
  freezer: FakeFreezer;
  standstill: SharedStandstill;
  clock: { ms: number };
} {
  const freezer = new FakeFreezer();
  const clock = { ms: 0 };
  return { freezer, clock, standstill: new SharedStandstill(freezer, members, () => clock.ms) };
}

describe('the standstill of several disks', () => {
  it('is one freeze, in which each does its own, once all are there', async () => {
    const { freezer, standstill } = shared(2);
    const order: string[] = [];
    const did = (name: string) => () => order.push(name) > 0;
    const first = standstill.member().attempt(work(did('a')));
    await turns();
    assert.equal(freezer.freezes, 0);
    const second = standstill.member().attempt(work(did('b')));
    const [one, other] = await Promise.all([first, second]);
    const expected: Attempted = { outcome: 'done', at: one.at, freezeMs: 7, problem: 'the hook failed' };
    assert.ok(one.at instanceof Date);
    // Of one instant, and so of one time.
    assert.deepEqual([one, other], [expected, { ...expected, problem: undefined }]);
    assert.deepEqual([freezer.freezes, order], [1, ['a', 'b']]);
  });

  it('was none for any of them where one has not got what it wanted', async () => {
    const { standstill } = shared(3);
    let wasCalled = false;
    const actions = [() => true, () => false, () => (wasCalled = true)];
    const all = await Promise.all(actions.map((action) => standstill.member().attempt(work(action))));
    assert.deepEqual(
      all.map(({ outcome }) => outcome),
      ['not done', 'not done', 'not done'],
    );
    assert.equal(wasCalled, false, 'the freeze ends with the one that failed');
  });

  it('sends back who has waited for long, and waits for it again', async () => {
    const { freezer, standstill, clock } = shared(2);
    const [early, late] = [standstill.member(), standstill.member()];
    const waited = early.attempt(work(() => true));
    clock.ms = 60_000;
    const second = late.attempt(work(() => true));
    assert.equal((await waited).outcome, 'early');
    assert.equal(freezer.freezes, 0);
    clock.ms += 300;
    const again = early.attempt(work(() => true));
    assert.deepEqual([(await again).outcome, (await second).outcome, freezer.freezes], ['done', 'done', 1]);
  });

  it('comes at last where each one’s pass lasts longer than the others may wait', async () => {
    const { freezer, standstill, clock } = shared(2);
    let sentBack = 0;
    const disk = async (): Promise<void> => {
      const member = standstill.member();
      while ((await member.attempt(work(() => true))).outcome === 'early') {
        sentBack++;
        clock.ms += 5_000;
      }
    };
    const first = disk();
    clock.ms += 5_000;
    await Promise.all([first, disk()]);
    assert.equal(freezer.freezes, 1);
    assert.ok(sentBack > 1 && sentBack < 20, `${sentBack}`);
  });

  it('never comes when one of them does not: the others, waiting or on their way, hear why', async () => {
    const { freezer, standstill } = shared(3);
    const waiting = standstill.member().attempt(work(() => true));
    const error = new Error('its disk is gone');
    standstill.abort(error);
    standstill.abort(new Error('another one'));
    await assert.rejects(waiting, error);
    await assert.rejects(standstill.member().attempt(work(() => true)), error);
    assert.deepEqual([standstill.error, freezer.freezes], [error, 0]);
  });

  it('fails for all with the freeze', async () => {
    const { freezer, standstill } = shared(2);
    freezer.failure = new Error('thawed too early');
    const both = [0, 1].map(() => standstill.member().attempt(work(() => true)));
    const outcomes = await Promise.allSettled(both);
    assert.deepEqual(
      outcomes.map((outcome) => outcome.status === 'rejected' && outcome.reason),
      [freezer.failure, freezer.failure],
    );
  });

  it('asks the helper one thing at a time', async () => {
    const { freezer, standstill } = shared(2);
    await Promise.all([standstill.member().sync(), standstill.member().sync()]);
    assert.equal(freezer.syncs, 2);
  });
});
