/** What of a series outlives the daemon, in the state directory. */
import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { Word } from '../tracer/layout.js';
import { writeDurably } from './attach.js';
import type { EngineContext } from './context.js';
import type { SavedSeries } from './records.js';
import { encodeSeries, seriesPath } from './saved-state.js';
import type { Volume } from './volume.js';

/** What proves that nobody has used the origin since, and where on it was looked. */
export interface Proof {
  fingerprint: Uint8Array;
  /** Bytes at which file systems may begin, ascending; the first is 0. */
  starts: readonly number[];
}

/** Saves what a volume's series is now; with the proof when its COW file becomes clean. */
export function saveSeries(context: EngineContext, volume: Volume, proof: Proof | undefined): void {
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
    fingerprint: proof === undefined ? '' : Buffer.from(proof.fingerprint).toString('hex'),
    ...(snapshot.free === undefined ? {} : { free: snapshot.free }),
    ...(proof === undefined || proof.starts.length < 2 ? {} : { starts: [...proof.starts] }),
  };
  const path = seriesPath(context.paths.stateDir, snapshot.uuid);
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  writeDurably(path, encodeSeries(saved));
}
