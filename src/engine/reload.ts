/**
 * Going on with a series after a clean stop.
 *
 * The state directory has what is needed to find the store by address alone, so tracking goes on at once, before anything
 * is mounted: no write between the reload and the mount is missed, and in snapshot mode none goes unsaved. Trusted only if
 * everything agrees: the header at those addresses is clean and of this series, and the origin's fingerprint is the one
 * that was taken when it became clean. The first read-write mount then lets the file be seen through the file system, and
 * its extents are compared with those that were used (`watch.ts`).
 */
import { originFingerprint } from '../cow/fingerprint.js';
import { dataOffsetBytes } from '../cow/geometry.js';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { BLOCK_BYTES, Mode, Word } from '../tracer/layout.js';
import { takeOver } from '../tracer/reloading.js';
import { slotCount } from '../tracer/switches.js';
import { runStepsAsync, withScratch } from './async-steps.js';
import { storeOf } from './cleaning.js';
import { attachedRecords, type EngineContext, undoing, withHelper } from './context.js';
import { failPoint } from './fail-points.js';
import { loadFreeBlocks } from './free-blocks.js';
import type { StoreFile } from './helper-calls.js';
import { isMountedWritable, mountsOn, volumeForSnapshot } from './lookup.js';
import { describeSwitch, finish } from './pending.js';
import type { SavedSeries, SnapshotRecord } from './records.js';
import { findSeries, requireHeader } from './saved-state.js';
import { requireFreeMinor } from './setup.js';
import { openElsewhere } from './store-elsewhere.js';
import { clearMemory, configureStore, DEFAULT_CACHE_BYTES, saveRecord } from './tracking.js';
import type { Volume } from './volume.js';

export interface ReloadParams {
  device: string;
  cowFile: string;
  minor: number;
  cacheBytes?: number | undefined;
  alias?: 'datto' | 'elastio-snap' | undefined;
  ignoreErrors?: boolean | undefined;
}

const EINVAL = 22;

/** Records the promise, and keeps it at once where the state directory knows the series. */
export async function reload(
  context: EngineContext,
  params: ReloadParams,
  mode: 'snapshot' | 'incremental',
): Promise<void> {
  const volume = volumeForSnapshot(context, params.device);
  const alias = params.alias ?? null;
  requireFreeMinor(context, volume, params.minor, alias);
  const saved = findSeries(context.paths.stateDir, volume.record.origin, params.cowFile, context.emit);
  const file = saved === undefined ? undefined : await fileOf(context, volume, saved);
  // Behind what waits.
  if (isMountedWritable(mountsOn(volume.record.device.node))) {
    throw new CowbirdError('EINVAL', `${volume.record.name} is mounted read-write: reload before it is mounted`);
  }
  const snapshot = recordFor(params, mode, saved, file);
  clearMemory(volume, { index: true, maps: [0, 1], free: [0, 1], noted: true });
  if (saved === undefined) {
    // As dattobd has it: whether the file is there shows when the volume is mounted.
    await volume.whilePaused(() => {
      volume.memory.set(Word.FAILED, 0);
      volume.record.snapshot = snapshot;
    });
    await saveRecord(context, volume);
    return;
  }
  await goOnWith(context, volume, snapshot, saved);
}

/**
 * The file of a series as it is now, of which its file system may have been mounted again since. What it holds proves later that it is
 * the one; by then the workers use it, so it must not lie on what they serve.
 */
async function fileOf(context: EngineContext, volume: Volume, { file, store }: SavedSeries): Promise<StoreFile> {
  if (store.kind === 'origin') return { ...file, on: volume.record.device.node };
  const { path } = file;
  const volumeNodes = attachedRecords(context).map(({ device }) => device.node);
  return withHelper(context, (helper) => helper.call('findStore', { path, volumeNodes }));
}

function recordFor(
  params: ReloadParams,
  mode: 'snapshot' | 'incremental',
  saved: SavedSeries | undefined,
  file: StoreFile = { path: '', dev: 0, ino: 0 },
): SnapshotRecord {
  return {
    minor: params.minor,
    uuid: saved?.uuid ?? '',
    sequenceId: saved?.sequenceId ?? 0,
    mode,
    cowFile: params.cowFile,
    file,
    store: saved?.store ?? { kind: 'origin', extents: [], slots: [], placeCount: 0 },
    storeFd: null,
    storeBytes: saved?.storeBytes ?? 0,
    startBytes: saved?.startBytes ?? 0,
    fsType: saved?.fsType ?? '',
    // A closed file has its list only: the next one has the usual size, unless another one is given.
    fallocateBytes: mode === 'incremental' ? 0 : (saved?.storeBytes ?? 0),
    cacheBytes:
      params.cacheBytes === undefined || params.cacheBytes === 0
        ? (saved?.cacheBytes ?? DEFAULT_CACHE_BYTES)
        : params.cacheBytes,
    autoExpand: null,
    alias: params.alias ?? null,
    ignoreErrors: params.ignoreErrors === true,
    ...(saved?.free === undefined ? {} : { freeAware: true, free: saved.free }),
    unverified: true,
    failure: '',
    device: null,
  };
}

/** Loads the index and begins to track; what does not agree fails the series with its reason, and tracks nothing. */
async function goOnWith(
  context: EngineContext,
  volume: Volume,
  snapshot: SnapshotRecord,
  saved: SavedSeries,
): Promise<void> {
  await undoing(context, async (undo) => {
    const { memory } = volume;
    const change = { kind: 'reload', mode: snapshot.mode, free: saved.free !== undefined } as const;
    await describeSwitch(context, volume, change, snapshot);
    undo.add('end tracking', () => {
      volume.record.pending = null;
      volume.record.snapshot = null;
      return saveRecord(context, volume);
    });
    if (saved.store.kind === 'device') {
      const { storeFd, ownFd, sizeBytes } = await openElsewhere(context, undo, snapshot.file);
      if (sizeBytes < saved.store.placeCount * BLOCK_BYTES)
        throw new CowbirdError('EINVAL', `${saved.file.path} has ${sizeBytes} bytes, and had ${saved.storeBytes}`);
      snapshot.storeFd = storeFd;
      volume.storeFd = ownFd;
      undo.add('forget the duplicate of the store', () => {
        volume.storeFd = undefined;
      });
      // The descriptor belongs to the description too.
      await describeSwitch(context, volume, change, snapshot);
    }
    await volume.whilePaused(() => {
      memory.set(Word.MODE, Mode.PASSTHROUGH);
      memory.set(Word.FAILED, 0);
      memory.set(Word.CHANGED, 0);
      memory.set(Word.NEXT_SLOT, saved.nextSlot | 0);
      memory.set(Word.SLOT_COUNT, slotCount(saved.store) | 0);
      volume.record.snapshot = snapshot;
      configureStore(volume);
    });
    await verifyAndLoad(context, volume, snapshot, saved).catch((error: unknown) => {
      snapshot.failure = messageOf(error);
      volume.tracer.fail(EINVAL);
      context.emit({
        event: 'reload.refused',
        level: 'error',
        message: `Minor ${snapshot.minor}: ${messageOf(error)}`,
        minor: snapshot.minor,
      });
    });
    failPoint('switched');
    await finish(context, volume);
  });
}

async function verifyAndLoad(
  context: EngineContext,
  volume: Volume,
  snapshot: SnapshotRecord,
  saved: SavedSeries,
): Promise<void> {
  if (saved.sizeBytes !== volume.record.opened.sizeBytes) {
    throw new Error(`the volume has ${volume.record.opened.sizeBytes} bytes and had ${saved.sizeBytes}`);
  }
  loadFreeBlocks(context, volume, saved);
  await withScratch((buffer) =>
    runStepsAsync(
      takeOver(volume.tracer, {
        store: storeOf({ volume, snapshot }),
        buffer,
        mode: snapshot.mode,
        free: saved.free !== undefined,
        uuid: Buffer.from(saved.uuid, 'hex'),
        sequenceId: saved.sequenceId,
        requireHeader: (header) => requireHeader(header, saved),
        fingerprint: () => originFingerprint(volume.origin, buffer, saved.starts, saved.store.extents),
        expectedFingerprint: Buffer.from(saved.fingerprint, 'hex'),
        firstPlace: dataOffsetBytes(volume.blockCount) / BLOCK_BYTES,
        endPlace: saved.store.placeCount,
      }),
    ),
  );
}
