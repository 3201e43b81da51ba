/**
 * Growing the COW file of an active snapshot.
 *
 * On the volume itself the new blocks were the user's at T0: they may hold what the snapshot must still show. So before the
 * store may use one, its contents are looked at: saved already, free at T0, or all zeros, and it is free; anything else stays where it
 * is, as the saved copy of itself (its index entry names its own place). That costs no I/O and no space elsewhere.
 *
 * No worker ever waits for growth. It is asked for early; if the store is full first, the snapshot fails.
 */

import { dataOffsetBytes } from '../cow/geometry.js';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { BLOCK_BYTES, Word } from '../tracer/layout.js';
import type { SlotRun, StoreConfig, StoreExtent } from '../tracer/store-map.js';
import { isZero } from '../tracer/zeros.js';
import { withScratch } from './async-steps.js';
import { ensureDirty } from './cleaning.js';
import { type EngineContext, undoing, withHelper } from './context.js';
import { failPoint } from './fail-points.js';
import { announce, describeSwitch, finish, performSwitch, undoByTruncating } from './pending.js';
import type { SnapshotRecord } from './records.js';
import type { HelperSession } from './services.js';
import { locateAndProve, writeTimeMs } from './store-setup.js';
import { requireTransition, saveRecord, type Tracked, tracked } from './tracking.js';
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
  const { file, store } = snapshot;
  const immutable = store.kind === 'origin';
  await undoing(context, (undo) =>
    withHelper(context, async (helper) => {
      const back = undoByTruncating(file, snapshot);
      await announce(context, undo, volume, back);
      // Before it is called: a helper that takes too long is ended, and cleans up nothing.
      undo.add('cut the COW file to its old length', () =>
        withHelper(context, (other) => other.call('truncateStore', { file, lengthBytes: fromBytes, immutable })),
      );
      const timeoutMs = GROW_TIMEOUT_MS + writeTimeMs(bytes);
      await helper.call('growStore', { file, fromBytes, toBytes, reservedBytes, immutable }, timeoutMs);
      failPoint('store-grown');
      const extents = await extentsAfter(helper, target, toBytes);
      const placeCount = Math.floor(toBytes / BLOCK_BYTES);
      const gained = immutable ? await keepInPlace(volume, store, extents) : [runAfter(store, placeCount)];
      const slots = [...store.slots, ...gained.filter((run) => run.count > 0)];
      const config: StoreConfig = { ...store, extents, slots, placeCount };
      const next: SnapshotRecord = { ...snapshot, store: config, storeBytes: toBytes };
      await ensureDirty(volume);
      await describeSwitch(context, volume, { kind: 'grow', before: store, store: config }, next);
      await volume.whilePaused(() => {
        performSwitch(volume, volume.storeFd);
        undo.clear();
      });
    }),
  );
  await finish(context, volume);
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

/**
 * Goes through the new blocks. They belong to the file already, so nobody writes them; what the nonces overwrote was saved
 * like any other write. Returns the runs of places that are free for use. The entry of each other block names its own
 * place; its bit is set when the new configuration is in force, not before.
 */
async function keepInPlace(volume: Volume, before: StoreConfig, extents: readonly StoreExtent[]): Promise<SlotRun[]> {
  const runs: SlotRun[] = [];
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
          if (memory.isToBeSaved(block) && !isZero(buffer.bytes, start, start + BLOCK_BYTES))
            memory.setEntry(block, place);
          else addPlace(runs, place);
        }
        at += count;
        await new Promise((resolve) => setImmediate(resolve));
      }
    }
  });
  return runs;
}

function addPlace(runs: SlotRun[], place: number): void {
  const last = runs.at(-1);
  if (last !== undefined && last.place + last.count === place) last.count++;
  else runs.push({ place, count: 1 });
}
