/**
 * Operations that are never half done.
 *
 * Whatever changes the state of a volume is told to the keeper before its first effect that would outlive the engine, as
 * plain data in the volume's record, and taken back when it is complete. A new engine finds it there and the SWITCH word in
 * the volume's memory, and either undoes it (nothing switched yet) or finishes it, with the very steps of the operation.
 *
 * Effects, and who takes care of them when the engine dies there:
 *
 *   COW file created          its helper removes it when its parent goes, until it was told to keep it (`keepStore`)
 *   `announce`                from here on the record names the file: undoing removes it, or cuts it to its old length
 *   descriptors in the keeper closed by the keeper when no record names them
 *   file system frozen        the helper thaws when its parent goes, or after its time
 *   the switch                applied again from its beginning (`tracer/switches.ts`)
 *   `commit`                  the record is the next one
 *   finishing                 each step may be done again
 *   `conclude`                the record has nothing pending, and the keeper knows the result
 *   the answer                the keeper knows it, even if the engine dies before it is sent
 */
import { rmSync } from 'node:fs';
import { dataOffsetBytes } from '../cow/geometry.js';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { SwitchState, Word } from '../tracer/layout.js';
import { applySwitch, type Switch } from '../tracer/switches.js';
import { currentRequestId, type EngineContext, type Undo, undoing, withHelper } from './context.js';
import { failPoint } from './fail-points.js';
import type { StoreFile } from './helper-calls.js';
import { mountsOn } from './lookup.js';
import type { PendingOperation, SnapshotRecord } from './records.js';
import { seriesPath } from './saved-state.js';
import { saveSeries } from './series.js';
import type { DoneOperation } from './services.js';
import { closeOldFile } from './store-close.js';
import { clearMemory, configureStore, openSnapshotDevice, saveRecord } from './tracking.js';
import type { Volume } from './volume.js';

/** Tells the keeper what undoing the operation takes, before anything is to be undone. */
export async function announce(
  context: EngineContext,
  undo: Undo,
  volume: Volume,
  undoBy: PendingOperation['undo'],
): Promise<void> {
  const requestId = currentRequestId();
  volume.memory.set(Word.SWITCH, SwitchState.BEFORE);
  volume.record.pending = {
    requestId,
    undo: undoBy,
    change: null,
    old: volume.record.snapshot,
    next: null,
    leaveFile: false,
  };
  await saveRecord(context, volume);
  undo.add('forget the operation', () => forget(context, volume));
  failPoint('announced');
}

async function forget(context: EngineContext, volume: Volume): Promise<void> {
  volume.record.pending = null;
  await saveRecord(context, volume);
}

/** What the switch will be. Announced, so that from the first changed word on it can be finished by anybody. */
export async function describeSwitch(
  context: EngineContext,
  volume: Volume,
  change: Switch,
  next: SnapshotRecord | null,
  leaveFile = false,
): Promise<void> {
  const { pending, snapshot } = volume.record;
  const base = pending ?? { requestId: currentRequestId(), undo: null, old: snapshot };
  volume.memory.set(Word.SWITCH, SwitchState.BEFORE);
  volume.record.pending = { ...base, change, next, leaveFile };
  await saveRecord(context, volume);
  failPoint('described');
}

/** The switch itself: memory, record, the workers' configuration. Under the closed gate. */
export function performSwitch(volume: Volume, storeFd: number | undefined): void {
  const { pending } = volume.record;
  if (pending === null || pending.change === null) throw new Error('A switch is described before it is made');
  failPoint('paused');
  applySwitch(volume.memory, pending.change);
  failPoint('switched');
  volume.record.snapshot = pending.next;
  const before = volume.storeFd;
  volume.storeFd = storeFd;
  configureStore(volume);
  if (before !== undefined && before !== storeFd) libc.close(before);
}

/** A switch that needs no freeze and no new store. An error leaves everything as it was. */
export async function switchPaused(
  context: EngineContext,
  volume: Volume,
  change: Switch,
  next: SnapshotRecord | null,
  leaveFile = false,
): Promise<void> {
  await undoing(context, async (undo) => {
    undo.add('forget the operation', () => forget(context, volume));
    await describeSwitch(context, volume, change, next, leaveFile);
    await volume.whilePaused(() => {
      performSwitch(volume, next === null ? undefined : volume.storeFd);
      undo.clear();
    });
  });
}

/** Ends tracking: passthrough, no record; the COW file is deleted, or left behind removable. */
export async function endTracking(context: EngineContext, volume: Volume, leaveFile: boolean): Promise<void> {
  await switchPaused(context, volume, { kind: 'end' }, null, leaveFile);
  await finish(context, volume);
}

/** What an operation answers, and what of its last part did not succeed, in words. */
export interface Finished {
  result: Record<string, string | number>;
  problem?: { code: string; message: string };
}

/** Everything behind the switch. May be done again from its beginning. */
export async function finish(context: EngineContext, volume: Volume): Promise<Finished> {
  const { pending } = volume.record;
  if (pending === null || pending.change === null) throw new Error('A switch is described before it is finished');
  await saveRecord(context, volume);
  failPoint('committed');
  const finished = await finishKind(context, volume, pending);
  failPoint('finished');
  await conclude(context, volume, pending, finished);
  return finished;
}

async function conclude(
  context: EngineContext,
  volume: Volume,
  pending: PendingOperation,
  finished: Finished,
): Promise<void> {
  volume.record.pending = null;
  const done = { requestId: pending.requestId, ...finished };
  await context.keeper.call('putVolume', { volume: volume.record, done });
  const stores = [pending.old?.storeFd, pending.next?.storeFd].filter((fd) => fd != null);
  const fds = stores.filter((fd) => fd !== volume.record.snapshot?.storeFd);
  if (fds.length > 0) await context.keeper.call('closeFds', { fds });
  // Not before: finishing again would have written an empty list of changes.
  if (pending.change?.kind === 'next') clearMemory(volume, { index: false, maps: [pending.change.closedMap] });
}

async function finishKind(context: EngineContext, volume: Volume, pending: PendingOperation): Promise<Finished> {
  const { change, old } = pending;
  switch (change?.kind) {
    case 'begin':
      saveSeries(context, volume, undefined);
      return withDevice(context, volume);
    case 'next': {
      const problem = old === null ? undefined : await closeOldFile(context, volume, old, change.closedMap);
      saveSeries(context, volume, undefined);
      const finished = await withDevice(context, volume);
      return problem === undefined ? finished : { ...finished, problem };
    }
    case 'toIncremental':
      clearMemory(volume, { index: true, maps: [] });
      saveSeries(context, volume, undefined);
      if (old !== null) await giveBackData(context, volume, old);
      return { result: {} };
    case 'grow':
      saveSeries(context, volume, undefined);
      return { result: { storeBytes: volume.record.snapshot?.storeBytes ?? 0 } };
    case 'end':
      clearMemory(volume, { index: true, maps: [0, 1] });
      if (old !== null) await endSeries(context, volume, old, pending.leaveFile);
      return { result: {} };
    default:
      return { result: {} };
  }
}

/** The snapshot is taken, with or without a device: the next look at the volume tries again. */
async function withDevice(context: EngineContext, volume: Volume): Promise<Finished> {
  const { snapshot } = volume.record;
  if (snapshot === null) throw new Error('A snapshot that has begun has a record');
  if (snapshot.device !== null) return { result: { device: snapshot.device.links[0] ?? snapshot.device.node } };
  try {
    return { result: { device: await openSnapshotDevice(context, { volume, snapshot }) } };
  } catch (error) {
    const code = error instanceof CowbirdError ? error.code : codeOf(errnoOfError(error));
    return { result: {}, problem: { code, message: `The snapshot's device could not be made: ${messageOf(error)}` } };
  }
}

/** The data region of a store that goes on as an incremental file. A file that keeps its size does no harm. */
async function giveBackData(context: EngineContext, volume: Volume, old: SnapshotRecord): Promise<void> {
  const params = {
    file: old.file,
    lengthBytes: dataOffsetBytes(volume.blockCount),
    immutable: old.store.kind === 'origin',
  };
  await withHelper(context, [], (helper) => helper.call('truncateStore', params)).catch((error: unknown) =>
    context.emit({
      event: 'store.truncate',
      level: 'warning',
      message: `${old.file.path} keeps its size: ${messageOf(error)}`,
      minor: old.minor,
    }),
  );
}

async function endSeries(
  context: EngineContext,
  volume: Volume,
  old: SnapshotRecord,
  leaveFile: boolean,
): Promise<void> {
  rmSync(seriesPath(context.paths.stateDir, old.uuid), { force: true });
  await removeOrRelease(context, volume, old, leaveFile).catch((error: unknown) =>
    context.emit({
      event: 'store.left',
      level: 'warning',
      message: `${old.file.path} is left behind: ${messageOf(error)}`,
      minor: old.minor,
    }),
  );
}

async function removeOrRelease(
  context: EngineContext,
  volume: Volume,
  old: SnapshotRecord,
  leaveFile: boolean,
): Promise<void> {
  const { file } = old;
  if (file.path === '') return;
  const { node } = volume.record.device;
  await withHelper(context, [], async (helper) => {
    if (!leaveFile) {
      if ((await helper.call('isStore', { file })).present) await helper.call('unlinkStore', { file });
    } else if (old.store.kind === 'device' || mountsOn(node).length > 0) {
      await helper.call('setImmutable', { file, immutable: false });
    } else {
      await helper.call('clearImmutableUnmounted', { node, fsType: old.fsType, pathInside: old.cowFile });
    }
  });
}

/** Before a new engine serves a volume: a switch that was begun is made. True when the operation is to be finished. */
export function resumeSwitch(volume: Volume): boolean {
  const { memory, record } = volume;
  const change = record.pending?.change ?? null;
  if (record.pending === null || change === null || memory.get(Word.SWITCH) === SwitchState.BEFORE) return false;
  if (memory.get(Word.SWITCH) === SwitchState.WITHIN) applySwitch(memory, change);
  record.snapshot = record.pending.next;
  return true;
}

/** What became of an operation that its engine's end cut off. */
export type Outcome =
  | { kind: 'finished'; finished: Omit<DoneOperation, 'requestId'> }
  | { kind: 'undone' }
  | { kind: 'failed'; message: string };

/** Finishes or undoes what a dead engine had in hand, once the volume is served again. */
export async function settle(context: EngineContext, volume: Volume, isSwitched: boolean): Promise<Outcome> {
  const { pending, name } = volume.record;
  if (pending === null) return { kind: 'undone' };
  try {
    if (isSwitched) return { kind: 'finished', finished: await finish(context, volume) };
    if (pending.undo !== null) await undoFile(context, pending.undo);
    await forget(context, volume);
    return { kind: 'undone' };
  } catch (error) {
    volume.record.pending = null;
    await saveRecord(context, volume);
    const what = isSwitched ? 'took effect, but could not be completed' : 'could not be undone wholly';
    const message = `The operation on ${name} was cut off by the engine's end; it ${what}: ${messageOf(error)}`;
    context.emit({ event: 'operation.cutOff', level: 'error', message, volume: name });
    return { kind: 'failed', message };
  }
}

async function undoFile(context: EngineContext, undo: NonNullable<PendingOperation['undo']>): Promise<void> {
  await withHelper(context, [], async (helper) => {
    const { file } = undo;
    if (!(await helper.call('isStore', { file })).present) return;
    if (undo.kind === 'unlink') await helper.call('unlinkStore', { file });
    else await helper.call('truncateStore', { file, lengthBytes: undo.lengthBytes, immutable: undo.immutable });
  });
}

/** Bytes of the file that an expansion is undone to. */
export function undoByTruncating(file: StoreFile, snapshot: SnapshotRecord): PendingOperation['undo'] {
  return { kind: 'truncate', file, lengthBytes: snapshot.storeBytes, immutable: snapshot.store.kind === 'origin' };
}

/** An error for a part that did not succeed although the operation took effect. */
export function partial(message: string): CowbirdError {
  return new CowbirdError('EIO', message, { outcome: 'partial' });
}
