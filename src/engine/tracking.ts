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
import type { DoneOperation, HelperSession } from './services.js';
import { type EventName, STATE_TABLE, type StateName, stateName } from './states.js';
import { type Volume, whileAllPaused } from './volume.js';

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
  const { slots, placeCount } = snapshot.store;
  return slots.length > 1 ? placeCount : (slots[0]?.place ?? first) + used;
}

/** Bytes of the COW file that are in use: header, index, saved blocks. */
export function usedBytes(volume: VolumeView, snapshot: SnapshotRecord): number {
  const base = dataOffsetBytes(volume.blockCount);
  const zeroBytes = snapshot.store.zeroPlace === undefined ? 0 : BLOCK_BYTES;
  return snapshot.mode === 'incremental'
    ? base
    : base + zeroBytes + (volume.memory.get(Word.NEXT_SLOT) >>> 0) * BLOCK_BYTES;
}

/** What telling the keeper takes. */
type Told = Pick<Volume, 'record'>;
type Teller = Pick<EngineContext, 'keeper'>;

export function saveRecord(context: Teller, volume: Told): Promise<null> {
  return context.keeper.call('putVolume', { volume: volume.record });
}

/** Tells the keeper of several volumes at once: all of them, or none. */
export function saveRecords(
  context: Teller,
  volumes: readonly Told[],
  done?: DoneOperation | undefined,
): Promise<null> {
  const told = done === undefined ? {} : { done };
  const [first] = volumes;
  if (first !== undefined && volumes.length === 1)
    return context.keeper.call('putVolume', { volume: first.record, ...told });
  return context.keeper.call('putVolumes', { volumes: volumes.map(({ record }) => record), ...told });
}

const SYNC_TIMEOUT_MS = 120_000;
const FREEZE_TIMEOUT_MS = 15_000;

/** How long file systems were frozen, and how long all writes were held together, in milliseconds. */
export interface FreezeTimes {
  freezeMs: number;
  windowMs: number;
}

/**
 * Freezes every file system that is mounted read-write on the volumes, switches under the closed gates, thaws. In this order:
 * syncfs while everything runs, FIFREEZE while the workers run, the gates, the switch, the gates again, FITHAW. A volume
 * without a mounted file system has its writes held for the switch alone. The helper maps the volumes' memory, to
 * open the gates before it thaws when its time is over. `beforeFreeze`: what takes long and may be done
 * as late as behind syncfs.
 */
export async function freezeAndSwitch(
  context: EngineContext,
  helper: HelperSession,
  volumes: readonly Volume[],
  change: () => void,
  beforeFreeze: () => Promise<void> = async () => undefined,
): Promise<FreezeTimes> {
  const mounts = allMounts();
  const nodes = volumes.map(({ record }) => record.device.node);
  const points = freezePoints(nodes, mounts);
  if (points.size === 0) return { freezeMs: 0, windowMs: await timed(() => whileAllPaused(volumes, change)) };
  const gates = volumes.map(({ record }) => ({ memoryFd: record.opened.memoryFd }));
  const prepared = { mountPoints: [...points.keys()], mounts: [...points.values()], gates };
  await helper.call('prepareFreeze', prepared, SYNC_TIMEOUT_MS);
  await beforeFreeze();
  const startedAt = performance.now();
  const { frozenByOthers } = await helper.call('freeze', {}, FREEZE_TIMEOUT_MS);
  const names = volumes.map(({ record }) => record.name).join(', ');
  let windowMs = 0;
  try {
    failPoint('frozen');
    windowMs = await timed(() => whileAllPaused(volumes, change));
  } finally {
    // Whoever thawed before us did no harm: T0 is the switch. One that does not thaw in time is seen to by the keeper.
    await helper.call('thaw', {}, FREEZE_TIMEOUT_MS).catch((error: unknown) =>
      context.emit({
        event: 'volume.thaw',
        level: 'warning',
        message: `${names}: ${messageOf(error)}`,
        volume: names,
      }),
    );
  }
  failPoint('thawed');
  const freezeMs = Math.round(performance.now() - startedAt);
  const message = `${names} ${volumes.length === 1 ? 'was' : 'were'} frozen for ${freezeMs} ms`;
  context.emit({ event: 'volume.frozen', level: 'info', message, volume: names, freezeMs, windowMs, frozenByOthers });
  return { freezeMs, windowMs };
}

/** Milliseconds that an action takes, to a tenth. */
async function timed(action: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now();
  await action();
  return Math.round((performance.now() - startedAt) * 10) / 10;
}

/** The part of a store that an incremental file keeps: header and index. */
export function indexPart(config: StoreConfig, blockCount: number): StoreConfig {
  const placeCount = dataOffsetBytes(blockCount) / BLOCK_BYTES;
  const extents = config.extents
    .filter((extent) => extent.place < placeCount)
    .map((extent) => ({ ...extent, count: Math.min(extent.count, placeCount - extent.place) }));
  return { kind: config.kind, extents, slots: [], placeCount };
}

/** Gives memory back and makes it zeros again: the index, change maps, free maps, the map of noted writes. */
export function clearMemory(
  volume: Volume,
  parts: { index: boolean; maps: ReadonlyArray<0 | 1>; free?: ReadonlyArray<0 | 1>; noted?: boolean },
): void {
  const { sizes } = volume.memory;
  const punch = (offset: number, lengthBytes: number): void =>
    libc.fallocate(volume.fds.memory, libc.FALLOC_FL_PUNCH_HOLE + libc.FALLOC_FL_KEEP_SIZE, offset, lengthBytes);
  if (parts.index) punch(sizes.indexOffset, sizes.indexBytes);
  for (const map of parts.maps) punch(sizes.mapOffsets[map], sizes.mapBytes);
  for (const map of parts.free ?? []) punch(sizes.freeOffsets[map], sizes.mapBytes);
  if (parts.noted === true) punch(sizes.notedOffset, sizes.notedBytes);
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
