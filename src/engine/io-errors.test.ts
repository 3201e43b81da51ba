import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import type { EventInput } from './events.js';
import { IoErrors } from './io-errors.js';

const EVERY_MS = 40;

function errors(): { told: EventInput[]; fail: (sessionId: string, operation: string) => void } {
  const told: EventInput[] = [];
  const limiter = new IoErrors((event) => told.push(event), EVERY_MS);
  const fail = (sessionId: string, operation: string): void =>
    limiter.failed({ type: 'ioError', sessionId, operation, errno: 5, message: 'EIO' });
  return { told, fail };
}

const brief = (told: readonly EventInput[]): unknown[] =>
  told.map((event) => (event.event === 'io.error' ? [event.device, event.operation, event.count] : event));

describe('I/O errors', () => {
  it('are told at once, and those that follow together, with their number and the last of them', async () => {
    const { told, fail } = errors();
    for (let i = 0; i < 1_000; i++) fail('volume-a', `read at ${i}`);
    assert.deepEqual(brief(told), [['volume-a', 'read at 0', 1]]);
    await pause(3 * EVERY_MS);
    assert.deepEqual(brief(told.slice(1)), [['volume-a', 'read at 999', 999]]);
    assert.match(
      told[1]?.message ?? '',
      /^volume-a: read at 999: EIO \(the last of 999 that failed within a second\)$/,
    );
    fail('volume-a', 'read at 5');
    assert.deepEqual(brief(told.slice(2)), [['volume-a', 'read at 5', 1]]);
  });

  it('of one device hide none of another one', () => {
    const { told, fail } = errors();
    fail('volume-a', 'read');
    fail('volume-a', 'write');
    fail('volume-b', 'flush');
    assert.deepEqual(brief(told), [
      ['volume-a', 'read', 1],
      ['volume-b', 'flush', 1],
    ]);
  });
});
