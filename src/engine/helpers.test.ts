/** Helpers for real: whose session has ended serves the next one, unless it may have left something. And ones that hang. */
import assert from 'node:assert/strict';
import { ChildProcess } from 'node:child_process';
import { PassThrough } from 'node:stream';
import { describe, it, type TestContext } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import * as v from 'valibot';
import { Helpers } from './helpers.js';
import { ENGINE_PROTOCOL } from './protocol.js';

const CALL_MS = 20_000;
const NO_FILE = { file: { path: '/nonexistent/cow', dev: 0, ino: 0 } };

function helpersFor(t: TestContext): Helpers {
  const helpers = new Helpers(
    () => undefined,
    () => undefined,
    () => undefined,
  );
  t.after(() => helpers.killAll());
  return helpers;
}

async function session(helpers: Helpers, call = 'isStore', protocol = ENGINE_PROTOCOL): Promise<number> {
  const number = helpers.start(protocol);
  await helpers.call(number, call, NO_FILE, CALL_MS).catch(() => undefined);
  await helpers.end(number);
  return number;
}

describe('a helper', () => {
  it('rests when its session has ended, and serves the next one', async (t) => {
    const helpers = helpersFor(t);
    const first = await session(helpers);
    assert.equal(await session(helpers), first);
    assert.equal(await session(helpers), first);
  });

  it('ends when a call of its session failed', async (t) => {
    const helpers = helpersFor(t);
    const first = await session(helpers, 'noSuchCall');
    assert.notEqual(await session(helpers), first);
  });

  it('serves none of another protocol', async (t) => {
    const helpers = helpersFor(t);
    const first = await session(helpers);
    assert.notEqual(await session(helpers, 'isStore', ENGINE_PROTOCOL + 1), first);
  });

  it('is one of two whose sessions have ended; the other one ends', async (t) => {
    const helpers = helpersFor(t);
    const both = [helpers.start(ENGINE_PROTOCOL), helpers.start(ENGINE_PROTOCOL)];
    for (const number of both) await helpers.call(number, 'isStore', NO_FILE, CALL_MS);
    for (const number of both) await helpers.end(number);
    assert.equal(helpers.start(ENGINE_PROTOCOL), both[0]);
    assert.ok(!both.includes(helpers.start(ENGINE_PROTOCOL)));
  });

  it('ends with its engine, also when it rests', async (t) => {
    const helpers = helpersFor(t);
    const first = await session(helpers);
    helpers.dismissAll();
    await helpers.gone();
    assert.notEqual(await session(helpers), first);
  });
});

const Message = v.object({
  id: v.number(),
  call: v.optional(v.string()),
  params: v.optional(v.looseObject({ mountPoints: v.optional(v.array(v.string())) })),
});

/** A helper that answers what it is told to answer, and that no signal ends: the kernel has a call of its in hand. */
class FakeHelper extends ChildProcess {
  override connected = true;
  override stdout = new PassThrough();
  override stderr = new PassThrough();
  override pid = 1;
  readonly #answers: (call: string, mountPoints: readonly string[], helper: FakeHelper) => unknown;

  constructor(answers: (call: string, mountPoints: readonly string[], helper: FakeHelper) => unknown) {
    super();
    this.#answers = answers;
  }

  override send(message: unknown): boolean {
    const { id, call, params } = v.parse(Message, message);
    if (call === undefined) return true;
    setImmediate(() => {
      const result = this.#answers(call, params?.mountPoints ?? [], this);
      if (result !== undefined) this.emit('message', { id, result });
    });
    return true;
  }

  tells(mountPoint: string, step: string): void {
    this.emit('message', { id: 1, call: 'freezeStep', params: { mountPoint, step } });
  }

  override kill(): boolean {
    return true;
  }

  override disconnect(): void {
    this.connected = false;
    this.emit('disconnect');
  }

  dies(): void {
    this.disconnect();
    this.emit('exit', null, 'SIGKILL');
  }
}

const POINTS = ['/a', '/others', '/b', '/c'];
const LIMIT_MS = 20;

/** The first helper freezes /a, finds /others frozen, and hangs in /b. The others thaw: each call for a mount point is listed. */
function hangingFreeze(thaws: (mountPoint: string) => unknown): {
  helpers: Helpers;
  asked: string[];
  failed: Promise<unknown>;
  hung: () => FakeHelper;
} {
  const asked: string[] = [];
  const started: FakeHelper[] = [];
  const helpers = new Helpers(
    () => undefined,
    () => undefined,
    () => undefined,
    () => {
      const fake = new FakeHelper((call, mountPoints, helper) => {
        if (call === 'freeze') {
          for (const [mountPoint, step] of HANGS_IN_B) helper.tells(mountPoint, step);
          return undefined;
        }
        if (call !== 'thawAfterDeath') return null;
        asked.push(mountPoints.join());
        return thaws(mountPoints.join());
      });
      started.push(fake);
      return fake;
    },
  );
  const number = helpers.start(ENGINE_PROTOCOL);
  const freeze = async (): Promise<void> => {
    await helpers.call(number, 'prepareFreeze', { mountPoints: POINTS, gates: [] }, CALL_MS);
    await helpers.call(number, 'freeze', {}, LIMIT_MS);
  };
  const hung = (): FakeHelper => {
    const [first] = started;
    assert.ok(first !== undefined);
    return first;
  };
  return {
    helpers,
    asked,
    failed: assert.rejects(freeze, { code: 'ETIMEDOUT', message: /: \/b does not answer$/ }),
    hung,
  };
}

const HANGS_IN_B = [
  ['/a', 'freezing'],
  ['/a', 'frozen'],
  ['/others', 'freezing'],
  ['/others', 'notOurs'],
  ['/b', 'freezing'],
] as const;

describe('a helper that hangs in one of several file systems that it freezes', () => {
  it('is told by the name of that, and has what it froze thawed at once, each file system by a helper of its own', async () => {
    // The thaw of /b hangs as well.
    const { asked, failed } = hangingFreeze((mountPoint) => (mountPoint === '/b' ? undefined : { thawed: 1 }));
    await failed;
    await pause(LIMIT_MS);
    assert.deepEqual(asked.sort(), ['/a', '/b']);
  });

  it('has nothing thawed twice when it ends at last: that would be somebody else’s freeze', async () => {
    let isFrozen = false;
    const thaws = (mountPoint: string): unknown => ({ thawed: mountPoint === '/a' || isFrozen ? 1 : 0 });
    const { asked, failed, hung } = hangingFreeze(thaws);
    await failed;
    await pause(LIMIT_MS);
    // Its call returns, and leaves /b frozen.
    isFrozen = true;
    hung().dies();
    await pause(LIMIT_MS);
    assert.deepEqual(asked.sort(), ['/a', '/b', '/b']);
  });

  it('and that tells no steps, as an older one, has everything thawed', async () => {
    const asked: string[] = [];
    const helpers = new Helpers(
      () => undefined,
      () => undefined,
      () => undefined,
      () =>
        new FakeHelper((call, mountPoints) => {
          if (call === 'thawAfterDeath') asked.push(mountPoints.join());
          return call === 'freeze' ? undefined : null;
        }),
    );
    const number = helpers.start(ENGINE_PROTOCOL);
    await helpers.call(number, 'prepareFreeze', { mountPoints: POINTS, gates: [] }, CALL_MS);
    await assert.rejects(helpers.call(number, 'freeze', {}, LIMIT_MS), { code: 'ETIMEDOUT' });
    await pause(LIMIT_MS);
    assert.deepEqual(asked.sort(), [...POINTS].sort());
  });
});

describe('a helper that could not be started', () => {
  it('fails its call, and is waited for by nobody', async () => {
    const helpers = new Helpers(
      () => undefined,
      () => undefined,
      () => undefined,
      () => {
        const child = new ChildProcess();
        setImmediate(() => child.emit('error', new Error('spawn EMFILE')));
        return child;
      },
    );
    const number = helpers.start(ENGINE_PROTOCOL);
    await assert.rejects(helpers.call(number, 'isStore', NO_FILE, CALL_MS), { code: 'EPIPE' });
    helpers.dismissAll();
    const before = Date.now();
    await helpers.gone();
    assert.ok(Date.now() - before < 1_000);
  });
});
