/**
 * Going on with a series after a clean stop.
 *
 * The state directory has what is needed to find the store by address alone, so tracking goes on at once, before anything
 * is mounted: no write between the reload and the mount is missed, and in snapshot mode none goes unsaved. Trusted only if
 * everything agrees: the header at those addresses is clean and of this series, and the origin's fingerprint is the one
 * that was taken when it became clean. The first read-write mount then lets the file be seen through the file system, and
 * its extents are compared with those that were used (`watch.ts`).
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as v from 'valibot';
import { originFingerprint } from '../cow/fingerprint.js';
import { dataOffsetBytes } from '../cow/geometry.js';
import { type CowHeader, decodeHeader } from '../cow/header.js';
import { CowbirdError, errnoOfError, messageOf } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { loadIndex, readHeaderPage } from '../tracer/index-io.js';
import { BLOCK_BYTES, HeaderState, Mode, Word } from '../tracer/layout.js';
import { storeOf } from './cleaning.js';
import { type EngineContext, runStepsAsync, undoing, withScratch } from './context.js';
import { isMountedWritable, mountsOn, volumeForSnapshot } from './lookup.js';
import type { SavedSeries, SnapshotRecord } from './records.js';
import { requireFreeMinor } from './snapshots.js';
import { clearMemory, closeStoreFds, DEFAULT_CACHE_BYTES, headerFor, saveRecord, storeDeviceOf } from './tracking.js';
import type { Volume } from './volume.js';

export interface ReloadParams {
  device: string;
  cowFile: string;
  minor: number;
  cacheBytes?: number | undefined;
  alias?: 'datto' | 'elastio-snap' | undefined;
  ignoreErrors?: boolean | undefined;
}

const Extent = v.object({ place: v.number(), block: v.number(), count: v.number() });
const Saved = v.object({
  format: v.literal(1),
  origin: v.string(),
  sizeBytes: v.number(),
  uuid: v.pipe(v.string(), v.regex(/^[0-9a-f]{32}$/)),
  sequenceId: v.number(),
  mode: v.picklist(['incremental', 'snapshot']),
  cowFile: v.string(),
  file: v.object({ path: v.string(), dev: v.number(), ino: v.number() }),
  store: v.object({
    kind: v.picklist(['origin', 'device']),
    extents: v.array(Extent),
    slots: v.array(v.object({ place: v.number(), count: v.number() })),
    placeCount: v.number(),
  }),
  storeBytes: v.number(),
  startBytes: v.number(),
  fsType: v.string(),
  nextSlot: v.number(),
  cacheBytes: v.number(),
  fingerprint: v.string(),
});

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
  if (isMountedWritable(mountsOn(volume.record.device.node))) {
    throw new CowbirdError('EINVAL', `${volume.record.name} is mounted read-write: reload before it is mounted`);
  }
  const saved = findSeries(context, volume, params.cowFile);
  const snapshot = recordFor(params, mode, saved);
  clearMemory(volume, { index: true, maps: [0, 1] });
  if (saved === undefined) {
    // As dattobd has it: whether the file is there shows when the volume is mounted.
    await volume.whilePaused(() => {
      volume.memory.set(Word.FAILED, 0);
      volume.record.snapshot = snapshot;
    });
    await saveRecord(context, volume);
    return;
  }
  await takeOver(context, volume, snapshot, saved, mode);
}

function recordFor(
  params: ReloadParams,
  mode: 'snapshot' | 'incremental',
  saved: SavedSeries | undefined,
): SnapshotRecord {
  return {
    minor: params.minor,
    uuid: saved?.uuid ?? '',
    sequenceId: saved?.sequenceId ?? 0,
    mode,
    cowFile: params.cowFile,
    file: saved?.file ?? { path: '', dev: 0, ino: 0 },
    store: saved?.store ?? { kind: 'origin', extents: [], slots: [], placeCount: 0 },
    storeFd: null,
    storeBytes: saved?.storeBytes ?? 0,
    startBytes: saved?.startBytes ?? 0,
    fsType: saved?.fsType ?? '',
    fallocateBytes: saved?.storeBytes ?? 0,
    cacheBytes:
      params.cacheBytes === undefined || params.cacheBytes === 0
        ? (saved?.cacheBytes ?? DEFAULT_CACHE_BYTES)
        : params.cacheBytes,
    autoExpand: null,
    alias: params.alias ?? null,
    ignoreErrors: params.ignoreErrors === true,
    unverified: true,
    failure: '',
    device: null,
  };
}

/** What the state directory knows of a COW file of this volume. A damaged entry is as good as none, and is reported. */
function findSeries(context: EngineContext, volume: Volume, cowFile: string): SavedSeries | undefined {
  const directory = join(context.paths.stateDir, 'series');
  let names: string[];
  try {
    names = readdirSync(directory);
  } catch (error) {
    if (errnoOfError(error) === 2) return undefined;
    throw error;
  }
  for (const name of names.filter((entry) => entry.endsWith('.json'))) {
    try {
      const saved = v.parse(Saved, JSON.parse(readFileSync(join(directory, name), 'utf8')));
      if (saved.origin === volume.record.origin && saved.cowFile === cowFile) return saved;
    } catch (error) {
      context.emit({
        event: 'state.damaged',
        level: 'warning',
        message: `${join(directory, name)} cannot be used: ${messageOf(error)}`,
      });
    }
  }
  return undefined;
}

/** Loads the index and begins to track; what does not agree fails the series with its reason, and tracks nothing. */
async function takeOver(
  context: EngineContext,
  volume: Volume,
  snapshot: SnapshotRecord,
  saved: SavedSeries,
  mode: 'snapshot' | 'incremental',
): Promise<void> {
  await undoing(context, async (undo) => {
    if (saved.store.kind === 'device') {
      const { storeFd } = await context.keeper.call('openStore', { path: saved.file.path });
      snapshot.storeFd = storeFd;
      volume.storeFd = libc.duplicateFrom(context.keeper.pid, storeFd);
      undo.add('close the store', () => closeStoreFds(context, volume, storeFd));
    }
    const { memory } = volume;
    await volume.whilePaused(() => {
      memory.set(Word.MODE, Mode.PASSTHROUGH);
      memory.set(Word.FAILED, 0);
      memory.set(Word.CHANGED, 0);
      memory.set(Word.NEXT_SLOT, saved.nextSlot | 0);
      memory.set(Word.SLOT_COUNT, saved.store.slots.reduce((sum, run) => sum + run.count, 0) | 0);
      volume.record.snapshot = snapshot;
      const dirtyHeader = headerFor(volume, snapshot, { clean: false, changedBlocks: 0 });
      volume.setStore({ config: saved.store, dirtyHeader }, storeDeviceOf(volume.storeFd, saved.store.placeCount));
    });
    undo.add('end tracking', () => {
      volume.record.snapshot = null;
    });
    try {
      await verifyAndLoad(volume, snapshot, saved, mode);
    } catch (error) {
      snapshot.failure = messageOf(error);
      volume.tracer.fail(EINVAL);
      context.emit({
        event: 'reload.refused',
        level: 'error',
        message: `Minor ${snapshot.minor}: ${messageOf(error)}`,
        minor: snapshot.minor,
      });
    }
    await saveRecord(context, volume);
  });
}

async function verifyAndLoad(
  volume: Volume,
  snapshot: SnapshotRecord,
  saved: SavedSeries,
  mode: 'snapshot' | 'incremental',
): Promise<void> {
  const { memory } = volume;
  if (saved.sizeBytes !== volume.record.opened.sizeBytes) {
    throw new Error(`the volume has ${volume.record.opened.sizeBytes} bytes and had ${saved.sizeBytes}`);
  }
  const store = storeOf({ volume, snapshot });
  await withScratch(async (buffer) => {
    const header = decodeHeader(await runStepsAsync(readHeaderPage(store, buffer)));
    requireAgreement(header, saved, mode);
    const fingerprint = Buffer.from(originFingerprint(volume.origin, buffer)).toString('hex');
    if (
      fingerprint !== saved.fingerprint ||
      Buffer.from(header.extension?.fingerprint ?? []).toString('hex') !== fingerprint
    ) {
      throw new Error(
        'the origin was used without Cowbird since the COW file became clean, so changes may be missing: begin a new series, and compare contents for its first backup',
      );
    }
    const firstPlace = dataOffsetBytes(volume.blockCount) / BLOCK_BYTES;
    // Writes are held while the index comes in: whatever they mark would be counted twice or not at all.
    const found = await runStepsAsync(
      loadIndex(memory, store, buffer, {
        indexOnly: mode === 'incremental',
        firstPlace,
        endPlace: saved.store.placeCount,
      }),
    );
    if (found !== header.changedBlocks)
      throw new Error(`its index has ${found} entries and its header says ${header.changedBlocks}`);
    await volume.whilePaused(() => {
      const again = Buffer.from(originFingerprint(volume.origin, buffer)).toString('hex');
      if (again !== saved.fingerprint) throw new Error('the volume was written while it was being reloaded');
      memory.set(Word.HEADER_STATE, HeaderState.CLEAN);
      memory.set(Word.MODE, mode === 'snapshot' ? Mode.SNAPSHOT : Mode.INCREMENTAL);
    });
  });
}

function requireAgreement(header: CowHeader, saved: SavedSeries, mode: 'snapshot' | 'incremental'): void {
  if (!header.clean)
    throw new Error(
      'the COW file is unclean: the machine or the daemon ended without closing it, so changes may be missing',
    );
  const headerMode = header.indexOnly ? 'incremental' : 'snapshot';
  if (headerMode !== mode) throw new Error(`the COW file is in ${headerMode} mode: use reload-${headerMode}`);
  if (Buffer.from(header.uuid).toString('hex') !== saved.uuid || header.sequenceId !== saved.sequenceId) {
    throw new Error(`the COW file is of sequence ${header.sequenceId} of another series`);
  }
}
