/** What the snapshot operations share: states, headers, freezing, and the change of a volume's shared words. */
import { dataOffsetBytes } from '../cow/geometry.js';
import { type CowHeader, encodeHeader } from '../cow/header.js';
import { CowbirdError, messageOf } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { allMounts, type MountEntry } from '../sys/mounts.js';
import { BLOCK_BYTES, type VolumeMemory, Word } from '../tracer/layout.js';
import type { StoreConfig } from '../tracer/store-map.js';
import { type EngineContext, type Undo, undoing } from './context.js';
import { closeDevice, openDevice } from './devices.js';
import { failPoint } from './fail-points.js';
import { findByMinor, freezePoints, isMountedWritable, mountsOn } from './lookup.js';
import type { SnapshotRecord, VolumeRecord } from './records.js';
import { HELPER_FD_FIRST, type HelperSession } from './services.js';
import { type EventName, STATE_TABLE, type StateName, stateName } from './states.js';
import type { Volume } from './volume.js';

export const DEFAULT_CACHE_BYTES = 314_572_800;

/** What of a volume its status is read from: also without an engine. */
export interface VolumeView {
  readonly record: VolumeRecord;
  readonly blockCount: number;
  readonly memory: { get(word: number): number };
}

/** A volume that is tracked, with its record at hand. */
export interface Tracked {
  volume: Volume;
  snapshot: SnapshotRecord;
}

/** The tracked volume of a minor. @throws {CowbirdError} ENOENT */
export function tracked(context: EngineContext, minor: number): Tracked {
  const volume = findByMinor(context, minor);
  const snapshot = volume?.record.snapshot;
  if (volume === undefined || snapshot === null || snapshot === undefined) {
    throw new CowbirdError('ENOENT', `Minor ${minor} is not in use: \`cowbird info\` shows which are`);
  }
  return { volume, snapshot };
}

/** The row of the state table that a tracked volume is in at this moment. */
export function currentState({ volume, snapshot }: Tracked, mounts: readonly MountEntry[] = allMounts()): StateName {
  return stateName({
    mode: snapshot.mode,
    unverified: snapshot.unverified,
    active: isActive(volume, snapshot, mounts),
    failed: volume.memory.get(Word.FAILED) !== 0,
  });
}

/** A volume that was set up without a file system is active as long as it is attached. */
export function isActive(volume: VolumeView, snapshot: SnapshotRecord, mounts: readonly MountEntry[]): boolean {
  return snapshot.fsType === RAW || isMountedWritable(mountsOn(volume.record.device.node, mounts));
}

/** `fsType` of a tracked volume that holds no file system. */
export const RAW = 'raw';

/** Looks the event up in the table. @throws {CowbirdError} what the table says for a refused one. */
export function requireTransition(target: Tracked, event: EventName): void {
  const state = currentState(target);
  const row = STATE_TABLE[state][event];
  if ('refuse' in row) {
    const words = state.replace(/([A-Z])/g, ' $1').toLowerCase();
    const reason = target.snapshot.failure === '' ? '' : ` (${target.snapshot.failure})`;
    throw new CowbirdError(
      row.refuse,
      `Minor ${target.snapshot.minor} is in state "${words}"${reason}, where ${event.replace(/([A-Z])/g, '-$1').toLowerCase()} is not possible`,
    );
  }
}

/** Header of a store, from what is known of it. */
export function headerFor(
  volume: Volume,
  snapshot: SnapshotRecord,
  fields: { clean: boolean; changedBlocks: number; fingerprint?: Uint8Array },
): Buffer {
  const indexOnly = snapshot.mode === 'incremental';
  const dataOffset = dataOffsetBytes(volume.blockCount);
  const header: CowHeader = {
    clean: fields.clean,
    indexOnly,
    vmallocUpper: false,
    positionBlocks: indexOnly ? dataOffset / BLOCK_BYTES : positionOf(volume, snapshot),
    fileSizeBytes: indexOnly ? dataOffset : snapshot.storeBytes,
    sequenceId: snapshot.sequenceId,
    uuid: Buffer.from(snapshot.uuid, 'hex'),
    version: 1,
    changedBlocks: fields.changedBlocks,
  };
  if (fields.fingerprint !== undefined) {
    header.extension = { fingerprint: fields.fingerprint, volumeSizeBytes: volume.record.opened.sizeBytes };
  }
  return encodeHeader(header);
}

/** dattobd's fpos: the place after the last one that is in use. A store that grew may have used places out of order. */
export function positionOf(volume: Volume, snapshot: SnapshotRecord): number {
  const used = volume.memory.get(Word.NEXT_SLOT) >>> 0;
  const first = dataOffsetBytes(volume.blockCount) / BLOCK_BYTES;
  if (snapshot.store.slots.length > 1) return snapshot.store.placeCount;
  return first + used;
}

/** Bytes of the COW file that are in use: header, index, saved blocks. */
export function usedBytes(volume: VolumeView, snapshot: SnapshotRecord): number {
  const base = dataOffsetBytes(volume.blockCount);
  return snapshot.mode === 'incremental' ? base : base + (volume.memory.get(Word.NEXT_SLOT) >>> 0) * BLOCK_BYTES;
}

export function saveRecord(context: EngineContext, volume: Volume): Promise<null> {
  return context.keeper.call('putVolume', { volume: volume.record });
}

const SYNC_TIMEOUT_MS = 120_000;
const FREEZE_TIMEOUT_MS = 15_000;

/**
 * Freezes every file system that is mounted read-write on the volume, switches under the closed gate, thaws. In this order:
 * syncfs while everything runs, FIFREEZE while the workers run, the gate, the switch, the gate again, FITHAW. A volume
 * without a mounted file system has its writes held for the switch alone. The helper inherits the volume's memory, to open
 * the gate before it thaws when its time is over.
 */
export async function freezeAndSwitch(
  context: EngineContext,
  helper: HelperSession,
  volume: Volume,
  change: () => void,
): Promise<void> {
  const mountPoints = freezePoints(mountsOn(volume.record.device.node));
  if (mountPoints.length === 0) {
    await volume.whilePaused(change);
    return;
  }
  const gates = [{ memoryFd: HELPER_FD_FIRST }];
  await helper.call('prepareFreeze', { mountPoints, gates }, SYNC_TIMEOUT_MS);
  const startedAt = performance.now();
  const { frozenByOthers } = await helper.call('freeze', {}, FREEZE_TIMEOUT_MS);
  try {
    failPoint('frozen');
    await volume.whilePaused(change);
  } finally {
    // Whoever thawed before us did no harm: T0 is the switch. One that does not thaw in time is seen to by the keeper.
    await helper
      .call('thaw', {}, FREEZE_TIMEOUT_MS)
      .catch((error: unknown) =>
        context.emit({ event: 'volume.thaw', level: 'warning', message: `${volume.record.name}: ${messageOf(error)}` }),
      );
  }
  context.emit({
    event: 'volume.frozen',
    level: 'info',
    message: `${volume.record.name} was frozen for ${Math.round(performance.now() - startedAt)} ms`,
    volume: volume.record.name,
    freezeMs: Math.round(performance.now() - startedAt),
    frozenByOthers,
  });
}

/** The part of a store that an incremental file keeps: header and index. */
export function indexPart(config: StoreConfig, blockCount: number): StoreConfig {
  const placeCount = dataOffsetBytes(blockCount) / BLOCK_BYTES;
  const extents = config.extents
    .filter((extent) => extent.place < placeCount)
    .map((extent) => ({ ...extent, count: Math.min(extent.count, placeCount - extent.place) }));
  return { kind: config.kind, extents, slots: [], placeCount };
}

/** Gives memory back and makes it zeros again: the index, and one or both change maps. */
export function clearMemory(volume: Volume, parts: { index: boolean; maps: ReadonlyArray<0 | 1> }): void {
  const { sizes } = volume.memory;
  const punch = (offset: number, lengthBytes: number): void =>
    libc.fallocate(volume.fds.memory, libc.FALLOC_FL_PUNCH_HOLE + libc.FALLOC_FL_KEEP_SIZE, offset, lengthBytes);
  if (parts.index) punch(sizes.indexOffset, sizes.indexBytes);
  for (const map of parts.maps) punch(sizes.mapOffsets[map], sizes.mapBytes);
}

/** Which map is current, as an index into the two. */
export function currentMap(memory: VolumeMemory): 0 | 1 {
  return memory.get(Word.MAP) === 0 ? 0 : 1;
}

/** The links of a snapshot's device. */
export function snapshotLinks(minor: number, alias: SnapshotRecord['alias']): string[] {
  return [`/dev/cowbird${minor}`, ...(alias === null ? [] : [`/dev/${alias}${minor}`])];
}

/** Gives everybody the store of the current record. Only with the gate closed, or before anything is served. */
export function configureStore(volume: Volume): void {
  const { snapshot } = volume.record;
  if (snapshot === null || snapshot.store.placeCount === 0) {
    volume.setStore(undefined);
    return;
  }
  const dirtyHeader = headerFor(volume, snapshot, { clean: false, changedBlocks: 0 });
  volume.setStore({ config: snapshot.store, dirtyHeader }, storeDeviceOf(volume.storeFd, snapshot.store.placeCount));
}

/** Brings the snapshot's device up and records it. */
export async function openSnapshotDevice(context: EngineContext, { volume, snapshot }: Tracked): Promise<string> {
  const { record, fd } = await undoing(context, (undo: Undo) =>
    openDevice(context, undo, {
      id: `snapshot-${snapshot.minor}`,
      readOnly: true,
      partitionScan: false,
      logicalSectorBytes: volume.record.opened.logicalSectorBytes,
      links: snapshotLinks(snapshot.minor, snapshot.alias),
      serve: (sessionFd) =>
        context.pool.addSession({
          id: `snapshot-${snapshot.minor}`,
          volumeId: volume.record.id,
          kind: 'snapshot',
          fd: sessionFd,
          concurrency: volume.record.workers,
        }),
    }),
  );
  snapshot.device = record;
  volume.snapshotFuseFd = fd;
  await saveRecord(context, volume);
  return record.links[0] ?? record.node;
}

/** Takes the snapshot's device down, if there is one. Its openers must be gone. */
export async function closeSnapshotDevice(context: EngineContext, { volume, snapshot }: Tracked): Promise<void> {
  if (snapshot.device === null || volume.snapshotFuseFd === undefined) return;
  const { fuseFd } = snapshot.device;
  await closeDevice(context, snapshot.device, volume.snapshotFuseFd);
  snapshot.device = null;
  volume.snapshotFuseFd = undefined;
  // First nothing names the descriptor any more, then it goes: a new engine must find what the record names.
  await saveRecord(context, volume);
  await context.keeper.call('closeFds', { fds: [fuseFd] });
}

/** Device of a store of its own, for `Volume.setStore`. */
export function storeDeviceOf(
  fd: number | undefined,
  placeCount: number,
): { fd: number; sizeBytes: number } | undefined {
  return fd === undefined ? undefined : { fd, sizeBytes: placeCount * BLOCK_BYTES };
}
