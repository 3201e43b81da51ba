/** Several volumes at one instant: all gates are closed, and nobody writes, before the first word changes. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { whileGatesClosed } from './gate.js';
import { Gate, type VolumeMemory, Word } from './layout.js';
import { memoryFor } from './testing.js';

function gated(count: number): {
  memories: VolumeMemory[];
  woken: number[];
  volumes: Parameters<typeof whileGatesClosed>[0];
} {
  const memories = Array.from({ length: count }, () => memoryFor(8));
  const woken: number[] = [];
  const volumes = memories.map((memory, i) => ({ memory, wake: () => woken.push(i) }));
  return { memories, woken, volumes };
}

const gatesOf = (memories: readonly VolumeMemory[]): number[] => memories.map((memory) => memory.get(Word.GATE));

describe('the gates of several volumes', () => {
  it('are all closed before a write in hand is waited for, and all switching when the change is made', () => {
    const { memories, woken, volumes } = gated(3);
    memories[1]?.set(Word.BUSY + 2, 1);
    let seen: number[] = [];
    const steps = whileGatesClosed(volumes, () => {
      seen = gatesOf(memories);
      return 'changed';
    });
    assert.deepEqual(steps.next().value, { kind: 'wait', word: Word.BUSY + 2, value: 1 });
    assert.deepEqual(gatesOf(memories), [Gate.CLOSED, Gate.CLOSED, Gate.CLOSED]);
    assert.deepEqual(seen, [], 'nothing is changed while somebody writes');
    memories[1]?.set(Word.BUSY + 2, 0);
    assert.deepEqual(steps.next(), { done: true, value: 'changed' });
    assert.deepEqual(seen, [Gate.SWITCHING, Gate.SWITCHING, Gate.SWITCHING]);
    assert.deepEqual(gatesOf(memories), [Gate.OPEN, Gate.OPEN, Gate.OPEN]);
    assert.deepEqual(woken, [0, 1, 2]);
  });

  it('are all opened, and nothing is changed, when a watchdog has opened one or a write does not end', () => {
    for (const spoil of [
      (memory: VolumeMemory) => memory.set(Word.GATE, Gate.OPEN),
      (memory: VolumeMemory) => memory.set(Word.BUSY + 1, 1),
    ]) {
      const { memories, volumes } = gated(2);
      const [first, second] = memories;
      assert.ok(first !== undefined && second !== undefined);
      first.set(Word.BUSY, 1);
      let isChanged = false;
      const steps = whileGatesClosed(volumes, () => {
        isChanged = true;
      });
      steps.next();
      spoil(second);
      first.set(Word.BUSY, 0);
      assert.throws(
        () => {
          while (steps.next().done !== true);
        },
        { code: 'ETIMEDOUT' },
      );
      assert.equal(isChanged, false);
      assert.deepEqual(gatesOf(memories), [Gate.OPEN, Gate.OPEN]);
    }
  });
});
