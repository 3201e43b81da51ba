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
 *   a hook before the freeze  the one after the thaw is run, by whoever settles the operation (`hooks.ts`)
 *   the switch                applied again from its beginning (`tracer/switches.ts`)
 *   `commit`                  the record is the next one
 *   finishing                 each step may be done again
 *   `conclude`                the record has nothing pending, and the keeper knows the result
 *   the answer                the keeper knows it, even if the engine dies before it is sent
 *
 * Several volumes at one instant: each has its own pending operation, which names them all (`together`). All are described in
 * one message, before the freeze; all gates are closed before the first word of the first switch changes, and the first one
 * opens behind the last word of the last. So one SWITCH word that is not BEFORE says that all were ready and nothing was
 * written since: the next engine makes the other switches before it serves any of them, and all are finished. No such word,
 * and all are undone. They are concluded in one message, too.
 */
import { rmSync } from 'node:fs';
import { dataOffsetBytes } from '../cow/geometry.js';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { allMounts } from '../sys/mounts.js';
import { SwitchState, Word } from '../tracer/layout.js';
import { applySwitch, markOtherView, type Switch } from '../tracer/switches.js';
import { currentRequestId, type EngineContext, type Undo, undoing, withHelper } from './context.js';
import { failPoint } from './fail-points.js';
import { removeFreeBlocks, saveFreeBlocks } from './free-blocks.js';
import type { StoreFile } from './helper-calls.js';
import { partAt } from './lookup.js';
import type { PendingOperation, SnapshotRecord } from './records.js';
import { seriesPath } from './saved-state.js';
import { saveSeries } from './series.js';
import { closeOldFile } from './store-close.js';
import {
  clearMemory,
  configureStore,
  type FreezeTimes,
  openSnapshotDevice,
  saveRecord,
  saveRecords,
} from './tracking.js';
import type { Resumable, Volume } from './volume.js';

/** Tells the keeper what undoing the operation takes, before anything is to be undone. */
export async function announce(
  context: Pick<EngineContext, 'keeper'>,
  undo: Pick<Undo, 'add'>,
  volume: Resumable,
  undoBy: PendingOperation['undo'],
): Promise<void> {
  volume.record.pending = announcement(volume, undoBy);
  await saveRecord(context, volume);
  resetWord(volume);
  undo.add('forget the operation', () => forget(context, volume));
  failPoint('announced');
}

function announcement({ record }: Resumable, undo: PendingOperation['undo']): PendingOperation {
  return { requestId: currentRequestId(), undo, change: null, old: record.snapshot, next: null, leaveFile: false };
}

/**
 * Nothing has switched yet, says the memory from here on. Not before the keeper has another record than that of an operation
 * which switched and failed behind it: to the next engine that one had not switched then, and its undo would remove a COW file in use.
 */
function resetWord({ memory }: Resumable): void {
  failPoint('word-reset');
  memory.set(Word.SWITCH, SwitchState.BEFORE);
}

async function forget(context: Pick<EngineContext, 'keeper'>, volume: Resumable): Promise<void> {
  volume.record.pending = null;
  await saveRecord(context, volume);
}

/** What the switch of a volume will be. */
export interface DescribedSwitch<V extends Resumable = Volume> {
  volume: V;
  change: Switch;
  next: SnapshotRecord | null;
  /** Of an end: the COW file stays. */
  leaveFile?: boolean;
}

/** What the switch will be. Announced, so that from the first changed word on it can be finished by anybody. */
export async function describeSwitch(
  context: EngineContext,
  volume: Volume,
  change: Switch,
  next: SnapshotRecord | null,
  leaveFile = false,
): Promise<void> {
  await describeSwitches(context, [{ volume, change, next, leaveFile }]);
}

/** {@link describeSwitch} for several volumes; `extra` is kept with each, `postThaw` with the first. */
export async function describeSwitches(
  context: Pick<EngineContext, 'keeper'>,
  parts: readonly DescribedSwitch<Resumable>[],
  { postThaw, ...extra }: Pick<PendingOperation, 'together' | 'postThaw'> = {},
): Promise<void> {
  await takeOver(
    context,
    parts.map(({ volume }) => volume),
  );
  parts.forEach(({ volume, change, next, leaveFile = false }, i) => {
    const base = volume.record.pending ?? announcement(volume, null);
    const hook = i === 0 && postThaw !== undefined ? { postThaw } : {};
    volume.record.pending = { ...base, change, next, leaveFile, ...extra, ...hook };
  });
  await saveRecords(
    context,
    parts.map(({ volume }) => volume),
  );
  failPoint('described');
}

/** One that has switched, and failed behind it, is nobody's any more: its undo would take back what is in use by now. */
async function takeOver(context: Pick<EngineContext, 'keeper'>, volumes: readonly Resumable[]): Promise<void> {
  for (const { record } of volumes) if (record.pending?.change != null) record.pending = null;
  const switched = volumes.filter(({ memory }) => memory.get(Word.SWITCH) !== SwitchState.BEFORE);
  if (switched.length === 0) return;
  for (const volume of switched) volume.record.pending ??= announcement(volume, null);
  await saveRecords(context, switched);
  for (const volume of switched) resetWord(volume);
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
  result: Record<string, string | number | string[] | null>;
  problem?: { code: string; message: string };
}

/** Everything behind the switch. May be done again from its beginning. */
export function finish(context: EngineContext, volume: Volume): Promise<Finished> {
  return finishAll(context, [volume], undefined);
}

/** {@link finish} for all volumes of an operation. `times`: of the freeze, where this engine made the switch. */
export async function finishAll(
  context: EngineContext,
  volumes: readonly Volume[],
  times: FreezeTimes | undefined,
): Promise<Finished> {
  await saveRecords(context, volumes);
  failPoint('committed');
  const parts: Finished[] = [];
  for (const volume of volumes) {
    const { pending } = volume.record;
    if (pending === null || pending.change === null) throw new Error('A switch is described before it is finished');
    parts.push(await finishKind(context, volume, pending));
    failPoint('finished');
  }
  const finished = volumes[0]?.record.pending?.together === undefined ? parts[0] : joined(parts, times);
  if (finished === undefined) throw new Error('An operation has a volume');
  await conclude(context, volumes, finished);
  return finished;
}

/** The answer of an operation on several volumes, in the order in which they were named. */
function joined(parts: readonly Finished[], times: FreezeTimes | undefined): Finished {
  const result = {
    devices: parts.map((part) => String(part.result['device'] ?? '')),
    windowMs: times?.windowMs ?? null,
    freezeMs: times?.freezeMs ?? null,
  };
  const problems = parts.flatMap(({ problem }) => (problem === undefined ? [] : [problem]));
  const [first] = problems;
  if (first === undefined) return { result };
  return { result, problem: { code: first.code, message: problems.map(({ message }) => message).join('; ') } };
}

async function conclude(context: EngineContext, volumes: readonly Volume[], finished: Finished): Promise<void> {
  const concluded = volumes.map((volume) => ({ volume, pending: volume.record.pending }));
  const requestId = concluded[0]?.pending?.requestId ?? 0;
  for (const volume of volumes) volume.record.pending = null;
  await saveRecords(context, volumes, { requestId, ...finished });
  failPoint('concluded');
  for (const { volume, pending } of concluded) {
    const stores = [pending?.old?.storeFd, pending?.next?.storeFd].filter((fd) => fd != null);
    const fds = stores.filter((fd) => fd !== volume.record.snapshot?.storeFd);
    if (fds.length > 0) await context.keeper.call('closeFds', { fds });
    // Not before: finishing again would have written an empty list of changes.
    if (pending?.change?.kind === 'begin') clearMemory(volume, { index: false, maps: [], noted: true });
    if (pending?.change?.kind === 'next') {
      const { closedMap } = pending.change;
      clearMemory(volume, { index: false, maps: [closedMap], free: [closedMap], noted: true });
    }
  }
}

async function finishKind(context: EngineContext, volume: Volume, pending: PendingOperation): Promise<Finished> {
  const { change, old } = pending;
  switch (change?.kind) {
    case 'begin':
      saveFreeBlocks(context, volume);
      saveSeries(context, volume, undefined);
      return withDevice(context, volume);
    case 'next': {
      markOtherView(volume.memory, change);
      const problem = old === null ? undefined : await closeOldFile(context, volume, old, change.closedMap);
      saveFreeBlocks(context, volume);
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
      clearMemory(volume, { index: true, maps: [0, 1], free: [0, 1], noted: true });
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
  await withHelper(context, (helper) => helper.call('truncateStore', params)).catch((error: unknown) =>
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
  if (old.uuid !== '') removeFreeBlocks(context.paths.stateDir, old.uuid);
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
  // It never had the attribute.
  if (leaveFile && old.store.kind === 'device') return;
  const part = partAt(volume.record.device.node, old.startBytes);
  const node = part?.node ?? volume.record.device.node;
  await withHelper(context, async (helper) => {
    if (!leaveFile) {
      if ((await helper.call('isStore', { file })).present) await helper.call('unlinkStore', { file });
    } else if (allMounts().some(({ device }) => device === part?.number)) {
      await helper.call('setImmutable', { file, immutable: false });
    } else {
      await helper.call('clearImmutableUnmounted', { node, fsType: old.fsType, pathInside: old.cowFile, file });
    }
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
