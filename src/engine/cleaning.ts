/**
 * Going CLEAN: what a tracked volume's COW file needs so that tracking can go on after the daemon has ended.
 *
 * Order: under the gate say CLEANING (no write is in hand then, so the index written next misses none); index, flush;
 * fingerprint of the origin; under the header's lock, if still CLEANING, the clean header, flush, CLEAN. A write that comes
 * meanwhile turns CLEANING back to DIRTY before it marks anything, and one that comes later first makes the header dirty on
 * the disk. So a header that says CLEAN has everything before it, and nothing after it.
 */
import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { originFingerprint } from '../cow/fingerprint.js';
import { errnoOfError, messageOf } from '../sys/errors.js';
import { type StoreOnDevice, writeHeader, writeIndex } from '../tracer/index-io.js';
import { HeaderState, Word } from '../tracer/layout.js';
import { writeDurably } from './attach.js';
import { type EngineContext, runStepsAsync, withScratch } from './context.js';
import type { SavedSeries } from './records.js';
import { seriesPath } from './snapshots.js';
import { headerFor, type Tracked } from './tracking.js';

/** The store of a tracked volume, as the control thread writes it. */
export function storeOf({ volume }: Tracked): StoreOnDevice {
  const map = volume.tracer.storeMap;
  if (map === undefined) throw new Error(`${volume.record.name} is tracked and has a store`);
  return { map, device: volume.storeDevice };
}

/** Makes the COW file clean. Returns false when writes came in between; the next look tries again. */
export async function makeClean(context: EngineContext, target: Tracked): Promise<boolean> {
  const { volume, snapshot } = target;
  const { memory, tracer } = volume;
  if (memory.get(Word.FAILED) !== 0) return false;
  if (memory.get(Word.HEADER_STATE) === HeaderState.CLEAN) return true;
  await volume.whilePaused(() => memory.set(Word.HEADER_STATE, HeaderState.CLEANING));
  const store = storeOf(target);
  try {
    return await withScratch(async (buffer) => {
      await runStepsAsync(writeIndex(memory, store, buffer, snapshot.mode === 'incremental'));
      store.device.flush();
      volume.origin.flush();
      const fingerprint = originFingerprint(volume.origin, buffer);
      await runStepsAsync(tracer.lockHeader());
      try {
        if (memory.get(Word.HEADER_STATE) !== HeaderState.CLEANING || memory.get(Word.FAILED) !== 0) return false;
        const header = headerFor(volume, snapshot, {
          clean: true,
          changedBlocks: memory.get(Word.CHANGED) >>> 0,
          fingerprint,
        });
        // The series is saved first: without the header it is only a promise, the header without it is of no use.
        saveSeries(context, target, fingerprint);
        await runStepsAsync(writeHeader(store, buffer, header));
        memory.set(Word.HEADER_STATE, HeaderState.CLEAN);
        return true;
      } finally {
        tracer.unlockHeader();
      }
    });
  } catch (error) {
    tracer.fail(errnoOfError(error));
    context.emit({
      event: 'snapshot.failed',
      level: 'error',
      message: `The COW file of minor ${snapshot.minor} could not be made clean: ${messageOf(error)}`,
      minor: snapshot.minor,
    });
    return false;
  }
}

function saveSeries(context: EngineContext, { volume, snapshot }: Tracked, fingerprint: Uint8Array): void {
  const saved: SavedSeries = {
    format: 1,
    origin: volume.record.origin,
    sizeBytes: volume.record.opened.sizeBytes,
    uuid: snapshot.uuid,
    sequenceId: snapshot.sequenceId,
    mode: snapshot.mode,
    cowFile: snapshot.cowFile,
    file: snapshot.file,
    store: snapshot.store,
    storeBytes: snapshot.storeBytes,
    startBytes: snapshot.startBytes,
    fsType: snapshot.fsType,
    nextSlot: volume.memory.get(Word.NEXT_SLOT) >>> 0,
    cacheBytes: snapshot.cacheBytes,
    fingerprint: Buffer.from(fingerprint).toString('hex'),
  };
  const path = seriesPath(context, snapshot.uuid);
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  writeDurably(path, JSON.stringify(saved));
}
