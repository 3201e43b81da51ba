/** Helpers for real: whose session has ended serves the next one, unless it may have left something. */
import assert from 'node:assert/strict';
import { describe, it, type TestContext } from 'node:test';
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
