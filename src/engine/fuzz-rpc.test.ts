/** Messages of any kind between two processes: no call hangs or is answered twice, and nothing is thrown at the channel. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { CowbirdError } from '../sys/errors.js';
import { type Channel, Rpc } from './rpc.js';

/** A channel whose other end is the test. */
class FakeChannel implements Channel {
  readonly sent: unknown[] = [];
  #listeners: Array<(message: unknown) => void> = [];
  #ends: Array<() => void> = [];
  send(message: unknown): void {
    this.sent.push(message);
  }
  onMessage(listener: (message: unknown) => void): void {
    this.#listeners.push(listener);
  }
  onEnd(listener: () => void): void {
    this.#ends.push(listener);
  }
  deliver(message: unknown): void {
    for (const listener of this.#listeners) listener(message);
  }
  end(): void {
    for (const listener of this.#ends) listener();
  }
}

const field = fc.oneof(
  fc.jsonValue(),
  fc.constantFrom<unknown>(undefined, null, 1, 2, 'start', { code: 5 }, '__proto__'),
);
const error = fc.record({ code: field, message: field, outcome: field }, { requiredKeys: [] });
const goodError = fc.record({
  code: fc.constantFrom('EBUSY', 'E600', ''),
  message: fc.string(),
  outcome: fc.constantFrom('refused', 'failed', 'partial'),
});
/** Ids 1 to 3 are those of the calls that are open. */
const message = fc.oneof(
  fc.jsonValue(),
  fc.record(
    {
      id: fc.oneof(fc.constantFrom<unknown>(1, 2, 3, 1.5, -1, '1', null, Number.NaN, 2 ** 60), field),
      call: field,
      params: field,
      result: field,
      error: fc.oneof(error, goodError, field),
    },
    { requiredKeys: [] },
  ),
);

describe('calls between two processes', () => {
  it('end with a result or an error whatever the other side sends, and its own are answered once', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(message, { maxLength: 8 }), async (messages) => {
        const channel = new FakeChannel();
        let calls = 0;
        const rpc = new Rpc(channel, async (name) => {
          assert.equal(typeof name, 'string');
          calls++;
          if (calls % 2 === 0) throw new Error('every second one fails');
          return undefined;
        });
        const open = [1, 2, 3].map((n) => rpc.call(`call ${n}`, {}));
        const ends = Promise.allSettled(open);
        for (const one of messages) channel.deliver(one);
        await new Promise((resolve) => setImmediate(resolve));
        channel.end();
        for (const end of await ends) {
          if (end.status === 'fulfilled') continue;
          const { reason } = end;
          assert.ok(reason instanceof CowbirdError, String(reason));
          assert.ok(['refused', 'failed', 'partial'].includes(reason.outcome) && reason.errno > 0);
        }
        assert.equal(channel.sent.length, 3 + calls);
      }),
      { numRuns: 1000 },
    );
  });

  it('that are answered with something else fail with EPROTO at once', async () => {
    for (const answer of [{ id: 1 }, { id: 1, error: null }, { id: 1, error: { code: 'EIO' } }, { id: 1, call: 7 }]) {
      const channel = new FakeChannel();
      const open = new Rpc(channel, async () => null).call('start', {});
      channel.deliver(answer);
      await assert.rejects(open, { code: 'EPROTO', outcome: 'failed' });
    }
  });

  it('that are answered with what no message holds get an error instead', async () => {
    const channel = new FakeChannel();
    const send = channel.send.bind(channel);
    channel.send = (message) => {
      // As V8 says it of a text of half a gigabyte.
      if (typeof message === 'object' && message !== null && 'result' in message)
        throw new RangeError('Invalid string length');
      send(message);
    };
    new Rpc(channel, async () => ['much']);
    channel.deliver({ id: 4, call: 'changes', params: {} });
    await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual(channel.sent, [
      { id: 4, error: { code: 'EIO', message: 'Invalid string length', outcome: 'failed' } },
    ]);
  });
});
