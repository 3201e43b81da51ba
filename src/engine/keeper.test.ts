/** The keeper's order of things when an engine ends, with processes that end when the test says so. */
import assert from 'node:assert/strict';
import { ChildProcess } from 'node:child_process';
import { PassThrough } from 'node:stream';
import { describe, it } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import * as v from 'valibot';
import { EngineKeeper } from './keeper.js';

/** Longer than the first pauses before a new start. */
const LOOK_MS = 150;
const START_MS_MAX = 5_000;

const Message = v.object({
  id: v.number(),
  call: v.optional(v.string()),
  params: v.optional(v.looseObject({ operation: v.optional(v.string()) })),
});
/** The one operation that the engine of these tests survives. */
const HARMLESS = 'getFreeMinor';

/** A process that answers its start, and that a signal does not end at once: the kernel has a call of its in hand. */
class FakeProcess extends ChildProcess {
  override connected = true;
  override stdout = new PassThrough();
  override stderr = new PassThrough();
  override pid = 1;

  override send(message: unknown): boolean {
    const { id, call, params } = v.parse(Message, message);
    setImmediate(() => {
      if (call === 'request' && params?.operation !== HARMLESS) {
        // It dies in the middle of every operation, and whatever it had begun is undone by the next one.
        this.disconnects();
        this.exits();
      } else this.emit('message', { id, result: call === 'outcome' ? { kind: 'undone' } : null });
    });
    return true;
  }

  override kill(): boolean {
    return true;
  }

  disconnects(): void {
    this.connected = false;
    this.emit('disconnect');
  }

  exits(): void {
    this.emit('exit', null, 'SIGKILL');
  }
}

/** How starting a process fails: by an exception (out of memory), or by an event of one that never was (out of descriptors). */
type SpawnFailure = 'throws' | 'rejects';

/** As Node leaves it: no process id, no channel, and no streams either. */
function neverRan(): ChildProcess {
  const child = new ChildProcess();
  setImmediate(() => child.emit('error', new Error('spawn EMFILE')));
  return child;
}

function fails(how: SpawnFailure): ChildProcess {
  if (how === 'throws') throw new Error('spawn ENOMEM');
  return neverRan();
}

async function withKeeper(
  action: (started: FakeProcess[], keeper: EngineKeeper, failures: SpawnFailure[]) => Promise<void>,
): Promise<void> {
  const started: FakeProcess[] = [];
  /** Of the next starts. */
  const failures: SpawnFailure[] = [];
  const keeper = new EngineKeeper({
    enginePath: 'none',
    engineStart: null,
    onEvent: () => undefined,
    startProcess: () => {
      const failure = failures.shift();
      if (failure !== undefined) return fails(failure);
      const child = new FakeProcess();
      started.push(child);
      return child;
    },
  });
  await keeper.start();
  assert.equal(started.length, 1);
  await action(started, keeper, failures);
  const last = started.at(-1);
  const stopped = keeper.stop();
  last?.exits();
  await stopped;
}

async function untilStarted(started: readonly unknown[], count: number): Promise<void> {
  const deadline = Date.now() + START_MS_MAX;
  while (started.length < count) {
    assert.ok(Date.now() < deadline, `engine ${count} is started`);
    await pause(5);
  }
}

describe('the keeper', () => {
  it('starts no engine before the old one is reaped: what that has in hand would land after the next one’s answers', () =>
    withKeeper(async (started) => {
      started[0]?.disconnects();
      await pause(LOOK_MS);
      assert.equal(started.length, 1, 'the channel has ended, and the process has not');
      started[0]?.exits();
      await untilStarted(started, 2);
    }));

  it('starts no engine before all is heard that the old one said: a record may be the last of it', () =>
    withKeeper(async (started) => {
      started[0]?.exits();
      await pause(LOOK_MS);
      assert.equal(started.length, 1, 'the process has ended, and the channel has not');
      started[0]?.disconnects();
      await untilStarted(started, 2);
    }));

  it('begins an operation again that an engine’s death cut off and the next one undid, five times, and then says so', () =>
    withKeeper(async (started, keeper) => {
      await assert.rejects(keeper.request('destroy', { minor: 1 }), {
        code: 'EPIPE',
        outcome: 'failed',
        message: /ended 5 times in the middle of destroy, which was undone each time/,
      });
      assert.equal(started.length, 6);
    }));

  it('asks the next engine again what one died of answering, five times at most: it would end all of them', () =>
    withKeeper(async (started, keeper) => {
      const message = "The engine ended 5 times in the middle of changes: see the daemon's log";
      await assert.rejects(keeper.request('changes', { minor: 1 }), { code: 'EPIPE', outcome: 'failed', message });
      assert.equal(started.length, 6);
    }));

  it('never gives up: an engine that ends at once is started again and again', () =>
    withKeeper(async (started) => {
      for (let count = 1; count <= 8; count++) {
        await untilStarted(started, count);
        const before = Date.now();
        started[count - 1]?.disconnects();
        started[count - 1]?.exits();
        await untilStarted(started, count + 1);
        assert.ok(Date.now() - before < START_MS_MAX);
      }
    }));

  for (const how of ['throws', 'rejects'] as const) {
    it(`never gives up: it tries again where starting a process ${how}, and whoever waits is answered then`, () =>
      withKeeper(async (started, keeper, failures) => {
        failures.push(how, how, how);
        started[0]?.disconnects();
        started[0]?.exits();
        assert.equal(await keeper.request(HARMLESS, {}), null);
        assert.deepEqual([started.length, failures], [2, []]);
      }));
  }

  it('starts an engine at once for a restart where there is none, and says why it cannot', () =>
    withKeeper(async (started, keeper, failures) => {
      failures.push(...Array.from({ length: 12 }, () => 'throws' as const));
      started[0]?.disconnects();
      started[0]?.exits();
      while (failures.length > 3) await pause(5);
      await assert.rejects(keeper.restart(), { message: 'spawn ENOMEM' });
      failures.splice(0);
      const before = Date.now();
      await keeper.restart();
      assert.equal(started.length, 2);
      assert.ok(Date.now() - before < LOOK_MS, 'it does not wait for the next attempt');
    }));
});
