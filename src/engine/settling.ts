/**
 * What a new engine does with the operations that the old one's end cut off: the switches that were begun are made before
 * anything is served, and once all is served each operation is finished or undone. Why it can: `pending.ts`.
 */
import { CowbirdError, messageOf } from '../sys/errors.js';
import { SwitchState, Word } from '../tracer/layout.js';
import { applySwitch } from '../tracer/switches.js';
import { type EngineContext, withHelper } from './context.js';
import { runLeftHook } from './hooks.js';
import { finishAll } from './pending.js';
import type { PendingOperation } from './records.js';
import type { DoneOperation } from './services.js';
import { saveRecords } from './tracking.js';
import type { Resumable, Volume } from './volume.js';

/** The volumes whose operation was cut off, each with those that it is a part of one operation with. */
export function cutOffOperations<V extends Resumable>(volumes: Iterable<V>): V[][] {
  const open = [...volumes].filter(({ record }) => record.pending !== null);
  const groups: V[][] = [];
  while (open.length > 0) {
    const [first] = open;
    const ids = first?.record.pending?.together ?? [first?.record.id];
    // In the order in which they were named: the answer has it.
    groups.push(ids.flatMap((id) => open.filter(({ record }) => record.id === id)));
    open.splice(0, open.length, ...open.filter((volume) => volume !== first && !ids.includes(volume.record.id)));
  }
  return groups;
}

export interface ResumedSwitches {
  /** Ids of the volumes whose operation is to be finished. */
  switched: Set<string>;
  /** Volumes that must not be served: an operation that they are a part of has begun to switch, and could not be made. */
  failed: Map<string, unknown>;
}

/**
 * Before a new engine serves anything: a switch that was begun is made, on every volume of its operation. One that cannot be is
 * no reason not to serve the volumes of the others.
 */
export function resumeSwitches(volumes: readonly Resumable[]): ResumedSwitches {
  const switched = new Set<string>();
  const failed = new Map<string, unknown>();
  for (const group of cutOffOperations(volumes)) {
    try {
      requireOpened(group, volumes);
      const isBegun = group.some(
        ({ memory, record }) => record.pending?.change != null && memory.get(Word.SWITCH) !== SwitchState.BEFORE,
      );
      if (!isBegun) continue;
      const made = group.filter(makeSwitch);
      for (const { record } of made) switched.add(record.id);
    } catch (error) {
      for (const { record } of group) failed.set(record.id, error);
    }
  }
  return { switched, failed };
}

/** One that could not be opened may be the one that has switched: nobody knows whether the others have to, too. */
function requireOpened(group: readonly Resumable[], opened: readonly Resumable[]): void {
  const ids = group.flatMap(({ record }) => record.pending?.together ?? []);
  if (ids.every((id) => opened.some(({ record }) => record.id === id))) return;
  throw new CowbirdError('EIO', 'Another volume of the same operation could not be opened', { outcome: 'failed' });
}

function makeSwitch({ memory, record }: Resumable): boolean {
  if (record.pending === null || record.pending.change === null) return false;
  if (memory.get(Word.SWITCH) !== SwitchState.AFTER) applySwitch(memory, record.pending.change);
  record.snapshot = record.pending.next;
  return true;
}

/** What became of an operation that its engine's end cut off. */
export type Outcome =
  | { kind: 'finished'; finished: Omit<DoneOperation, 'requestId'> }
  | { kind: 'undone' }
  | { kind: 'failed'; message: string };

/** Finishes or undoes what a dead engine had in hand, once its volumes are served again. */
export async function settle(
  context: EngineContext,
  volumes: readonly Volume[],
  isSwitched: boolean,
): Promise<Outcome> {
  const names = volumes.map(({ record }) => record.name).join(', ');
  try {
    await runLeftHook(context, volumes);
    if (isSwitched) return { kind: 'finished', finished: await finishAll(context, volumes, undefined) };
    for (const { record } of volumes) if (record.pending?.undo != null) await undoFile(context, record.pending.undo);
    for (const volume of volumes) volume.record.pending = null;
    await saveRecords(context, volumes);
    return { kind: 'undone' };
  } catch (error) {
    for (const volume of volumes) volume.record.pending = null;
    await saveRecords(context, volumes);
    const what = isSwitched ? 'took effect, but could not be completed' : 'could not be undone wholly';
    const message = `The operation on ${names} was cut off by the engine's end; it ${what}: ${messageOf(error)}`;
    context.emit({ event: 'operation.cutOff', level: 'error', message, volume: names });
    return { kind: 'failed', message };
  }
}

async function undoFile(context: EngineContext, undo: NonNullable<PendingOperation['undo']>): Promise<void> {
  await withHelper(context, async (helper) => {
    const { file } = undo;
    if (!(await helper.call('isStore', { file })).present) return;
    if (undo.kind === 'unlink') await helper.call('unlinkStore', { file });
    else await helper.call('truncateStore', { file, lengthBytes: undo.lengthBytes, immutable: undo.immutable });
  });
}
