/** From one mode of a series to the next, and its end. */
import { dataOffsetBytes } from '../cow/geometry.js';
import { CowbirdError } from '../sys/errors.js';
import { allMounts } from '../sys/mounts.js';
import { BLOCK_BYTES } from '../tracer/layout.js';
import { ensureDirty } from './cleaning.js';
import type { EngineContext } from './context.js';
import { fileSystemsOf } from './free-blocks.js';
import { type HookParams, hooksIn } from './hooks.js';
import { isMountedWritable, partAt, refuseInUse } from './lookup.js';
import { endTracking, type Finished, finish, partial, switchPaused } from './pending.js';
import type { SnapshotRecord } from './records.js';
import { newRecord } from './setup.js';
import { refuseHookProblem, type SnapshotPlan, type TakeOptions, takenTogether, takeSnapshots } from './taking.js';
import {
  clearMemory,
  closeSnapshotDevice,
  currentMap,
  currentState,
  indexPart,
  RAW,
  requireTransition,
  tracked,
} from './tracking.js';
import type { TakenTogether } from './types.js';

/** From snapshot to incremental: the device goes, marks go on. */
export async function transitionToIncremental(context: EngineContext, minor: number): Promise<void> {
  const target = tracked(context, minor);
  requireTransition(target, 'transitionToIncremental');
  const { volume, snapshot } = target;
  if (snapshot.device !== null) await refuseInUse(context, snapshot.device.node);
  // Waited: the state is looked at again.
  requireTransition(target, 'transitionToIncremental');
  await closeSnapshotDevice(context, target);
  await ensureDirty(volume);
  const dataOffset = dataOffsetBytes(volume.blockCount);
  const store = indexPart(snapshot.store, volume.blockCount);
  const next: SnapshotRecord = { ...snapshot, mode: 'incremental', store, storeBytes: dataOffset, autoExpand: null };
  const keptPlaces = dataOffset / BLOCK_BYTES;
  await switchPaused(context, volume, { kind: 'toIncremental', before: snapshot.store, keptPlaces }, next);
  await finish(context, volume);
}

export interface ToSnapshotParams {
  minor: number;
  cowFile: string;
  storeBytes?: number | undefined;
  onVolumeOnly?: boolean | undefined;
  freeAware?: boolean | undefined;
}

/** From incremental (or a failed snapshot) to the next snapshot of the series. The old COW file is left with the changes. */
export async function transitionToSnapshot(
  context: EngineContext,
  params: ToSnapshotParams & HookParams,
): Promise<{ device: string }> {
  const { result } = await nextSnapshots(context, [params], { ...hooksIn(params), together: false });
  return { device: String(result['device']) };
}

/** The next snapshots of several series, at one instant. */
export async function transitionTogether(
  context: EngineContext,
  params: { snapshots: ToSnapshotParams[] } & HookParams,
): Promise<TakenTogether> {
  const { result } = await nextSnapshots(context, params.snapshots, { ...hooksIn(params), together: true });
  return takenTogether(result);
}

async function nextSnapshots(
  context: EngineContext,
  snapshots: readonly ToSnapshotParams[],
  options: TakeOptions,
): Promise<Finished> {
  const plans: SnapshotPlan[] = [];
  for (const params of snapshots) plans.push(await planNext(context, params));
  const finished = await takeSnapshots(context, plans, options);
  const { problem } = finished;
  const what = plans.length === 1 ? 'The snapshot was taken' : 'The snapshots were taken';
  if (problem !== undefined) throw partial(`${what}, but ${problem.message}`);
  refuseHookProblem(finished, plans.length);
  return finished;
}

async function planNext(context: EngineContext, params: ToSnapshotParams): Promise<SnapshotPlan> {
  const { minor } = params;
  const target = tracked(context, minor);
  requireTransition(target, 'transitionToSnapshot');
  const { volume, snapshot: old } = target;
  if (old.file.path === params.cowFile)
    throw new CowbirdError('EPERM', `${params.cowFile} is the current COW file: name a new one`);
  if (old.device !== null) await refuseInUse(context, old.device.node);
  const freeAware = params.freeAware === true;
  if (freeAware) fileSystemsOf(volume);
  const closedMap = currentMap(volume.memory);
  const nextMap = closedMap === 0 ? 1 : 0;
  return {
    volume,
    minor,
    freeIndex: freeAware ? nextMap : undefined,
    store: {
      path: params.cowFile,
      storeBytes: params.storeBytes ?? old.fallocateBytes,
      onVolumeOnly: params.onVolumeOnly === true,
      freeAware,
    },
    record: (store) => {
      const series = { uuid: old.uuid, sequenceId: old.sequenceId + 1 };
      const snapshot = newRecord({ ...old, cacheBytes: 0, freeAware }, store, series);
      if (old.fsType === RAW) snapshot.fsType = RAW;
      return snapshot;
    },
    ready: async (store) => {
      // Preparing took time.
      if (old.device !== null) await refuseInUse(context, old.device.node);
      requireTransition(target, 'transitionToSnapshot');
      await closeSnapshotDevice(context, target);
      await ensureDirty(volume);
      clearMemory(volume, { index: true, maps: [nextMap] });
      const free = { freeBefore: old.freeAware === true, free: freeAware };
      return { kind: 'next', before: old.store, store: store.config, closedMap, ...free };
    },
  };
}

/** Ends tracking. Deletes the current COW file; leaves it, removable, when it is unverified or cannot be reached. */
export async function destroy(context: EngineContext, minor: number): Promise<void> {
  const target = tracked(context, minor);
  const { volume, snapshot } = target;
  if (snapshot.device !== null) await refuseInUse(context, snapshot.device.node);
  const state = currentState(target);
  await closeSnapshotDevice(context, target);
  const number = partAt(volume.record.device.node, snapshot.startBytes)?.number;
  const isMounted = isMountedWritable(allMounts().filter(({ device }) => device === number));
  const reachable = isMounted || snapshot.store.kind === 'device';
  // A file elsewhere can be removed whether or not the volume is mounted; one that nobody has verified may not be ours.
  const leave = state.startsWith('unverified') || !reachable;
  await endTracking(context, volume, leave);
  context.emit({ event: 'snapshot.destroyed', level: 'info', message: `Minor ${minor} ended`, minor });
}
