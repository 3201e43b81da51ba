/** From one mode of a series to the next, and its end. */
import { dataOffsetBytes } from '../cow/geometry.js';
import { CowbirdError } from '../sys/errors.js';
import { BLOCK_BYTES } from '../tracer/layout.js';
import { ensureDirty } from './cleaning.js';
import { type EngineContext, undoing, withHelper } from './context.js';
import { failPoint } from './fail-points.js';
import { isMountedWritable, mountsOn, refuseInUse } from './lookup.js';
import { describeSwitch, endTracking, finish, partial, performSwitch, switchPaused } from './pending.js';
import type { SnapshotRecord } from './records.js';
import { newRecord, writeFirstHeader } from './setup.js';
import { prepareStore } from './store-setup.js';
import {
  clearMemory,
  closeSnapshotDevice,
  currentMap,
  currentState,
  freezeAndSwitch,
  indexPart,
  RAW,
  requireTransition,
  tracked,
} from './tracking.js';

/** From snapshot to incremental: the device goes, marks go on. */
export async function transitionToIncremental(context: EngineContext, minor: number): Promise<void> {
  const target = tracked(context, minor);
  requireTransition(target, 'transitionToIncremental');
  const { volume, snapshot } = target;
  if (snapshot.device !== null) await refuseInUse(snapshot.device.node);
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
}

/** From incremental (or a failed snapshot) to the next snapshot of the series. The old COW file is left with the changes. */
export async function transitionToSnapshot(
  context: EngineContext,
  params: ToSnapshotParams,
): Promise<{ device: string }> {
  const target = tracked(context, params.minor);
  requireTransition(target, 'transitionToSnapshot');
  const { volume, snapshot: old } = target;
  if (old.file.path === params.cowFile)
    throw new CowbirdError('EPERM', `${params.cowFile} is the current COW file: name a new one`);
  if (old.device !== null) await refuseInUse(old.device.node);
  await undoing(context, (undo) =>
    withHelper(context, [volume.record.opened.memoryFd], async (helper) => {
      const store = await prepareStore(context, undo, helper, volume, {
        path: params.cowFile,
        storeBytes: params.storeBytes ?? old.fallocateBytes,
        onVolumeOnly: params.onVolumeOnly === true,
      });
      const snapshot = newRecord({ ...old, cacheBytes: 0 }, store, { uuid: old.uuid, sequenceId: old.sequenceId + 1 });
      if (old.fsType === RAW) snapshot.fsType = RAW;
      await writeFirstHeader(volume, snapshot, store);
      failPoint('header-written');
      requireTransition(target, 'transitionToSnapshot');
      await closeSnapshotDevice(context, target);
      await ensureDirty(volume);
      const closedMap = currentMap(volume.memory);
      clearMemory(volume, { index: true, maps: [closedMap === 0 ? 1 : 0] });
      const change = { kind: 'next', before: old.store, store: store.config, closedMap } as const;
      await describeSwitch(context, volume, change, snapshot);
      await freezeAndSwitch(context, helper, volume, () => {
        performSwitch(volume, store.ownFd);
        undo.clear();
      });
    }),
  );
  const { result, problem } = await finish(context, volume);
  if (problem !== undefined) throw partial(`The snapshot was taken, but ${problem.message}`);
  return { device: String(result['device']) };
}

/** Ends tracking. Deletes the current COW file when active or failed; leaves it, removable, when dormant or unverified. */
export async function destroy(context: EngineContext, minor: number): Promise<void> {
  const target = tracked(context, minor);
  const { volume, snapshot } = target;
  if (snapshot.device !== null) await refuseInUse(snapshot.device.node);
  const state = currentState(target);
  await closeSnapshotDevice(context, target);
  const reachable = isMountedWritable(mountsOn(volume.record.device.node)) || snapshot.store.kind === 'device';
  const leave = /^(dormant|unverified)/.test(state) || !reachable;
  await endTracking(context, volume, leave);
  context.emit({ event: 'snapshot.destroyed', level: 'info', message: `Minor ${minor} ended`, minor });
}
