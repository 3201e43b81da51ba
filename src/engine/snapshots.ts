/**
 * The four operations of the nine steps: setup, to incremental, to snapshot, destroy.
 *
 * Each prepares everything that can fail first, then freezes and switches (memory only), then tidies. What fails before the
 * switch is undone; what fails after it says what became of the series.
 */
import { randomBytes } from 'node:crypto';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { FdDevice } from '../block/device.js';
import { detectFileSystem } from '../cow/fingerprint.js';
import { dataOffsetBytes } from '../cow/geometry.js';
import { CowbirdError, messageOf } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { writeHeader } from '../tracer/index-io.js';
import { BLOCK_BYTES, Mode, Word } from '../tracer/layout.js';
import { runSteps } from '../tracer/steps.js';
import { StoreMap } from '../tracer/store-map.js';
import { type EngineContext, refuseForeignLink, undoing, withHelper, withScratch } from './context.js';
import { findByMinor, isMountedWritable, mountsOn, refuseInUse, volumeForSnapshot } from './lookup.js';
import type { SnapshotRecord } from './records.js';
import { HELPER_FD_FIRST } from './services.js';
import { type PreparedStore, prepareStore } from './store-setup.js';
import {
  beginStore,
  clearMemory,
  closeSnapshotDevice,
  closeStoreFds,
  currentMap,
  currentState,
  DEFAULT_CACHE_BYTES,
  freezeAndSwitch,
  headerFor,
  indexPart,
  markStoreBlocks,
  openSnapshotDevice,
  RAW,
  requireTransition,
  saveRecord,
  snapshotLinks,
  storeDeviceOf,
  type Tracked,
  tracked,
} from './tracking.js';
import type { Volume } from './volume.js';

export interface SetupParams {
  device: string;
  cowFile: string;
  minor: number;
  cacheBytes?: number | undefined;
  storeBytes?: number | undefined;
  onVolumeOnly?: boolean | undefined;
  alias?: 'datto' | 'elastio-snap' | undefined;
  ignoreErrors?: boolean | undefined;
}

/** Minor free, volume not tracked, link names free: else the errno that dattobd has. */
export function requireFreeMinor(
  context: EngineContext,
  volume: Volume,
  minor: number,
  alias: SnapshotRecord['alias'],
): void {
  if (findByMinor(context, minor) !== undefined)
    throw new CowbirdError('EBUSY', `Minor ${minor} is in use: \`cowbird get-free-minor\` prints one that is not`);
  const other = volume.record.snapshot;
  if (other !== null)
    throw new CowbirdError('EINVAL', `${volume.record.name} is tracked already, as minor ${other.minor}`);
  if (volume.record.opened.readOnly)
    throw new CowbirdError('EINVAL', `${volume.record.name} is read-only: there is nothing to track`);
  for (const link of snapshotLinks(minor, alias)) refuseForeignLink(link);
}

/** Takes the first snapshot of a series. */
export async function setupSnapshot(context: EngineContext, params: SetupParams): Promise<{ device: string }> {
  const volume = volumeForSnapshot(context, params.device);
  const alias = params.alias ?? null;
  requireFreeMinor(context, volume, params.minor, alias);
  await requireMountedOrRaw(volume);
  const target = await undoing(context, (undo) =>
    withHelper(context, [], async (helper) => {
      const store = await prepareStore(context, undo, helper, volume, {
        path: params.cowFile,
        storeBytes: params.storeBytes,
        onVolumeOnly: params.onVolumeOnly === true,
      });
      const snapshot = newRecord(params, store, { uuid: randomBytes(16).toString('hex'), sequenceId: 1 });
      if (mountsOn(volume.record.device.node).length === 0) snapshot.fsType = RAW;
      await writeFirstHeader(volume, snapshot, store);
      clearMemory(volume, { index: true, maps: [0, 1] });
      await freezeAndSwitch(context, helper, volume, () => switchToSnapshot(volume, snapshot, store));
      volume.record.snapshot = snapshot;
      volume.storeFd = store.ownFd;
      undo.add('end tracking', () => endTracking(context, { volume, snapshot }));
      await saveRecord(context, volume);
      const result = { volume, snapshot };
      const device = await openSnapshotDevice(context, result);
      return { ...result, device };
    }),
  );
  context.emit({
    event: 'snapshot.created',
    level: 'info',
    message: `Snapshot ${params.minor} of ${volume.record.name}`,
    minor: params.minor,
    volume: volume.record.name,
  });
  return { device: target.device };
}

/** A file system must be mounted read-write, so that it can be frozen; a volume without one is snapshotted as it is. */
async function requireMountedOrRaw(volume: Volume): Promise<void> {
  const mounts = mountsOn(volume.record.device.node);
  if (isMountedWritable(mounts)) return;
  const { name, device } = volume.record;
  if (mounts.length > 0) throw new CowbirdError('EINVAL', `${name} is mounted read-only: remount it read-write first`);
  const found = await withScratch((buffer) => detectFileSystem(volume.origin, buffer));
  if (found !== 'none')
    throw new CowbirdError(
      'EINVAL',
      `${name} holds an ${found} file system that is not mounted: mount ${device.node} first`,
    );
}

function newRecord(
  params: {
    minor: number;
    cacheBytes?: number | undefined;
    alias?: SnapshotRecord['alias'] | undefined;
    ignoreErrors?: boolean | undefined;
  },
  store: PreparedStore,
  series: { uuid: string; sequenceId: number },
): SnapshotRecord {
  return {
    minor: params.minor,
    ...series,
    mode: 'snapshot',
    cowFile: store.cowFile,
    file: store.file,
    store: store.config,
    storeFd: store.storeFd,
    storeBytes: store.sizeBytes,
    startBytes: store.startBytes,
    fsType: store.fsType,
    fallocateBytes: store.sizeBytes,
    cacheBytes: params.cacheBytes === undefined || params.cacheBytes === 0 ? DEFAULT_CACHE_BYTES : params.cacheBytes,
    autoExpand: null,
    alias: params.alias ?? null,
    ignoreErrors: params.ignoreErrors === true,
    unverified: false,
    failure: '',
    device: null,
  };
}

/** The new store's header says "unclean" on the disk before the first block is saved. */
async function writeFirstHeader(volume: Volume, snapshot: SnapshotRecord, store: PreparedStore): Promise<void> {
  const header = headerFor(
    volume,
    { ...snapshot, store: { ...snapshot.store, slots: [] } },
    { clean: false, changedBlocks: 0 },
  );
  const device =
    store.ownFd === undefined ? volume.origin : new FdDevice(store.ownFd, store.config.placeCount * BLOCK_BYTES, false);
  await withScratch((buffer) =>
    runSteps(writeHeader({ map: new StoreMap(store.config), device }, buffer, header), noWait),
  );
}

function noWait(): never {
  throw new Error('Writing a header waits for nothing');
}

/** The switch itself. Under the closed gate. */
function switchToSnapshot(volume: Volume, snapshot: SnapshotRecord, store: PreparedStore): void {
  beginStore(volume, store.config);
  const dirtyHeader = headerFor(volume, snapshot, { clean: false, changedBlocks: 0 });
  volume.setStore({ config: store.config, dirtyHeader }, storeDeviceOf(store.ownFd, store.config.placeCount));
}

/** From snapshot to incremental: the device goes, marks go on. */
export async function transitionToIncremental(context: EngineContext, minor: number): Promise<void> {
  const target = tracked(context, minor);
  requireTransition(target, 'transitionToIncremental');
  const { volume, snapshot } = target;
  if (snapshot.device !== null) await refuseInUse(snapshot.device.node);
  // Waited: the state is looked at again.
  requireTransition(target, 'transitionToIncremental');
  await closeSnapshotDevice(context, target);
  const dataOffset = dataOffsetBytes(volume.blockCount);
  const before = snapshot.store;
  const after = indexPart(before, volume.blockCount);
  const incremental: SnapshotRecord = {
    ...snapshot,
    mode: 'incremental',
    store: after,
    storeBytes: dataOffset,
    autoExpand: null,
  };
  await volume.whilePaused(() => {
    volume.memory.set(Word.MODE, Mode.INCREMENTAL);
    // What the store gives back is part of the volume again, and not what the last image has there.
    markStoreBlocks(volume, before, dataOffset / BLOCK_BYTES);
    const dirtyHeader = headerFor(volume, incremental, { clean: false, changedBlocks: 0 });
    volume.setStore({ config: after, dirtyHeader }, storeDeviceOf(volume.storeFd, after.placeCount));
    volume.record.snapshot = incremental;
  });
  await saveRecord(context, volume);
  clearMemory(volume, { index: true, maps: [] });
  await withHelper(context, [], (helper) =>
    helper.call('truncateStore', { file: snapshot.file, lengthBytes: dataOffset, immutable: before.kind === 'origin' }),
  ).catch((error: unknown) =>
    context.emit({
      event: 'store.truncate',
      level: 'warning',
      message: `${snapshot.file.path} keeps its size: ${messageOf(error)}`,
      minor,
    }),
  );
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
  const storeBytes = params.storeBytes ?? old.fallocateBytes;
  const next = await undoing(context, (undo) =>
    withHelper(context, [volume.record.opened.memoryFd], async (helper) => {
      const store = await prepareStore(context, undo, helper, volume, {
        path: params.cowFile,
        storeBytes,
        onVolumeOnly: params.onVolumeOnly === true,
      });
      const snapshot = newRecord({ ...old, cacheBytes: 0 }, store, { uuid: old.uuid, sequenceId: old.sequenceId + 1 });
      if (old.fsType === RAW) snapshot.fsType = RAW;
      await writeFirstHeader(volume, snapshot, store);
      requireTransition(target, 'transitionToSnapshot');
      await closeSnapshotDevice(context, target);
      const closedMap = currentMap(volume.memory);
      clearMemory(volume, { index: true, maps: [closedMap === 0 ? 1 : 0] });
      let closedCount = 0;
      await freezeAndSwitch(context, helper, volume, () => {
        // Blocks that enter the new store, and all that the old one had, read differently from now on.
        markStoreBlocks(volume, store.config, 0);
        markStoreBlocks(volume, old.store, 0);
        closedCount = volume.memory.get(Word.CHANGED) >>> 0;
        volume.memory.set(Word.MAP, closedMap === 0 ? 1 : 0);
        switchToSnapshot(volume, snapshot, store);
        volume.record.snapshot = snapshot;
      });
      undo.clear();
      const oldStoreFd = volume.storeFd;
      volume.storeFd = store.ownFd;
      await saveRecord(context, volume);
      return {
        snapshot,
        helper,
        closedMap,
        closedCount,
        oldStoreFd,
        finish: await closeOldFile(context, volume, old, helper, closedMap, closedCount),
      };
    }),
  );
  if (next.oldStoreFd !== undefined) libc.close(next.oldStoreFd);
  if (old.storeFd !== null) await context.keeper.call('closeFds', { fds: [old.storeFd] });
  clearMemory(volume, { index: false, maps: [next.closedMap] });
  const device = await openSnapshotDevice(context, { volume, snapshot: next.snapshot });
  if (next.finish !== undefined) {
    throw new CowbirdError(
      'EIO',
      `The snapshot was taken, but ${old.file.path} could not be written: ${next.finish}. Compare contents for this backup (\`update-img --scan\`)`,
      { outcome: 'partial' },
    );
  }
  return { device };
}

/** Writes the closed sequence's list of changes; returns what went wrong, in words. */
async function closeOldFile(
  context: EngineContext,
  volume: Volume,
  old: SnapshotRecord,
  helper: import('./services.js').HelperSession,
  closedMap: 0 | 1,
  changedBlocks: number,
): Promise<string | undefined> {
  const header = headerFor(volume, { ...old, mode: 'incremental' }, { clean: true, changedBlocks });
  try {
    await helper.call(
      'closeStore',
      {
        file: old.file,
        memoryFd: HELPER_FD_FIRST,
        mapOffset: volume.memory.sizes.mapOffsets[closedMap],
        blockCount: volume.blockCount,
        dataOffsetBytes: dataOffsetBytes(volume.blockCount),
        header: header.toString('base64'),
      },
      CLOSE_TIMEOUT_MS,
    );
    return undefined;
  } catch (error) {
    context.emit({ event: 'store.close', level: 'error', message: messageOf(error), minor: old.minor });
    return messageOf(error);
  }
}

const CLOSE_TIMEOUT_MS = 120_000;

/** Ends tracking. Deletes the current COW file when active or failed; leaves it, removable, when dormant or unverified. */
export async function destroy(context: EngineContext, minor: number): Promise<void> {
  const target = tracked(context, minor);
  const { volume, snapshot } = target;
  if (snapshot.device !== null) await refuseInUse(snapshot.device.node);
  const state = currentState(target);
  await closeSnapshotDevice(context, target);
  const reachable = isMountedWritable(mountsOn(volume.record.device.node)) || snapshot.store.kind === 'device';
  const leave = /^(dormant|unverified)/.test(state) || !reachable;
  await endTracking(context, target);
  await removeOrRelease(context, target, leave).catch((error: unknown) =>
    context.emit({
      event: 'store.left',
      level: 'warning',
      message: `${snapshot.file.path} is left behind: ${messageOf(error)}`,
      minor,
    }),
  );
  context.emit({ event: 'snapshot.destroyed', level: 'info', message: `Minor ${minor} ended`, minor });
}

async function removeOrRelease(context: EngineContext, { volume, snapshot }: Tracked, leave: boolean): Promise<void> {
  const { file } = snapshot;
  if (file.path === '') return;
  await withHelper(context, [], async (helper) => {
    if (!leave) {
      await helper.call('unlinkStore', { file });
    } else if (snapshot.store.kind === 'device') {
      await helper.call('setImmutable', { file, immutable: false });
    } else if (mountsOn(volume.record.device.node).length > 0) {
      await helper.call('setImmutable', { file, immutable: false });
    } else {
      await helper.call('clearImmutableUnmounted', {
        node: volume.record.device.node,
        fsType: snapshot.fsType,
        pathInside: snapshot.cowFile,
      });
    }
  });
}

/** Back to passthrough: no store, no map, no record. */
async function endTracking(context: EngineContext, { volume, snapshot }: Tracked): Promise<void> {
  await closeSnapshotDevice(context, { volume, snapshot });
  await volume.whilePaused(() => {
    volume.memory.set(Word.MODE, Mode.PASSTHROUGH);
    volume.memory.set(Word.FAILED, 0);
    volume.setStore(undefined);
    volume.record.snapshot = null;
  });
  await closeStoreFds(context, volume, snapshot.storeFd);
  await saveRecord(context, volume);
  clearMemory(volume, { index: true, maps: [0, 1] });
  rmSync(seriesPath(context, snapshot.uuid), { force: true });
}

/** File in the state directory that lets a series go on after a clean stop. */
export function seriesPath(context: EngineContext, uuid: string): string {
  return join(context.paths.stateDir, 'series', `${uuid}.json`);
}
