/** Switches that an engine's death cut off: made before anything is served, and one that cannot be holds up no other volume. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as v from 'valibot';
import { Mode, SwitchState, type VolumeMemory, Word } from '../tracer/layout.js';
import { memoryFor } from '../tracer/testing.js';
import { requestIds } from './context.js';
import type { StoreFile } from './helper-calls.js';
import { KeeperLink } from './keeper-link.js';
import { announce, describeSwitches } from './pending.js';
import type { VolumeRecord } from './records.js';
import type { Keeper } from './services.js';
import { resumeSwitches } from './settling.js';
import type { Resumable } from './volume.js';

const BLOCKS = 1_000;

const file = (path: string): StoreFile => ({ path, dev: 1, ino: 2 });

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

const Message = v.object({
  id: v.number(),
  call: v.literal('putVolume'),
  params: v.looseObject({ volume: v.unknown() }),
});

/**
 * What the next engine would do with the volume, were this one killed: before and behind each record that the keeper is told
 * of, and at the end. 'finish' what has switched, or 'undo' by what the record says.
 */
async function fates(volume: Resumable, action: (keeper: Keeper) => Promise<void>): Promise<string[]> {
  const seen: string[] = [];
  let told = structuredClone(volume.record);
  const look = (): void => {
    const killed = { memory: volume.memory, record: structuredClone(told) };
    const { switched } = resumeSwitches([killed]);
    const { pending } = killed.record;
    seen.push(
      switched.size > 0 ? `finish ${pending?.requestId}` : `undo ${pending?.requestId} ${pending?.undo?.file.path}`,
    );
  };
  let answer: (message: unknown) => void = () => undefined;
  const channel = {
    send: (message: unknown) => {
      const { id } = v.parse(Message, message);
      look();
      told = structuredClone(volume.record);
      look();
      answer({ id, result: null });
    },
    onMessage: (listener: typeof answer) => {
      answer = listener;
    },
    onEnd: () => undefined,
  };
  await action(new KeeperLink(channel, () => Promise.reject(new Error('nothing is asked of an engine'))).connect(1));
  look();
  return seen;
}

describe('an operation after one that failed behind its switch', () => {
  /** The one that failed, number 7, has made a COW file that is in use by now. */
  function failedBehind(): Resumable {
    const volume = ending('a', SwitchState.AFTER);
    if (volume.record.pending !== null) volume.record.pending.undo = { kind: 'unlink', file: file('in-use') };
    return volume;
  }

  it('is undone wherever it is cut off, and never that one: its COW file is in use', async () => {
    const volume = failedBehind();
    const seen = await requestIds.run(8, () =>
      fates(volume, async (keeper) => {
        await announce({ keeper }, { add: () => undefined }, volume, { kind: 'unlink', file: file('new') });
        await describeSwitches({ keeper }, [{ volume, change: { kind: 'end' }, next: null }]);
      }),
    );
    assert.deepEqual(seen, ['finish 7', ...Array.from({ length: 4 }, () => 'undo 8 new')]);
  });

  it('that needs no announcement neither', async () => {
    const volume = failedBehind();
    const seen = await requestIds.run(8, () =>
      fates(volume, (keeper) => describeSwitches({ keeper }, [{ volume, change: { kind: 'end' }, next: null }])),
    );
    assert.deepEqual(seen, ['finish 7', ...Array.from({ length: 4 }, () => 'undo 8 undefined')]);
  });
});
