/** What of a series outlives the daemon, in the state directory. */
import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { Word } from '../tracer/layout.js';
import { writeDurably } from './attach.js';
import type { EngineContext } from './context.js';
import type { SavedSeries } from './records.js';
import { encodeSeries, seriesPath } from './saved-state.js';
import type { Volume } from './volume.js';

/** Saves what a volume's series is now; with the fingerprint of the origin when its COW file becomes clean. */
export function saveSeries(context: EngineContext, volume: Volume, fingerprint: Uint8Array | undefined): void {
  const { snapshot } = volume.record;
  if (snapshot === null || snapshot.file.path === '') return;
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
    fingerprint: fingerprint === undefined ? '' : Buffer.from(fingerprint).toString('hex'),
    ...(snapshot.free === undefined ? {} : { free: snapshot.free }),
  };
  const path = seriesPath(context.paths.stateDir, snapshot.uuid);
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  writeDurably(path, encodeSeries(saved));
}
