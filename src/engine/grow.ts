/**
 * Growing the COW file of an active snapshot.
 *
 * On the volume itself the new blocks were the user's at T0: they may hold what the snapshot must still show. So before the
 * store may use one, its contents are looked at: saved already, or all zeros, and it is free; anything else stays where it
 * is, as the saved copy of itself (its index entry names its own place). That costs no I/O and no space elsewhere.
 *
 * No worker ever waits for growth. It is asked for early; if the store is full first, the snapshot fails.
 */

import { dataOffsetBytes } from '../cow/geometry.js';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { BLOCK_BYTES, Word } from '../tracer/layout.js';
import type { SlotRun, StoreConfig, StoreExtent } from '../tracer/store-map.js';
import { isZero } from '../tracer/tracer.js';
import { type EngineContext, withHelper, withScratch } from './context.js';
import type { SnapshotRecord } from './records.js';
import type { HelperSession } from './services.js';
import { locateAndProve } from './store-setup.js';
import { headerFor, requireTransition, saveRecord, storeDeviceOf, type Tracked, tracked } from './tracking.js';
import type { Volume } from './volume.js';

const GROW_TIMEOUT_MS = 60_000;
/** Growth is asked for when less than this share of a step is free. */
const LOW_WATER_DIVISOR = 2;

/** `expand-cow-file`: the file becomes larger by so many bytes. */
export async function expandCowFile(
  context: EngineContext,
  minor: number,
  bytes: number,
): Promise<{ storeBytes: number }> {
  const target = tracked(context, minor);
  requireTransition(target, 'expandCowFile');
  if (bytes < BLOCK_BYTES)
    throw new CowbirdError('EINVAL', `A COW file grows by one block (${BLOCK_BYTES} bytes) at least, not by ${bytes}`);
  return { storeBytes: await grow(context, target, bytes, 0) };
}

/** `reconfigure-auto-expand`: a step of 0 ends it. */
export async function reconfigureAutoExpand(
  context: EngineContext,
  minor: number,
  stepBytes: number,
  reservedBytes: number,
): Promise<void> {
  const target = tracked(context, minor);
  requireTransition(target, 'reconfigureAutoExpand');
  target.snapshot.autoExpand = stepBytes === 0 ? null : { stepBytes, reservedBytes };
  await saveRecord(context, target.volume);
}

/** Grows every store that is allowed to and close to full. */
export async function growWhereLow(context: EngineContext): Promise<void> {
  for (const volume of context.volumes.values()) {
    const { snapshot } = volume.record;
    if (snapshot === null || snapshot.autoExpand === null || snapshot.mode !== 'snapshot') continue;
    if (volume.memory.get(Word.FAILED) !== 0 || snapshot.unverified) continue;
    const free = ((volume.memory.get(Word.SLOT_COUNT) >>> 0) - (volume.memory.get(Word.NEXT_SLOT) >>> 0)) * BLOCK_BYTES;
    const total = (volume.memory.get(Word.SLOT_COUNT) >>> 0) * BLOCK_BYTES;
    if (free > Math.max(snapshot.autoExpand.stepBytes / LOW_WATER_DIVISOR, total / 4)) continue;
    try {
      await grow(context, { volume, snapshot }, snapshot.autoExpand.stepBytes, snapshot.autoExpand.reservedBytes);
    } catch (error) {
      // Not again at each look: the step is given up until it is configured anew.
      snapshot.autoExpand = null;
      await saveRecord(context, volume);
      context.emit({
        event: 'store.autoExpand',
        level: 'warning',
        message: `The COW file of minor ${snapshot.minor} cannot grow: ${messageOf(error)}`,
        minor: snapshot.minor,
      });
    }
  }
}

async function grow(context: EngineContext, target: Tracked, bytes: number, reservedBytes: number): Promise<number> {
  const { volume, snapshot } = target;
  const fromBytes = snapshot.storeBytes;
  const toBytes = fromBytes + bytes;
  const immutable = snapshot.store.kind === 'origin';
  await withHelper(context, [], async (helper) => {
    await helper.call(
      'growStore',
      { file: snapshot.file, fromBytes, toBytes, reservedBytes, immutable },
      GROW_TIMEOUT_MS,
    );
    try {
      const extents = await extentsAfter(helper, target, toBytes);
      const placeCount = Math.floor(toBytes / BLOCK_BYTES);
      const gained: Gained =
        snapshot.store.kind === 'origin'
          ? await keepInPlace(volume, snapshot.store, extents)
          : { runs: [runAfter(snapshot.store, placeCount)], keptBlocks: [] };
      const slots = [...snapshot.store.slots, ...gained.runs.filter((run) => run.count > 0)];
      const config: StoreConfig = { kind: snapshot.store.kind, extents, slots, placeCount };
      await takeIntoUse(context, target, config, toBytes, gained.keptBlocks);
    } catch (error) {
      await helper.call('truncateStore', { file: snapshot.file, lengthBytes: fromBytes, immutable });
      throw error;
    }
  });
  context.emit({
    event: 'store.grown',
    level: 'info',
    message: `The COW file of minor ${snapshot.minor} has ${toBytes} bytes`,
    minor: snapshot.minor,
    storeBytes: toBytes,
  });
  return toBytes;
}

async function extentsAfter(
  helper: HelperSession,
  { volume, snapshot }: Tracked,
  sizeBytes: number,
): Promise<StoreExtent[]> {
  if (snapshot.store.kind === 'device') return [];
  const extents = await locateAndProve(helper, volume, {
    file: snapshot.file,
    sizeBytes,
    startBytes: snapshot.startBytes,
    indexBytes: dataOffsetBytes(volume.blockCount),
    fromBytes: snapshot.store.placeCount * BLOCK_BYTES,
  });
  await helper.call('setImmutable', { file: snapshot.file, immutable: true });
  return extents;
}

function runAfter(store: StoreConfig, placeCount: number): SlotRun {
  return { place: store.placeCount, count: placeCount - store.placeCount };
}

interface Gained {
  /** Places that are free for use. */
  runs: SlotRun[];
  /** Blocks whose entry names their own place: marked when the new configuration is in force, not before. */
  keptBlocks: number[];
}

/**
 * Goes through the new blocks. They belong to the file already, so nobody writes them; what the nonces overwrote was saved
 * like any other write. Returns the runs of places that are free for use.
 */
async function keepInPlace(volume: Volume, before: StoreConfig, extents: readonly StoreExtent[]): Promise<Gained> {
  const runs: SlotRun[] = [];
  const keptBlocks: number[] = [];
  const { memory } = volume;
  await withScratch(async (buffer) => {
    const perRead = buffer.bytes.byteLength / BLOCK_BYTES;
    for (const extent of extents) {
      let at = Math.max(0, before.placeCount - extent.place);
      while (at < extent.count) {
        const count = Math.min(perRead, extent.count - at);
        volume.origin.read(buffer, 0, count * BLOCK_BYTES, (extent.block + at) * BLOCK_BYTES);
        for (let i = 0; i < count; i++) {
          const block = extent.block + at + i;
          const place = extent.place + at + i;
          const start = i * BLOCK_BYTES;
          if (!memory.isMarked(block) && !isZero(buffer.bytes, start, start + BLOCK_BYTES)) {
            memory.setEntry(block, place);
            keptBlocks.push(block);
          } else {
            addPlace(runs, place);
          }
        }
        at += count;
        await new Promise((resolve) => setImmediate(resolve));
      }
    }
  });
  return { runs, keptBlocks };
}

function addPlace(runs: SlotRun[], place: number): void {
  const last = runs.at(-1);
  if (last !== undefined && last.place + last.count === place) last.count++;
  else runs.push({ place, count: 1 });
}

async function takeIntoUse(
  context: EngineContext,
  { volume, snapshot }: Tracked,
  config: StoreConfig,
  storeBytes: number,
  keptBlocks: readonly number[],
): Promise<void> {
  const next: SnapshotRecord = { ...snapshot, store: config, storeBytes };
  await volume.whilePaused(() => {
    const dirtyHeader = headerFor(volume, next, { clean: false, changedBlocks: 0 });
    volume.setStore({ config, dirtyHeader }, storeDeviceOf(volume.storeFd, config.placeCount));
    for (const block of keptBlocks) volume.memory.mark(block, block);
    volume.memory.set(Word.SLOT_COUNT, config.slots.reduce((sum, run) => sum + run.count, 0) | 0);
    volume.record.snapshot = next;
  });
  await saveRecord(context, volume);
}
