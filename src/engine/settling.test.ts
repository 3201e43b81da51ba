/** Switches that an engine's death cut off: made before anything is served, and one that cannot be holds up no other volume. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Mode, SwitchState, type VolumeMemory, Word } from '../tracer/layout.js';
import { memoryFor } from '../tracer/testing.js';
import type { VolumeRecord } from './records.js';
import { type Resumable, resumeSwitches } from './settling.js';

const BLOCKS = 1_000;

/** A volume whose snapshot was being ended, alone or together with others. */
function ending(id: string, switchState: number, together?: string[]): Resumable {
  const memory = memoryFor(BLOCKS);
  memory.set(Word.MODE, Mode.SNAPSHOT);
  memory.set(Word.SWITCH, switchState);
  const record: VolumeRecord = {
    id,
    name: id,
    origin: '/disk.img',
    raw: false,
    opened: {
      originFd: 3,
      memoryFd: 4,
      sizeBytes: BLOCKS * 4096,
      logicalSectorBytes: 512,
      isFile: true,
      readOnly: false,
    },
    workers: 2,
    device: { id, fuseFd: 5, target: `/run/fuse/${id}`, node: '', links: [] },
    snapshot: null,
    detaching: null,
    pending: {
      requestId: 7,
      undo: null,
      change: { kind: 'end' },
      old: null,
      next: null,
      leaveFile: false,
      ...(together === undefined ? {} : { together }),
    },
  };
  return { memory, record };
}

/** Its memory fails at the first word of the switch. */
function broken(volume: Resumable): Resumable {
  const fail = (): never => {
    throw new RangeError('this memory is damaged');
  };
  const memory: VolumeMemory = Object.create(volume.memory, { set: { value: fail } });
  return { memory, record: volume.record };
}

describe('switches that were cut off', () => {
  it('are made on all volumes of their operation once one of them was begun, and on none before', () => {
    const begun = [ending('a', SwitchState.AFTER, ['a', 'b']), ending('b', SwitchState.BEFORE, ['a', 'b'])];
    const waiting = ending('c', SwitchState.BEFORE);
    const { switched, failed } = resumeSwitches([...begun, waiting]);
    assert.deepEqual([...switched], ['a', 'b']);
    assert.equal(failed.size, 0);
    assert.equal(begun[1]?.memory.get(Word.MODE), Mode.PASSTHROUGH);
    assert.equal(waiting.memory.get(Word.MODE), Mode.SNAPSHOT);
  });

  it('are not made where another volume of the operation could not be opened: that one may have switched', () => {
    const { switched, failed } = resumeSwitches([ending('a', SwitchState.BEFORE, ['a', 'b'])]);
    assert.deepEqual([[...switched], [...failed.keys()]], [[], ['a']]);
  });

  it('that cannot be made keep their own volumes from being served, and no others', () => {
    const damaged = broken(ending('a', SwitchState.WITHIN, ['a', 'b']));
    const partner = ending('b', SwitchState.BEFORE, ['a', 'b']);
    const other = ending('c', SwitchState.WITHIN);
    const { switched, failed } = resumeSwitches([damaged, partner, other]);
    assert.deepEqual([...failed.keys()], ['a', 'b']);
    assert.deepEqual([...switched], ['c']);
    assert.equal(other.memory.get(Word.SWITCH), SwitchState.AFTER);
  });
});
